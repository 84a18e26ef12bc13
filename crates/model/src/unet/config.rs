//! The network's configuration: the fields of diffusers' `UNet2DModel` config, under the same names.
//!
//! What diffusers offers and this version does not (skip blocks, Fourier time embedding, ...) has no variant
//! here, so a config naming it is refused by name when it is read.

use serde::{Deserialize, Serialize};

use super::error::UNetConfigError;

/// A level of the down path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks, then a strided convolution.
    DownBlock2D,
    /// The same with self-attention after every residual block.
    AttnDownBlock2D,
}

/// A level of the up path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks, then nearest-neighbour upsampling and a convolution.
    UpBlock2D,
    /// The same with self-attention after every residual block.
    AttnUpBlock2D,
}

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added after the first convolution (Ho et al. 2020).
    #[default]
    Default,
    /// `GroupNorm(h) * (1 + scale) + shift` (Nichol & Dhariwal 2021, section 3 and appendix A).
    ScaleShift,
}

/// The activation; every published DDPM uses SiLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    #[serde(alias = "swish")]
    Silu,
}

/// How a level halves or doubles the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    /// A learned 3x3 convolution.
    #[default]
    Conv,
}

/// The fields of diffusers' `UNet2DModel`, with its defaults except where noted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNetConfig {
    /// Side of the square images, in pixels. Follows `data.image_size` where a config leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_size: Option<usize>,
    /// Channels of `x_t`. Follows `data.channels` where a config leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_channels: Option<usize>,
    /// Channels of the output: C, or 2C with a learned variance. Follows the rest where a config leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_channels: Option<usize>,
    /// Channels of each level, from the finest to the coarsest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level (the up path has one more).
    pub layers_per_block: usize,
    /// One block type per level.
    pub down_block_types: Vec<DownBlockType>,
    /// One block type per level, from the coarsest to the finest.
    pub up_block_types: Vec<UpBlockType>,
    /// Self-attention in the middle block.
    pub add_attention: bool,
    /// Channels per attention head; left out: one head over all channels (diffusers' `null`; its own default is 8).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_head_dim: Option<usize>,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Groups of the middle attention's normalisation; left out: `norm_num_groups`, or with `scale_shift` none at
    /// all, as in diffusers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every group normalisation.
    pub norm_eps: f64,
    /// Share of activations dropped between a residual block's two convolutions while training.
    pub dropout: f64,
    /// The activation.
    pub act_fn: Activation,
    /// How time enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Zeros put around a downsampling convolution's input; 0 pads right and bottom only.
    pub downsample_padding: usize,
    /// How a level halves the image.
    pub downsample_type: Resample,
    /// How a level doubles the image.
    pub upsample_type: Resample,
    /// `[cos, sin]` instead of `[sin, cos]` in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift in the time embedding's frequencies (0, or 1 as in Ho et al.).
    pub freq_shift: f64,
    /// Number of classes of a class-conditional model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_class_embeds: Option<usize>,
}

impl Default for UNetConfig {
    fn default() -> Self {
        Self {
            sample_size: None,
            in_channels: None,
            out_channels: None,
            block_out_channels: vec![64, 128, 128],
            layers_per_block: 2,
            down_block_types: vec![
                DownBlockType::DownBlock2D,
                DownBlockType::AttnDownBlock2D,
                DownBlockType::DownBlock2D,
            ],
            up_block_types: vec![UpBlockType::UpBlock2D, UpBlockType::AttnUpBlock2D, UpBlockType::UpBlock2D],
            add_attention: true,
            attention_head_dim: None,
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            dropout: 0.0,
            act_fn: Activation::Silu,
            resnet_time_scale_shift: TimeScaleShift::Default,
            downsample_padding: 1,
            downsample_type: Resample::Conv,
            upsample_type: Resample::Conv,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            num_class_embeds: None,
        }
    }
}

/// The shape of what goes in and comes out, after `None`s were filled from the rest of a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Height and width, in pixels.
    pub size: usize,
    /// Channels in.
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
}

impl UNetConfig {
    /// The number of resolutions.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Input and output shape, or which of them is missing.
    pub fn image_shape(&self) -> Result<ImageShape, UNetConfigError> {
        let given = |key: &'static str, value: Option<usize>| value.ok_or(UNetConfigError::Missing { key });
        Ok(ImageShape {
            size: given("sample_size", self.sample_size)?,
            in_channels: given("in_channels", self.in_channels)?,
            out_channels: given("out_channels", self.out_channels)?,
        })
    }

    /// Width of the time embedding after its two linear layers.
    pub fn time_embed_dim(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0) * 4
    }

    /// Checks everything the blocks rely on.
    ///
    /// # Errors
    /// The first key that cannot be, with its value and a value that could.
    pub fn validate(&self) -> Result<(), UNetConfigError> {
        let levels = self.levels();
        if levels == 0 {
            return Err(UNetConfigError::Missing { key: "block_out_channels" });
        }
        positive("layers_per_block", self.layers_per_block)?;
        positive("norm_num_groups", self.norm_num_groups)?;
        same_length("down_block_types", self.down_block_types.len(), levels)?;
        same_length("up_block_types", self.up_block_types.len(), levels)?;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            positive("block_out_channels", channels)?;
            divides("norm_num_groups", self.norm_num_groups, level, channels)?;
        }
        self.validate_attention()?;
        self.validate_numbers()?;
        let shape = self.image_shape()?;
        positive("in_channels", shape.in_channels)?;
        positive("out_channels", shape.out_channels)?;
        let divisor = 1usize << (levels - 1).min(usize::BITS as usize - 1);
        if shape.size == 0 || !shape.size.is_multiple_of(divisor) {
            return Err(UNetConfigError::ImageSize { size: shape.size, levels, divisor });
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<(), UNetConfigError> {
        let last = self.levels() - 1;
        let widest = self.block_out_channels[last];
        let attends = |level: usize| {
            self.down_block_types[level] == DownBlockType::AttnDownBlock2D
                || self.up_block_types[last - level] == UpBlockType::AttnUpBlock2D
                || (level == last && self.add_attention)
        };
        if let Some(head_dim) = self.attention_head_dim {
            positive("attention_head_dim", head_dim)?;
            for (level, &channels) in self.block_out_channels.iter().enumerate().filter(|&(level, _)| attends(level)) {
                divides("attention_head_dim", head_dim, level, channels)?;
            }
        }
        if let Some(groups) = self.attn_norm_num_groups {
            positive("attn_norm_num_groups", groups)?;
            divides("attn_norm_num_groups", groups, last, widest)?;
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<(), UNetConfigError> {
        let first = self.block_out_channels[0];
        if !first.is_multiple_of(2) {
            return Err(UNetConfigError::Range {
                key: "block_out_channels[0]",
                found: first.to_string(),
                expected: "an even number: half of the time embedding is sines, half cosines",
            });
        }
        range("norm_eps", self.norm_eps, self.norm_eps > 0.0 && self.norm_eps < 1.0, "a number between 0 and 1")?;
        range("dropout", self.dropout, (0.0..1.0).contains(&self.dropout), "a share in [0, 1)")?;
        let half = (first / 2) as f64;
        range("freq_shift", self.freq_shift, self.freq_shift >= 0.0 && self.freq_shift < half, "0 or 1")?;
        range("downsample_padding", self.downsample_padding as f64, self.downsample_padding <= 1, "0 or 1")?;
        if self.num_class_embeds == Some(0) {
            return Err(UNetConfigError::Zero { key: "num_class_embeds" });
        }
        Ok(())
    }
}

fn positive(key: &'static str, value: usize) -> Result<(), UNetConfigError> {
    if value == 0 { Err(UNetConfigError::Zero { key }) } else { Ok(()) }
}

fn same_length(key: &'static str, found: usize, expected: usize) -> Result<(), UNetConfigError> {
    if found == expected { Ok(()) } else { Err(UNetConfigError::Length { key, found, expected }) }
}

fn divides(key: &'static str, divisor: usize, level: usize, channels: usize) -> Result<(), UNetConfigError> {
    if channels.is_multiple_of(divisor) {
        Ok(())
    } else {
        Err(UNetConfigError::DoesNotDivide { key, divisor, level, channels })
    }
}

fn range(key: &'static str, value: f64, ok: bool, expected: &'static str) -> Result<(), UNetConfigError> {
    if ok { Ok(()) } else { Err(UNetConfigError::Range { key, found: value.to_string(), expected }) }
}
