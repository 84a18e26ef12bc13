//! The residual block of Ho et al. 2020 and Nichol & Dhariwal 2021 (diffusers' `ResnetBlock2D`).

use ddpm_kernels::ops::conv2d::Conv2d as Convolution;

use super::config::{TimeScaleShift, UNetConfig};
use super::layers::{Conv2d, GroupNorm, InitialWeights, Linear, StackInput, Stacked};
use crate::error::Result;
use crate::params::ParamLayout;
use crate::tape::{Residual, Tape, Time, Var};

/// What a residual block does to the image's size, between its first activation and convolution, and to its skip
/// connection (diffusers' `down` and `up`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resize {
    Keep,
    /// The mean of each 2x2 square.
    Halve,
    /// Every pixel repeated.
    Double,
}

impl Resize {
    fn forward(self, tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
        match self {
            Self::Keep => Ok(x.clone()),
            Self::Halve => tape.downsample(x),
            Self::Double => tape.upsample(x),
        }
    }
}

/// Normalise, activate, resize, convolve; add the time; normalise, activate, drop, convolve; add the skip connection.
#[derive(Clone, Debug)]
pub(super) struct ResnetBlock {
    resize: Resize,
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Stacked,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    time_scale_shift: TimeScaleShift,
    dropout: f64,
}

impl ResnetBlock {
    pub(super) fn new(
        layout: &mut ParamLayout,
        name: &str,
        config: &UNetConfig,
        resize: Resize,
        inputs: usize,
        outputs: usize,
    ) -> Self {
        let norm = |layout: &mut ParamLayout, part: &str, channels: usize| {
            let (groups, activation) = (config.norm_num_groups, Some(config.act_fn));
            GroupNorm::new(layout, &format!("{name}.{part}"), channels, groups, config.norm_eps, activation)
        };
        let same = Convolution::same(3);
        let time_outputs = match config.resnet_time_scale_shift {
            TimeScaleShift::Default => outputs,
            TimeScaleShift::ScaleShift => 2 * outputs,
        };
        Self {
            resize,
            norm1: norm(layout, "norm1", inputs),
            conv1: Conv2d::new(layout, &format!("{name}.conv1"), inputs, outputs, same, InitialWeights::FanIn),
            time_emb_proj: Linear::stacked(
                layout,
                &format!("{name}.time_emb_proj"),
                config.time_embed_dim(),
                time_outputs,
            ),
            norm2: norm(layout, "norm2", outputs),
            conv2: Conv2d::new(layout, &format!("{name}.conv2"), outputs, outputs, same, InitialWeights::Zero),
            conv_shortcut: (inputs != outputs).then(|| {
                let one = Convolution::same(1);
                Conv2d::new(layout, &format!("{name}.conv_shortcut"), inputs, outputs, one, InitialWeights::FanIn)
            }),
            time_scale_shift: config.resnet_time_scale_shift,
            dropout: config.dropout,
        }
    }

    /// [`forward`](Self::forward) as a block of the tape.
    pub(super) fn forward_block(&self, tape: &mut Tape<'_>, x: Var, temb: &StackInput) -> Result<Var> {
        let (block, temb) = (self.clone(), temb.clone());
        tape.block(move |tape| block.forward(tape, x, None, &temb))
    }

    /// `x` `[N, H, W, I]`, or the first channels of it, with `skip` beside it; `temb` from `[N, E]` after the activation
    /// `-> [N, H', W', O]`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: Var, skip: Option<Var>, temb: &StackInput) -> Result<Var> {
        let (x, h) = match skip {
            Some(skip) => {
                let joined = self.norm1.forward_joining(tape, &x, &skip)?;
                drop(x);
                joined
            }
            None => {
                let h = self.norm1.forward(tape, &x, Time::Absent, 0.0)?;
                (x, h)
            }
        };
        let h = self.resize.forward(tape, &h)?;
        let h = self.conv1.forward(tape, &h, None)?;
        let time = self.time_emb_proj.forward(tape, temb)?;
        let time = match self.time_scale_shift {
            TimeScaleShift::Default => Time::Offset(&time),
            TimeScaleShift::ScaleShift => Time::ScaleShift(&time),
        };
        let h = self.norm2.forward(tape, &h, time, self.dropout)?;
        let x = self.resize.forward(tape, &x)?;
        let (skip, own) = match &self.conv_shortcut {
            Some(conv) => (conv.forward(tape, &x, None)?, true),
            None => (x, false),
        };
        self.conv2.forward(tape, &h, Some(Residual { value: &skip, own }))
    }
}
