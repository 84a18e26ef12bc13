//! The network's configuration: the fields of diffusers' `UNet2DModel` config, under the same names.
//!
//! What diffusers offers and this version does not (skip blocks, Fourier time embedding, ...) has no variant here, so a
//! config that names it is refused by name when it is read; [`unsupported`](super::unsupported) has the reasons. Of diffusers' fields only
//! `num_train_timesteps` is missing: it is the size of a learned time embedding's table.

use ddpm_kernels::image_size::ImageSize;
use ddpm_kernels::ops::activation::Activation as SeparateActivation;
use serde::{Deserialize, Serialize};

use crate::error::UNetConfigError;

/// A level of the down path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks, then a strided convolution.
    DownBlock2D,
    /// Residual blocks with self-attention after each, then as `downsample_type` says.
    AttnDownBlock2D,
    /// Residual blocks, then one more that halves the image by averaging.
    ResnetDownsampleBlock2D,
}

impl DownBlockType {
    /// How this level halves the image, given `downsample_type`, which counts with attention only.
    pub(super) fn resample(self, with_attention: Resample) -> Resample {
        match self {
            Self::DownBlock2D => Resample::Conv,
            Self::AttnDownBlock2D => with_attention,
            Self::ResnetDownsampleBlock2D => Resample::Resnet,
        }
    }
}

/// The bottom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlockType {
    /// Residual block, self-attention, residual block.
    #[default]
    UNetMidBlock2D,
}

/// A level of the up path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks, then nearest-neighbour upsampling and a convolution.
    UpBlock2D,
    /// Residual blocks with self-attention after each, then as `upsample_type` says.
    AttnUpBlock2D,
    /// Residual blocks, then one more that doubles the image.
    ResnetUpsampleBlock2D,
}

impl UpBlockType {
    /// How this level doubles the image, given `upsample_type`, which counts with attention only.
    pub(super) fn resample(self, with_attention: Resample) -> Resample {
        match self {
            Self::UpBlock2D => Resample::Conv,
            Self::AttnUpBlock2D => with_attention,
            Self::ResnetUpsampleBlock2D => Resample::Resnet,
        }
    }
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

/// How the time becomes a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeEmbeddingType {
    /// Sines and cosines.
    #[default]
    Positional,
}

/// How the class becomes a vector, if not as a row of a learned table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassEmbedType {
    /// As the time does: sines and cosines of the label's number, and two layers of its own.
    Timestep,
}

/// The activation in residual blocks; every published DDPM uses SiLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x * sigmoid(x)`, a part of the normalisation before it.
    #[default]
    #[serde(alias = "swish")]
    Silu,
    /// `x * tanh(ln(1 + e^x))`.
    Mish,
    /// `x` times the normal distribution's `Phi(x)`.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Its own operation, unless it is SiLU, which is part of the normalisation.
    pub(super) fn separate(self) -> Option<SeparateActivation> {
        match self {
            Self::Silu => None,
            Self::Mish => Some(SeparateActivation::Mish),
            Self::Gelu => Some(SeparateActivation::Gelu),
            Self::Relu => Some(SeparateActivation::Relu),
        }
    }
}

/// How a level with attention halves or doubles the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    /// A learned 3x3 convolution.
    #[default]
    Conv,
    /// A residual block that averages 2x2 squares, or repeats pixels, before its first convolution.
    Resnet,
}

/// The fields of diffusers' `UNet2DModel`, with its defaults except where noted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNetConfig {
    /// Height and width of the images, in pixels: one number, or both. Follows `data.image_size` where a config leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_size: Option<ImageSize>,
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
    /// The middle block.
    pub mid_block_type: MidBlockType,
    /// What the middle block's parts divide their outputs by.
    pub mid_block_scale_factor: f64,
    /// Self-attention in the middle block.
    pub add_attention: bool,
    /// Channels per attention head; left out: one head over all channels (diffusers' `null`; its own default is 8).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_head_dim: Option<usize>,
    /// Heads of every attention, whatever its width, instead of `attention_head_dim`: as in OpenAI's networks. No key of
    /// diffusers' `UNet2DModel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_attention_heads: Option<usize>,
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
    /// The activation in residual blocks.
    pub act_fn: Activation,
    /// How time enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Zeros put around a downsampling convolution's input; 0 pads right and bottom only.
    pub downsample_padding: usize,
    /// How a level with attention halves the image.
    pub downsample_type: Resample,
    /// How a level with attention doubles the image.
    pub upsample_type: Resample,
    /// Whether `x_t` is in [0, 1] and to be stretched to [-1, 1]; ours is there already.
    pub center_input_sample: bool,
    /// How the time becomes a vector.
    pub time_embedding_type: TimeEmbeddingType,
    /// Width of the time embedding; left out: four times the first level's channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_embedding_dim: Option<usize>,
    /// `[cos, sin]` instead of `[sin, cos]` in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift in the time embedding's frequencies (0, or 1 as in Ho et al.).
    pub freq_shift: f64,
    /// What t is multiplied by before it becomes sines and cosines: 1000 / T in OpenAI's networks with `rescale_timesteps`. No key
    /// of diffusers' `UNet2DModel`.
    pub timestep_scale: f64,
    /// How the class becomes a vector; left out: as a row of a learned table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_embed_type: Option<ClassEmbedType>,
    /// Number of classes of a class-conditional model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_class_embeds: Option<usize>,
}

/// What `freq_shift` may be: the frequencies' exponents are divided by half of the first level's channels less this.
const FREQ_SHIFT: &str = "0 or 1, nor another number from 0 to below half of block_out_channels[0]";

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
            mid_block_type: MidBlockType::UNetMidBlock2D,
            mid_block_scale_factor: 1.0,
            add_attention: true,
            attention_head_dim: None,
            num_attention_heads: None,
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            dropout: 0.0,
            act_fn: Activation::Silu,
            resnet_time_scale_shift: TimeScaleShift::Default,
            downsample_padding: 1,
            downsample_type: Resample::Conv,
            upsample_type: Resample::Conv,
            center_input_sample: false,
            time_embedding_type: TimeEmbeddingType::Positional,
            time_embedding_dim: None,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            timestep_scale: 1.0,
            class_embed_type: None,
            num_class_embeds: None,
        }
    }
}

/// The shapes of input and output, after `None`s were filled from the rest of a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Height and width, in pixels.
    pub size: ImageSize,
    /// Channels in.
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
}

impl ImageShape {
    /// The shape of so many inputs, `[N, H, W, C]`.
    pub fn inputs(&self, images: usize) -> [usize; 4] {
        self.size.shape(images, self.in_channels)
    }
}

impl UNetConfig {
    /// The number of resolutions.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Input and output shape, or which of them is missing.
    pub fn image_shape(&self) -> Result<ImageShape, UNetConfigError> {
        let missing = |key: &'static str| UNetConfigError::Missing { key };
        let given = |key, value: Option<usize>| value.ok_or(missing(key));
        Ok(ImageShape {
            size: self.sample_size.ok_or(missing("sample_size"))?,
            in_channels: given("in_channels", self.in_channels)?,
            out_channels: given("out_channels", self.out_channels)?,
        })
    }

    /// Heads of an attention over so many channels.
    pub fn heads(&self, channels: usize) -> usize {
        self.num_attention_heads.unwrap_or_else(|| channels / self.attention_head_dim.unwrap_or(channels))
    }

    /// Whether a level has attention, on its way down, up, or at the bottom.
    pub fn attends(&self, level: usize) -> bool {
        let last = self.levels() - 1;
        self.down_block_types[level] == DownBlockType::AttnDownBlock2D
            || self.up_block_types[last - level] == UpBlockType::AttnUpBlock2D
            || (level == last && self.add_attention)
    }

    /// The numbers that the sinusoids are made of.
    pub fn network_times(&self, timesteps: &[f32]) -> Vec<f32> {
        timesteps.iter().map(|t| (f64::from(*t) * self.timestep_scale) as f32).collect()
    }

    /// Width of the time embedding after its two linear layers.
    pub(crate) fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or_else(|| self.block_out_channels.first().copied().unwrap_or(0) * 4)
    }

    /// Checks everything the blocks rely on.
    ///
    /// # Errors
    /// The first key with an impossible value, with that value and a possible one.
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
        if shape.size.sides().iter().any(|side| *side == 0 || !side.is_multiple_of(divisor)) {
            return Err(UNetConfigError::ImageSize { size: shape.size, levels, divisor });
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<(), UNetConfigError> {
        let last = self.levels() - 1;
        let widest = self.block_out_channels[last];
        if let (Some(heads), Some(_)) = (self.num_attention_heads, self.attention_head_dim) {
            let (key, expected) =
                ("num_attention_heads", "left out, as attention_head_dim is set: only one of them can be");
            return Err(UNetConfigError::Range { key, found: heads.to_string(), expected });
        }
        let heads =
            [("attention_head_dim", self.attention_head_dim), ("num_attention_heads", self.num_attention_heads)];
        for (key, divisor) in heads.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            positive(key, divisor)?;
            let attending = self.block_out_channels.iter().enumerate().filter(|&(level, _)| self.attends(level));
            for (level, &channels) in attending {
                divides(key, divisor, level, channels)?;
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
        range("freq_shift", self.freq_shift, self.freq_shift >= 0.0 && self.freq_shift < half, FREQ_SHIFT)?;
        let scale = self.timestep_scale;
        range("timestep_scale", scale, scale.is_finite() && scale > 0.0, "a number above 0")?;
        range("downsample_padding", self.downsample_padding as f64, self.downsample_padding <= 1, "0 or 1")?;
        let factor = self.mid_block_scale_factor;
        range("mid_block_scale_factor", factor, factor.is_finite() && factor > 0.0, "a number above 0")?;
        positive("time_embedding_dim", self.time_embed_dim())?;
        positive("num_class_embeds", self.num_class_embeds.unwrap_or(1))
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
