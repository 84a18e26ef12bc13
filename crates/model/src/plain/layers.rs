//! Residual block, attention, and the embedding of time and class, out of `candle_nn`'s layers.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Dropout, Embedding, GroupNorm, Linear, Module, VarBuilder};
use ddpm_kernels::ops::diffusion::sinusoids;

use crate::unet::{Activation, ClassEmbedType, TimeScaleShift, UNetConfig};

/// A convolution that keeps the image's size.
pub(super) fn conv2d(inputs: usize, outputs: usize, kernel: usize, vb: VarBuilder<'_>) -> Result<Conv2d> {
    let config = Conv2dConfig { padding: kernel / 2, ..Conv2dConfig::default() };
    candle_nn::conv2d(inputs, outputs, kernel, config, vb)
}

/// A 3x3 convolution that halves the image, with `padding` zeros around it.
pub(super) fn conv2d_halving(channels: usize, padding: usize, vb: VarBuilder<'_>) -> Result<Conv2d> {
    let config = Conv2dConfig { padding, stride: 2, ..Conv2dConfig::default() };
    candle_nn::conv2d(channels, channels, 3, config, vb)
}

/// Every pixel as a 2x2 square. Not `upsample_nearest2d`, whose gradient overwrites contributions to the same tensor instead of
/// adding to them (candle 0.11.1).
pub(super) fn upsample(x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    x.reshape((n, c, h, 1, w, 1))?.broadcast_as((n, c, h, 2, w, 2))?.reshape((n, c, 2 * h, 2 * w))
}

pub(super) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::Mish => {
            // tanh(ln(1 + e^x)) = w (w + 2) / (w (w + 2) + 2) with w = e^x; 1 in f32 from x = 20 on. 16 bits have room neither
            // for e^20 nor beside the 2.
            let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let w = x.to_dtype(dtype)?.minimum(20.0)?.exp()?;
            let numerator = (&w * (&w + 2.0)?)?;
            x * (&numerator / (&numerator + 2.0)?)?.to_dtype(x.dtype())?
        }
    }
}

/// What a residual block does to the image's size before its first convolution, and to its skip connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resize {
    Keep,
    /// The mean of each 2x2 square.
    Halve,
    /// Every pixel repeated.
    Double,
}

impl Resize {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Keep => Ok(x.clone()),
            Self::Halve => x.avg_pool2d(2),
            Self::Double => upsample(x),
        }
    }
}

/// diffusers' `ResnetBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    resize: Resize,
    time_scale_shift: TimeScaleShift,
    dropout: Dropout,
    activation: Activation,
    /// The output is divided by it.
    pub(super) scale_factor: f64,
}

impl ResnetBlock {
    pub(super) fn new(
        config: &UNetConfig,
        inputs: usize,
        outputs: usize,
        resize: Resize,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let norm =
            |name, channels| candle_nn::group_norm(config.norm_num_groups, channels, config.norm_eps, vb.pp(name));
        let time_outputs = match config.resnet_time_scale_shift {
            TimeScaleShift::Default => outputs,
            TimeScaleShift::ScaleShift => 2 * outputs,
        };
        let shortcut = (inputs != outputs).then(|| conv2d(inputs, outputs, 1, vb.pp("conv_shortcut")));
        Ok(Self {
            norm1: norm("norm1", inputs)?,
            conv1: conv2d(inputs, outputs, 3, vb.pp("conv1"))?,
            time_emb_proj: candle_nn::linear(config.time_embed_dim(), time_outputs, vb.pp("time_emb_proj"))?,
            norm2: norm("norm2", outputs)?,
            conv2: conv2d(outputs, outputs, 3, vb.pp("conv2"))?,
            conv_shortcut: shortcut.transpose()?,
            resize,
            time_scale_shift: config.resnet_time_scale_shift,
            dropout: Dropout::new(config.dropout as f32),
            activation: config.act_fn,
            scale_factor: 1.0,
        })
    }

    /// `x` `[N, I, H, W]`, `temb` `[N, E]` after the activation `-> [N, O, H', W']`.
    pub(super) fn forward(&self, x: &Tensor, temb: &Tensor, train: bool) -> Result<Tensor> {
        let h = activate(self.activation, &self.norm1.forward(x)?)?;
        let h = self.conv1.forward(&self.resize.forward(&h)?)?;
        let time = self.time_emb_proj.forward(temb)?.unsqueeze(2)?.unsqueeze(3)?;
        let h = match self.time_scale_shift {
            TimeScaleShift::Default => self.norm2.forward(&h.broadcast_add(&time)?)?,
            TimeScaleShift::ScaleShift => {
                let [scale, shift] = &time.chunk(2, 1)?[..] else {
                    candle_core::bail!("time_emb_proj has odd outputs")
                };
                self.norm2.forward(&h)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)?
            }
        };
        let h = self.dropout.forward(&activate(self.activation, &h)?, train)?;
        let h = self.conv2.forward(&h)?;
        let x = self.resize.forward(x)?;
        let skip = match &self.conv_shortcut {
            Some(conv) => conv.forward(&x)?,
            None => x,
        };
        (skip + h)? / self.scale_factor
    }
}

/// Self-attention over the pixels of a feature map (diffusers' `Attention` as `UNet2DModel` uses it).
#[derive(Clone, Debug)]
pub(super) struct AttentionBlock {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    /// The output is divided by it.
    scale_factor: f64,
}

impl AttentionBlock {
    /// `groups`: of the normalisation in front; none leaves it out.
    pub(super) fn new(
        config: &UNetConfig,
        channels: usize,
        groups: Option<usize>,
        scale_factor: f64,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let norm = |groups| candle_nn::group_norm(groups, channels, config.norm_eps, vb.pp("group_norm"));
        let linear = |vb| candle_nn::linear(channels, channels, vb);
        Ok(Self {
            group_norm: groups.map(norm).transpose()?,
            to_q: linear(vb.pp("to_q"))?,
            to_k: linear(vb.pp("to_k"))?,
            to_v: linear(vb.pp("to_v"))?,
            to_out: linear(vb.pp("to_out").pp(0))?,
            heads: config.heads(channels),
            scale_factor,
        })
    }

    /// `[N, C, H, W] -> [N, C, H, W]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, height, width) = x.dims4()?;
        let (tokens, head_dim) = (height * width, c / self.heads);
        let h = match &self.group_norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        // In one piece: the product of a transposed view and a weight that is broadcast is wrong in candle 0.11.1.
        let h = h.reshape((n, c, tokens))?.transpose(1, 2)?.contiguous()?;
        let heads = |layer: &Linear| {
            layer.forward(&h)?.reshape((n, tokens, self.heads, head_dim))?.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (heads(&self.to_q)?, heads(&self.to_k)?, heads(&self.to_v)?);
        let scores = (q.matmul(&k.t()?)? / (head_dim as f64).sqrt())?;
        let h = candle_nn::ops::softmax(&scores, 3)?.matmul(&v)?;
        let h = self.to_out.forward(&h.transpose(1, 2)?.reshape((n, tokens, c))?)?;
        (h.transpose(1, 2)?.reshape((n, c, height, width))? + x)? / self.scale_factor
    }
}

/// diffusers' `TimestepEmbedding`; SiLU whatever `act_fn` says.
#[derive(Clone, Debug)]
struct TwoLayers {
    linear_1: Linear,
    linear_2: Linear,
}

impl TwoLayers {
    fn new(config: &UNetConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (channels, width) = (config.block_out_channels[0], config.time_embed_dim());
        Ok(Self {
            linear_1: candle_nn::linear(channels, width, vb.pp("linear_1"))?,
            linear_2: candle_nn::linear(width, width, vb.pp("linear_2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward(x)?.silu()?)
    }
}

/// By `class_embed_type`.
#[derive(Clone, Debug)]
enum ClassEmbedding {
    Table(Embedding),
    Timestep(TwoLayers),
}

/// Time, and class where there is one, as a row.
#[derive(Clone, Debug)]
pub(super) struct ConditionEmbedding {
    time: TwoLayers,
    class: Option<ClassEmbedding>,
    config: UNetConfig,
}

impl ConditionEmbedding {
    pub(super) fn new(config: &UNetConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let place = vb.pp("class_embedding");
        let class = match (config.class_embed_type, config.num_class_embeds) {
            (Some(ClassEmbedType::Timestep), _) => Some(ClassEmbedding::Timestep(TwoLayers::new(config, &place)?)),
            (None, Some(classes)) => {
                Some(ClassEmbedding::Table(candle_nn::embedding(classes, config.time_embed_dim(), place)?))
            }
            (None, None) => None,
        };
        let time = TwoLayers::new(config, &vb.pp("time_embedding"))?;
        Ok(Self { time, class, config: config.clone() })
    }

    /// `[N, E]` where `like` lies and in its format, after the activation that every residual block would apply to it.
    pub(super) fn forward(&self, timesteps: &[f32], labels: Option<&[u32]>, like: &Tensor) -> Result<Tensor> {
        let (n, device, dtype) = (like.dim(0)?, like.device(), like.dtype());
        let count = |what, found| candle_core::bail!("there are {n} images, but {found} {what}");
        if timesteps.len() != n {
            count("timesteps", timesteps.len())?;
        }
        if let Some(labels) = labels.filter(|labels| labels.len() != n) {
            count("labels", labels.len())?;
        }
        let mut h = self.time.forward(&self.sinusoids(&self.config.network_times(timesteps), device, dtype)?)?;
        match (&self.class, labels) {
            (None, None) => {}
            (None, Some(_)) => candle_core::bail!("labels were given to a network without classes"),
            (Some(_), None) => candle_core::bail!("a network with classes needs a label for every image"),
            (Some(ClassEmbedding::Table(table)), Some(labels)) => {
                h = (h + table.forward(&Tensor::new(labels, device)?)?)?;
            }
            (Some(ClassEmbedding::Timestep(layers)), Some(labels)) => {
                let numbers: Vec<f32> = labels.iter().map(|&label| label as f32).collect();
                h = (h + layers.forward(&self.sinusoids(&numbers, device, dtype)?)?)?;
            }
        }
        activate(self.config.act_fn, &h)
    }

    fn sinusoids(&self, numbers: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
        let config = &self.config;
        let (numbers, channels) = (Tensor::new(numbers, &Device::Cpu)?, config.block_out_channels[0] / 2 * 2);
        let rows = sinusoids(&numbers, channels, config.flip_sin_to_cos, config.freq_shift, DType::F32);
        rows.map_err(candle_core::Error::wrap)?.to_device(device)?.to_dtype(dtype)
    }
}
