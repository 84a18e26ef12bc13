//! Self-attention over the pixels of a feature map (diffusers' `Attention` as UNet2DModel uses it).

use super::config::UNetConfig;
use super::layers::{GroupNorm, InitialWeights, Linear};
use crate::error::Result;
use crate::params::ParamLayout;
use crate::tape::{Tape, Time, Var};

/// Normalise, attend, project, add the skip connection.
#[derive(Clone, Debug)]
pub(super) struct AttentionBlock {
    group_norm: Option<GroupNorm>,
    to_qkv: Linear,
    to_out: Linear,
    heads: usize,
}

impl AttentionBlock {
    /// `groups`: of the normalisation in front; none leaves it out.
    pub(super) fn new(
        layout: &mut ParamLayout,
        name: &str,
        config: &UNetConfig,
        channels: usize,
        groups: Option<usize>,
    ) -> Self {
        Self {
            group_norm: groups.map(|groups| {
                GroupNorm::new(layout, &format!("{name}.group_norm"), channels, groups, config.norm_eps, None)
            }),
            to_qkv: Linear::qkv(layout, name, channels),
            to_out: Linear::new(layout, &format!("{name}.to_out.0"), channels, channels, InitialWeights::Zero),
            heads: config.heads(channels),
        }
    }

    /// `[N, H, W, C] -> [N, H, W, C]`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
        let dims = x.value().dims().to_vec();
        let (n, tokens, channels) = (dims[0], dims[1] * dims[2], dims[3]);
        let h = match &self.group_norm {
            Some(norm) => norm.forward(tape, x, Time::Absent, 0.0)?,
            None => x.clone(),
        };
        let h = tape.reshape(&h, &[n, tokens, channels])?;
        let qkv = self.to_qkv.forward(tape, &h, None)?;
        let h = tape.attention(&qkv, self.heads)?;
        let h = tape.reshape(&h, &dims)?;
        self.to_out.forward(tape, &h, Some(x))
    }
}
