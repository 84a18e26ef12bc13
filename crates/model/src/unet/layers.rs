//! Layers: a geometry and the places of their parameters. Names are diffusers' keys, initial values PyTorch's
//! defaults (uniform within `1 / sqrt(fan_in)`), except where a layer starts at zero.

use candle_core::Tensor;
use ddpm_kernels::ops::activation::Activation as SeparateActivation;
use ddpm_kernels::ops::conv2d::Conv2d as Convolution;
use ddpm_kernels::ops::group_norm::GroupNorm as Normalisation;

use super::config::Activation;
use crate::error::Result;
use crate::params::{FileLayout, Init, ParamId, ParamLayout};
use crate::tape::{Columns, LayerParams, Residual, Tape, Time, Var};

/// A layer's weights before training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InitialWeights {
    /// PyTorch's default.
    FanIn,
    /// All zero, so that a residual block starts as the identity and the network's first loss is 1.
    Zero,
}

impl InitialWeights {
    fn init(self, fan_in: usize) -> Init {
        match self {
            Self::FanIn => Init::Uniform(1.0 / (fan_in as f64).sqrt()),
            Self::Zero => Init::Zeros,
        }
    }
}

/// A convolution with bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv2d {
    convolution: Convolution,
    params: LayerParams,
}

impl Conv2d {
    pub(super) fn new(
        layout: &mut ParamLayout,
        name: &str,
        inputs: usize,
        outputs: usize,
        convolution: Convolution,
        start: InitialWeights,
    ) -> Self {
        let k = convolution.kernel;
        let init = start.init(inputs * k * k);
        let weight = layout.push(format!("{name}.weight"), &[outputs, k, k, inputs], init, FileLayout::Convolution);
        let bias = layout.push(format!("{name}.bias"), &[outputs], init, FileLayout::Same);
        Self { convolution, params: LayerParams { weight, bias } }
    }

    /// `[N, H, W, I] -> [N, H', W', O]`, plus `residual`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: &Var, residual: Option<Residual<'_>>) -> Result<Var> {
        tape.conv2d(x, &self.convolution, self.params, residual)
    }
}

/// A linear layer with bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    params: LayerParams,
}

impl Linear {
    pub(super) fn new(
        layout: &mut ParamLayout,
        name: &str,
        inputs: usize,
        outputs: usize,
        start: InitialWeights,
    ) -> Self {
        let init = start.init(inputs);
        let weight = layout.push(format!("{name}.weight"), &[outputs, inputs], init, FileLayout::Same);
        let bias = layout.push(format!("{name}.bias"), &[outputs], init, FileLayout::Same);
        Self { params: LayerParams { weight, bias } }
    }

    /// One of many of the same input; see [`Stacked`].
    pub(super) fn stacked(layout: &mut ParamLayout, name: &str, inputs: usize, outputs: usize) -> Stacked {
        let init = InitialWeights::FanIn.init(inputs);
        let ((weight, bias), first) = layout.push_stacked(name, [outputs, inputs], init);
        Stacked { alone: Self { params: LayerParams { weight, bias } }, first, outputs }
    }

    /// Queries, keys and values as one layer; files hold `{name}.to_q`, `to_k`, `to_v`.
    pub(super) fn qkv(layout: &mut ParamLayout, name: &str, channels: usize) -> Self {
        let init = InitialWeights::FanIn.init(channels);
        let mut push = |part: &str, shape: &[usize]| {
            let keys = ["to_q", "to_k", "to_v"].map(|to| format!("{name}.{to}.{part}"));
            layout.push(format!("{name}.to_qkv.{part}"), shape, init, FileLayout::Stacked(keys))
        };
        let weight = push("weight", &[3 * channels, channels]);
        let bias = push("bias", &[3 * channels]);
        Self { params: LayerParams { weight, bias } }
    }

    /// `[..., I] -> [..., O]`, plus `residual`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: &Var, residual: Option<&Var>) -> Result<Var> {
        tape.linear(x, self.params, residual)
    }
}

/// A linear layer of the layout's stack: all of them have one input, and a GPU applies them together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stacked {
    alone: Linear,
    /// Its outputs among those of the stack.
    first: usize,
    outputs: usize,
}

/// The input of stacked layers.
#[derive(Clone, Debug)]
pub(super) enum StackInput {
    /// The input, `[N, I]`.
    Plain(Var),
    /// The output of the whole stack, `[N, sum of O]`.
    Applied(Var),
}

impl StackInput {
    /// `x`, with the stack applied if `tape` applies it as one.
    pub(super) fn new(tape: &mut Tape<'_>, x: Var) -> Result<Self> {
        Ok(match tape.linear_stack(&x)? {
            Some(all) => Self::Applied(all),
            None => Self::Plain(x),
        })
    }
}

impl Stacked {
    /// The layer's outputs.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: &StackInput) -> Result<Columns> {
        match x {
            StackInput::Plain(x) => Ok(Columns::all(self.alone.forward(tape, x, None)?)),
            StackInput::Applied(all) => Ok(Columns::some(all, self.first, self.outputs)),
        }
    }
}

impl Activation {
    /// The activation of `x` on its own.
    pub(super) fn forward(self, tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
        match self.separate() {
            None => tape.silu(x),
            Some(f) => tape.activation(f, x),
        }
    }
}

/// A group normalisation, with an activation or without.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupNorm {
    norm: Normalisation,
    params: LayerParams,
    /// What follows, unless it is SiLU and so a part of `norm`.
    activation: Option<SeparateActivation>,
}

impl GroupNorm {
    pub(super) fn new(
        layout: &mut ParamLayout,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f64,
        activation: Option<Activation>,
    ) -> Self {
        let weight = layout.push(format!("{name}.weight"), &[channels], Init::Ones, FileLayout::Same);
        let bias = layout.push(format!("{name}.bias"), &[channels], Init::Zeros, FileLayout::Same);
        let norm = Normalisation { groups, eps, silu: activation == Some(Activation::Silu) };
        let activation = activation.and_then(Activation::separate);
        Self { norm, params: LayerParams { weight, bias }, activation }
    }

    /// `[N, ..., C] -> [N, ..., C]`, with the time, and dropout after it while training.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: &Var, time: Time<'_>, dropout: f64) -> Result<Var> {
        let Some(f) = self.activation else { return tape.group_norm(x, self.norm, self.params, time, dropout) };
        let h = tape.group_norm(x, self.norm, self.params, time, 0.0)?;
        let h = tape.activation(f, &h)?;
        tape.dropout(&h, dropout)
    }

    /// `a` and `b` `[N, ..., A]` and `[N, ..., B]` side by side, and normalised.
    pub(super) fn forward_joining(&self, tape: &mut Tape<'_>, a: &Var, b: &Var) -> Result<(Var, Var)> {
        let (x, h) = tape.group_norm_joining((a, b), self.norm, self.params)?;
        let Some(f) = self.activation else { return Ok((x, h)) };
        let h = tape.activation(f, &h)?;
        Ok((x, h))
    }
}

/// A table of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Embedding {
    table: ParamId,
    pub(super) rows: usize,
}

impl Embedding {
    pub(super) fn new(layout: &mut ParamLayout, name: &str, rows: usize, columns: usize) -> Self {
        let table = layout.push(format!("{name}.weight"), &[rows, columns], Init::Normal, FileLayout::Same);
        Self { table, rows }
    }

    /// Rows `labels` (u32, N), `[N, C]`.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, labels: &Tensor) -> Result<Var> {
        tape.embedding(self.table, labels)
    }
}
