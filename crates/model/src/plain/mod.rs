//! The same network in plain candle: `candle_nn` layers, weights from a `VarBuilder` under diffusers' names.
//!
//! It is for candle's users, and an oracle for tests. A program that uses candle alone loads what `ddpm export` or diffusers
//! wrote, on any device that candle has, in the dtype of its `VarBuilder`, and may train it by candle's autograd:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use candle_core::{DType, Device, Tensor};
//! use ddpm_model::{diffusers, plain::UNet2DModel};
//! let config = diffusers::parse_unet(&std::fs::read_to_string("clothes/unet/config.json")?)?;
//! let weights = &["clothes/unet/diffusion_pytorch_model.safetensors"];
//! let vb = unsafe { candle_nn::VarBuilder::from_mmaped_safetensors(weights, DType::F32, &Device::Cpu)? };
//! let unet = UNet2DModel::new(&config, vb)?;
//! let noise = unet.forward(&Tensor::randn(0f32, 1.0, (1, 1, 32, 32), &Device::Cpu)?, &[999.0], None)?;
//! # Ok(())
//! # }
//! ```
//! `examples/plain_candle.rs` draws an image in this way. And [`UNet`](crate::unet::UNet), whose operations are our own, is
//! tested against this one: two networks written from one paper, on two sets of operations.
//!
//! Here shapes are candle's and PyTorch's, `[N, C, H, W]`. It is as slow as candle's own operations are; for training there is
//! [`Tape`](crate::tape::Tape).

mod blocks;
mod layers;
mod optimizer;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, GroupNorm, Module, VarBuilder};

use self::blocks::{Level, MidBlock};
use self::layers::{ConditionEmbedding, conv2d};
pub use self::optimizer::{AdamW, AdamWSettings};
use crate::unet::UNetConfig;

/// The network; see the module.
#[derive(Clone, Debug)]
pub struct UNet2DModel {
    conv_in: Conv2d,
    embedding: ConditionEmbedding,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// Whether the input is in [0, 1].
    centre: bool,
}

impl UNet2DModel {
    /// The network of `config`, with the weights that `vb` finds: `conv_in.weight`, `down_blocks.0.resnets.0.norm1.weight` and
    /// so on. A `VarBuilder` over a `VarMap` starts them as candle's layers do.
    ///
    /// # Errors
    /// A configuration that cannot be, a weight that is missing or has another shape.
    #[allow(clippy::needless_pass_by_value)] // as all of candle_nn takes it
    pub fn new(config: &UNetConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let image = config.image_shape().map_err(candle_core::Error::wrap)?;
        let (channels, levels) = (&config.block_out_channels, config.levels());
        let (down, up) = (vb.pp("down_blocks"), vb.pp("up_blocks"));
        Ok(Self {
            conv_in: conv2d(image.in_channels, channels[0], 3, vb.pp("conv_in"))?,
            embedding: ConditionEmbedding::new(config, &vb)?,
            down_blocks: (0..levels).map(|level| Level::down(config, level, &down.pp(level))).collect::<Result<_>>()?,
            mid_block: MidBlock::new(config, &vb.pp("mid_block"))?,
            up_blocks: (0..levels).map(|index| Level::up(config, index, &up.pp(index))).collect::<Result<_>>()?,
            conv_norm_out: candle_nn::group_norm(
                config.norm_num_groups,
                channels[0],
                config.norm_eps,
                vb.pp("conv_norm_out"),
            )?,
            conv_out: conv2d(channels[0], image.out_channels, 3, vb.pp("conv_out"))?,
            centre: config.center_input_sample,
        })
    }

    /// The network's output for `x_t` `[N, C, H, W]` at `timesteps` (N numbers in `0..T`) and, if it has classes, `labels` (N).
    ///
    /// # Errors
    /// Inputs that do not fit the network.
    pub fn forward(&self, x_t: &Tensor, timesteps: &[f32], labels: Option<&[u32]>) -> Result<Tensor> {
        self.forward_t(x_t, timesteps, labels, false)
    }

    /// The same; with `train`, activations are dropped as the configuration says.
    ///
    /// # Errors
    /// Inputs that do not fit the network.
    pub fn forward_t(&self, x_t: &Tensor, timesteps: &[f32], labels: Option<&[u32]>, train: bool) -> Result<Tensor> {
        let x_t = if self.centre { x_t.affine(2.0, -1.0)? } else { x_t.clone() };
        let temb = self.embedding.forward(timesteps, labels, &x_t)?;
        let mut h = self.conv_in.forward(&x_t)?;
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward_down(&h, &temb, train, &mut skips)?;
        }
        h = self.mid_block.forward(&h, &temb, train)?;
        for block in &self.up_blocks {
            h = block.forward_up(&h, &temb, train, &mut skips)?;
        }
        // SiLU whatever `act_fn` says, as in diffusers.
        self.conv_out.forward(&self.conv_norm_out.forward(&h)?.silu()?)
    }
}
