//! The levels of the network: diffusers' `DownBlock2D`, `UNetMidBlock2D`, `UpBlock2D`, the same with attention, and those that
//! resample in a residual block.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Module, VarBuilder};

use super::layers::{AttentionBlock, Resize, ResnetBlock, conv2d, conv2d_halving, upsample};
use crate::unet::{DownBlockType, Resample, TimeScaleShift, UNetConfig, UpBlockType};

/// One level, of the down path or the up path.
#[derive(Clone, Debug)]
pub(super) struct Level {
    layers: Vec<(ResnetBlock, Option<AttentionBlock>)>,
    resampler: Option<Resampler>,
}

/// What halves or doubles the image at the end of a level.
#[derive(Clone, Debug)]
enum Resampler {
    /// Zeros around the input, and a convolution of stride 2.
    Halve {
        conv: Conv2d,
        padding: usize,
    },
    /// Pixels repeated, and a convolution.
    Double(Conv2d),
    Resnet(Box<ResnetBlock>),
}

impl Resampler {
    fn resnet(block: ResnetBlock) -> Self {
        Self::Resnet(Box::new(block))
    }

    fn forward(&self, x: &Tensor, temb: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            // Where nothing is padded, a row below and a column on the right are missing.
            Self::Halve { conv, padding: 0 } => conv.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?),
            Self::Halve { conv, .. } => conv.forward(x),
            Self::Double(conv) => conv.forward(&upsample(x)?),
            Self::Resnet(resnet) => resnet.forward(x, temb, train),
        }
    }
}

impl Level {
    /// The level of the down path that takes the results of the finer one; the coarsest does not halve the image.
    pub(super) fn down(config: &UNetConfig, level: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (inputs, outputs) = (channels[level.saturating_sub(1)], channels[level]);
        let kind = config.down_block_types[level];
        let inputs = (0..config.layers_per_block).map(|i| if i == 0 { inputs } else { outputs });
        let resample = match kind {
            _ if level + 1 == config.levels() => None,
            DownBlockType::DownBlock2D => Some(Resample::Conv),
            DownBlockType::AttnDownBlock2D => Some(config.downsample_type),
            DownBlockType::ResnetDownsampleBlock2D => Some(Resample::Resnet),
        };
        let place = vb.pp("downsamplers").pp(0);
        let resampler = resample.map(|resample| match resample {
            Resample::Conv => {
                let padding = config.downsample_padding;
                Ok(Resampler::Halve { conv: conv2d_halving(outputs, padding, place.pp("conv"))?, padding })
            }
            Resample::Resnet => {
                ResnetBlock::new(config, outputs, outputs, Resize::Halve, &place).map(Resampler::resnet)
            }
        });
        Ok(Self {
            layers: layers(config, inputs, outputs, kind == DownBlockType::AttnDownBlock2D, vb)?,
            resampler: resampler.transpose()?,
        })
    }

    /// Block `index` of the up path, counted from the bottom; its residual blocks take results of the down path beside the
    /// result of the level below.
    pub(super) fn up(config: &UNetConfig, index: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (channels, last) = (&config.block_out_channels, config.levels() - 1);
        let level = last - index;
        let (below, outputs, above) =
            (channels[(level + 1).min(last)], channels[level], channels[level.saturating_sub(1)]);
        let kind = config.up_block_types[index];
        let inputs = (0..=config.layers_per_block).map(|i| {
            let from_below = if i == 0 { below } else { outputs };
            let skip = if i == config.layers_per_block { above } else { outputs };
            from_below + skip
        });
        let resample = match kind {
            _ if level == 0 => None,
            UpBlockType::UpBlock2D => Some(Resample::Conv),
            UpBlockType::AttnUpBlock2D => Some(config.upsample_type),
            UpBlockType::ResnetUpsampleBlock2D => Some(Resample::Resnet),
        };
        let place = vb.pp("upsamplers").pp(0);
        let resampler = resample.map(|resample| match resample {
            Resample::Conv => conv2d(outputs, outputs, 3, place.pp("conv")).map(Resampler::Double),
            Resample::Resnet => {
                ResnetBlock::new(config, outputs, outputs, Resize::Double, &place).map(Resampler::resnet)
            }
        });
        Ok(Self {
            layers: layers(config, inputs, outputs, kind == UpBlockType::AttnUpBlock2D, vb)?,
            resampler: resampler.transpose()?,
        })
    }

    /// `[N, I, H, W] -> [N, O, H/2, W/2]`; every intermediate result goes on `skips`.
    pub(super) fn forward_down(
        &self,
        x: &Tensor,
        temb: &Tensor,
        train: bool,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut h = x.clone();
        for layer in &self.layers {
            h = forward_layer(layer, &h, temb, train)?;
            skips.push(h.clone());
        }
        if let Some(resampler) = &self.resampler {
            h = resampler.forward(&h, temb, train)?;
            skips.push(h.clone());
        }
        Ok(h)
    }

    /// `[N, I, H, W] -> [N, O, 2H, 2W]`; takes its skip connections from the end of `skips`.
    pub(super) fn forward_up(&self, x: &Tensor, temb: &Tensor, train: bool, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut h = x.clone();
        for layer in &self.layers {
            if let Some(skip) = skips.pop() {
                h = Tensor::cat(&[&h, &skip], 1)?;
            }
            h = forward_layer(layer, &h, temb, train)?;
        }
        match &self.resampler {
            Some(resampler) => resampler.forward(&h, temb, train),
            None => Ok(h),
        }
    }
}

fn layers(
    config: &UNetConfig,
    inputs: impl Iterator<Item = usize>,
    outputs: usize,
    attends: bool,
    vb: &VarBuilder<'_>,
) -> Result<Vec<(ResnetBlock, Option<AttentionBlock>)>> {
    let layer = |(i, inputs)| {
        let resnet = ResnetBlock::new(config, inputs, outputs, Resize::Keep, &vb.pp("resnets").pp(i))?;
        let groups = Some(config.norm_num_groups);
        let attention = attends.then(|| AttentionBlock::new(config, outputs, groups, 1.0, &vb.pp("attentions").pp(i)));
        Ok((resnet, attention.transpose()?))
    };
    inputs.enumerate().map(layer).collect()
}

fn forward_layer(
    (resnet, attention): &(ResnetBlock, Option<AttentionBlock>),
    x: &Tensor,
    temb: &Tensor,
    train: bool,
) -> Result<Tensor> {
    let h = resnet.forward(x, temb, train)?;
    match attention {
        Some(attention) => attention.forward(&h),
        None => Ok(h),
    }
}

/// The bottom: residual block, attention, residual block.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<AttentionBlock>,
}

impl MidBlock {
    pub(super) fn new(config: &UNetConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let channels = config.block_out_channels[config.levels() - 1];
        let scale_factor = config.mid_block_scale_factor;
        let resnet = |i: usize| -> Result<ResnetBlock> {
            let mut resnet = ResnetBlock::new(config, channels, channels, Resize::Keep, &vb.pp("resnets").pp(i))?;
            resnet.scale_factor = scale_factor;
            Ok(resnet)
        };
        // diffusers leaves the normalisation out here when time scales and shifts and no number of groups is given.
        let groups = config.attn_norm_num_groups.or(match config.resnet_time_scale_shift {
            TimeScaleShift::Default => Some(config.norm_num_groups),
            TimeScaleShift::ScaleShift => None,
        });
        let attention = || AttentionBlock::new(config, channels, groups, scale_factor, &vb.pp("attentions").pp(0));
        Ok(Self { resnets: [resnet(0)?, resnet(1)?], attention: config.add_attention.then(attention).transpose()? })
    }

    pub(super) fn forward(&self, x: &Tensor, temb: &Tensor, train: bool) -> Result<Tensor> {
        let [first, second] = &self.resnets;
        let mut h = first.forward(x, temb, train)?;
        if let Some(attention) = &self.attention {
            h = attention.forward(&h)?;
        }
        second.forward(&h, temb, train)
    }
}
