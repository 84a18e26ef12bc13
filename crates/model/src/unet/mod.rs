//! The UNet of Ho et al. 2020 with the options of Nichol & Dhariwal 2021, structured and named as diffusers'
//! `UNet2DModel`, so that weights are exchanged unchanged.
//!
//! A [`UNet`] holds geometry and the places of its parameters, not their values: the same network runs on the raw
//! weights or on a moving average, whichever [`Params`] the tape was given. Shapes are
//! `[N, H, W, C]`.

mod attention;
mod blocks;
mod config;
mod embedding;
#[cfg(all(test, feature = "cuda"))]
mod launches;
mod layers;
pub mod naming;
mod resnet;
#[cfg(test)]
mod tests;
mod unsupported;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::conv2d::Conv2d as Convolution;

pub use config::{
    Activation, ClassEmbedType, DownBlockType, ImageShape, MidBlockType, Resample, TimeEmbeddingType, TimeScaleShift,
    UNetConfig, UpBlockType,
};
pub use embedding::Condition;
pub use unsupported::unsupported;

pub use crate::error::UNetConfigError;

use self::blocks::{DownBlock, MidBlock, UpBlock};
use self::embedding::ConditionEmbedding;
use self::layers::{Conv2d, GroupNorm, InitialWeights, StackInput};
use crate::error::{ModelError, Result};
use crate::params::{ParamLayout, Params};
use crate::tape::{Sketch, Tape, Time, Var};

/// The network.
#[derive(Clone, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    embedding: ConditionEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    layout: Arc<ParamLayout>,
    image: ImageShape,
    /// Whether the input is in [0, 1].
    centre: bool,
}

impl UNet {
    /// The network of `config`.
    ///
    /// # Errors
    /// A configuration that cannot be; see [`UNetConfig::validate`].
    pub fn new(config: &UNetConfig) -> Result<Self> {
        config.validate()?;
        let image = config.image_shape()?;
        let mut layout = ParamLayout::default();
        let channels = &config.block_out_channels;
        let same = Convolution::same(3);
        let conv_in = Conv2d::new(&mut layout, "conv_in", image.in_channels, channels[0], same, InitialWeights::FanIn);
        let embedding = ConditionEmbedding::new(&mut layout, config);
        let down_blocks = (0..config.levels())
            .map(|level| DownBlock::new(&mut layout, config, level, channels[level.saturating_sub(1)]))
            .collect();
        let mid_block = MidBlock::new(&mut layout, config, channels[config.levels() - 1]);
        let up_blocks = (0..config.levels()).map(|index| UpBlock::new(&mut layout, config, index)).collect();
        // SiLU whatever `act_fn` says, as in diffusers.
        let (groups, silu) = (config.norm_num_groups, Some(Activation::Silu));
        let conv_norm_out = GroupNorm::new(&mut layout, "conv_norm_out", channels[0], groups, config.norm_eps, silu);
        let conv_out =
            Conv2d::new(&mut layout, "conv_out", channels[0], image.out_channels, same, InitialWeights::Zero);
        let layout = Arc::new(layout.finish());
        let centre = config.center_input_sample;
        Ok(Self {
            conv_in,
            embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_out,
            layout,
            image,
            centre,
        })
    }

    /// Where each parameter lies.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// Input and output shape.
    pub fn image_shape(&self) -> ImageShape {
        self.image
    }

    /// The network's output for `x_t` `[N, H, W, C]` at `timesteps` (N numbers in `0..T`) and, if it has classes,
    /// `labels` (N).
    ///
    /// # Errors
    /// Inputs that do not fit the network, or an operation that fails.
    pub fn forward(&self, tape: &mut Tape<'_>, x_t: &Tensor, timesteps: &[f32], labels: Option<&[u32]>) -> Result<Var> {
        let condition = self.condition(timesteps, labels, &tape.device())?;
        self.forward_at(tape, x_t, &condition)
    }

    /// Timesteps and labels as [`forward_at`](Self::forward_at) takes them, on `device`.
    ///
    /// # Errors
    /// Labels that do not fit the network.
    pub fn condition(&self, timesteps: &[f32], labels: Option<&[u32]>, device: &Device) -> Result<Condition> {
        self.embedding.condition(timesteps, labels, device)
    }

    /// The timesteps as a [`Condition`] has them: scaled, where the configuration says so.
    pub fn times(&self, timesteps: &[f32]) -> Vec<f32> {
        self.embedding.times(timesteps)
    }

    /// [`forward`](Self::forward) with timesteps and labels where the network computes.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_at(&self, tape: &mut Tape<'_>, x_t: &Tensor, condition: &Condition) -> Result<Var> {
        self.check_input(x_t, condition.timesteps.elem_count())?;
        let temb = self.embedding.forward(tape, condition)?;
        let temb = StackInput::new(tape, temb)?;
        let x_t = if self.centre { x_t.affine(2.0, -1.0)? } else { x_t.clone() };
        let mut h = self.conv_in.forward(tape, &tape.input(&x_t)?, None)?;
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward(tape, h, &temb, &mut skips)?;
        }
        h = self.mid_block.forward(tape, h, &temb)?;
        for block in &self.up_blocks {
            h = block.forward(tape, h, &temb, &mut skips)?;
        }
        let h = self.conv_norm_out.forward(tape, &h, Time::Absent, 0.0)?;
        self.conv_out.forward(tape, &h, None)
    }

    /// What runs when one image is learned from, without running it; `fused` as on a GPU, or as on a CPU.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn sketch(&self, fused: bool) -> Result<Sketch> {
        // Zeros that are never touched take no memory.
        let params = Params::from_vec(&self.layout, vec![0.0; self.layout.len()], &Device::Cpu)?;
        let mut tape = Tape::sketching(&params, fused);
        let image = Tensor::zeros(&self.image.inputs(1)[..], DType::F32, &Device::Cpu);
        let label = self.embedding.takes_labels().then_some(&[0][..]);
        self.forward(&mut tape, &image?, &[0.0], label)?;
        Ok(tape.into_sketch())
    }

    fn check_input(&self, x_t: &Tensor, timesteps: usize) -> Result<()> {
        let expected = self.image.inputs(timesteps);
        if x_t.dims() == expected {
            return Ok(());
        }
        Err(ModelError::Input { what: "x_t [N, H, W, C]", found: x_t.dims().to_vec(), expected: expected.to_vec() })
    }
}
