//! The levels of the UNet: diffusers' `DownBlock2D`, `UNetMidBlock2D`, `UpBlock2D`, the same with attention, and those that
//! resample in a residual block.

use ddpm_kernels::ops::conv2d::Conv2d as Convolution;

use super::attention::AttentionBlock;
use super::config::{DownBlockType, Resample, TimeScaleShift, UNetConfig, UpBlockType};
use super::layers::{Conv2d, InitialWeights, StackInput};
use super::resnet::{Resize, ResnetBlock};
use crate::error::Result;
use crate::params::ParamLayout;
use crate::tape::{Tape, Var};

/// One level of the down path.
#[derive(Clone, Debug)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Resampler>,
}

/// What halves or doubles the image at the end of a level.
#[derive(Clone, Debug)]
enum Resampler {
    Conv(Conv2d),
    Resnet(Box<ResnetBlock>),
}

impl Resampler {
    fn resnet(layout: &mut ParamLayout, name: &str, config: &UNetConfig, resize: Resize, channels: usize) -> Self {
        Self::Resnet(Box::new(ResnetBlock::new(layout, name, config, resize, channels, channels)))
    }
}

impl DownBlock {
    /// Level `level`, which takes `inputs` channels; the coarsest does not halve the image.
    pub(super) fn new(layout: &mut ParamLayout, config: &UNetConfig, level: usize, inputs: usize) -> Self {
        let name = format!("down_blocks.{level}");
        let outputs = config.block_out_channels[level];
        let kind = config.down_block_types[level];
        let attends = kind == DownBlockType::AttnDownBlock2D;
        let layers = (0..config.layers_per_block)
            .map(|i| {
                let inputs = if i == 0 { inputs } else { outputs };
                Layer::new(layout, &name, i, config, inputs, outputs, attends)
            })
            .collect();
        let downsampler = (level + 1 < config.levels()).then(|| {
            let name = format!("{name}.downsamplers.0");
            match kind.resample(config.downsample_type) {
                Resample::Conv => {
                    let conv = Convolution::downsample(config.downsample_padding);
                    Resampler::Conv(Conv2d::new(
                        layout,
                        &format!("{name}.conv"),
                        outputs,
                        outputs,
                        conv,
                        InitialWeights::FanIn,
                    ))
                }
                Resample::Resnet => Resampler::resnet(layout, &name, config, Resize::Halve, outputs),
            }
        });
        Self { layers, downsampler }
    }

    /// `[N, H, W, I] -> [N, H/2, W/2, O]`; every intermediate result goes on `skips`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: Var, temb: &StackInput, skips: &mut Vec<Var>) -> Result<Var> {
        let mut h = x;
        for layer in &self.layers {
            h = layer.forward(tape, h, None, temb)?;
            skips.push(h.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            h = match downsampler {
                Resampler::Conv(conv) => conv.forward(tape, &h, None)?,
                Resampler::Resnet(resnet) => resnet.forward_block(tape, h, temb)?,
            };
            skips.push(h.clone());
        }
        Ok(h)
    }
}

/// A residual block and, at some levels, attention.
#[derive(Clone, Debug)]
struct Layer {
    resnet: ResnetBlock,
    attention: Option<AttentionBlock>,
}

impl Layer {
    fn new(
        layout: &mut ParamLayout,
        name: &str,
        index: usize,
        config: &UNetConfig,
        inputs: usize,
        outputs: usize,
        attends: bool,
    ) -> Self {
        let resnet =
            ResnetBlock::new(layout, &format!("{name}.resnets.{index}"), config, Resize::Keep, inputs, outputs);
        let attention = attends.then(|| {
            let name = format!("{name}.attentions.{index}");
            AttentionBlock::new(layout, &name, config, outputs, Some(config.norm_num_groups))
        });
        Self { resnet, attention }
    }

    /// Takes `skip`, a result of the down path, beside `x`.
    fn forward(&self, tape: &mut Tape<'_>, x: Var, skip: Option<Var>, temb: &StackInput) -> Result<Var> {
        let (layer, temb) = (self.clone(), temb.clone());
        tape.block(move |tape| {
            let h = layer.resnet.forward(tape, x, skip, &temb)?;
            match &layer.attention {
                Some(attention) => attention.forward(tape, &h),
                None => Ok(h),
            }
        })
    }
}

/// The bottom: residual block, attention, residual block.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    first: ResnetBlock,
    attention: Option<AttentionBlock>,
    second: ResnetBlock,
    /// Every part's output is divided by it.
    scale_factor: f64,
}

impl MidBlock {
    pub(super) fn new(layout: &mut ParamLayout, config: &UNetConfig, channels: usize) -> Self {
        // diffusers leaves the normalisation out here when time scales and shifts and no number of groups is given.
        let groups = config.attn_norm_num_groups.or(match config.resnet_time_scale_shift {
            TimeScaleShift::Default => Some(config.norm_num_groups),
            TimeScaleShift::ScaleShift => None,
        });
        let resnet = |layout: &mut ParamLayout, i: usize| {
            let name = format!("mid_block.resnets.{i}");
            ResnetBlock::new(layout, &name, config, Resize::Keep, channels, channels)
        };
        Self {
            first: resnet(layout, 0),
            attention: config
                .add_attention
                .then(|| AttentionBlock::new(layout, "mid_block.attentions.0", config, channels, groups)),
            second: resnet(layout, 1),
            scale_factor: config.mid_block_scale_factor,
        }
    }

    /// `[N, H, W, C] -> [N, H, W, C]`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: Var, temb: &StackInput) -> Result<Var> {
        let (block, temb) = (self.clone(), temb.clone());
        tape.block(move |tape| {
            let mut h = block.first.forward(tape, x, None, &temb)?;
            h = block.scaled(tape, h)?;
            if let Some(attention) = &block.attention {
                h = attention.forward(tape, &h)?;
                h = block.scaled(tape, h)?;
            }
            h = block.second.forward(tape, h, None, &temb)?;
            block.scaled(tape, h)
        })
    }

    fn scaled(&self, tape: &mut Tape<'_>, h: Var) -> Result<Var> {
        if self.scale_factor == 1.0 { Ok(h) } else { tape.scale(&h, 1.0 / self.scale_factor) }
    }
}

/// One level of the up path.
#[derive(Clone, Debug)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Resampler>,
}

impl UpBlock {
    /// Block `index` from the bottom; its residual blocks take the results of the down path beside that of the level below.
    pub(super) fn new(layout: &mut ParamLayout, config: &UNetConfig, index: usize) -> Self {
        let name = format!("up_blocks.{index}");
        let level = config.levels() - 1 - index;
        let channels = &config.block_out_channels;
        let outputs = channels[level];
        let below = channels[(level + 1).min(config.levels() - 1)];
        let above = channels[level.saturating_sub(1)];
        let kind = config.up_block_types[index];
        let attends = kind == UpBlockType::AttnUpBlock2D;
        let last = config.layers_per_block;
        let layers = (0..=last)
            .map(|i| {
                let from_below = if i == 0 { below } else { outputs };
                let skip = if i == last { above } else { outputs };
                Layer::new(layout, &name, i, config, from_below + skip, outputs, attends)
            })
            .collect();
        let upsampler = (level > 0).then(|| {
            let name = format!("{name}.upsamplers.0");
            match kind.resample(config.upsample_type) {
                Resample::Conv => {
                    let same = Convolution::same(3);
                    Resampler::Conv(Conv2d::new(
                        layout,
                        &format!("{name}.conv"),
                        outputs,
                        outputs,
                        same,
                        InitialWeights::FanIn,
                    ))
                }
                Resample::Resnet => Resampler::resnet(layout, &name, config, Resize::Double, outputs),
            }
        });
        Self { layers, upsampler }
    }

    /// `[N, H, W, I] -> [N, 2H, 2W, O]`; takes its skip connections from the end of `skips`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: Var, temb: &StackInput, skips: &mut Vec<Var>) -> Result<Var> {
        let mut h = x;
        for layer in &self.layers {
            h = layer.forward(tape, h, skips.pop(), temb)?;
        }
        match &self.upsampler {
            Some(Resampler::Conv(conv)) => {
                let conv = *conv;
                tape.block(move |tape| {
                    let h = tape.upsample(&h)?;
                    conv.forward(tape, &h, None)
                })
            }
            Some(Resampler::Resnet(resnet)) => resnet.forward_block(tape, h, temb),
            None => Ok(h),
        }
    }
}
