//! What an operation of the network works on, noted while a pass runs: enough to do the same work again on its own.

use std::fmt::{self, Display, Formatter};

use ddpm_kernels::ops::activation::Activation;
use ddpm_kernels::ops::conv2d::Conv2d;
use ddpm_kernels::ops::group_norm::GroupNorm;

/// An operation on `x` `[N, ..., C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// The shape of its first operand; that of an embedding is its result's.
    pub x: Vec<usize>,
    /// What is done with it.
    pub kind: Kind,
}

/// The operations, named as the tape's methods, with what else makes a difference to their work.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the operands of those methods")]
pub enum Kind {
    Conv2d { conv: Conv2d, outputs: usize, residual: bool, need_dx: bool },
    GroupNorm { norm: GroupNorm, modulation: bool, offset: bool, dropout: f64 },
    Linear { outputs: usize, residual: bool, need_dx: bool },
    Attention { heads: usize },
    AddChannels,
    Add,
    Concat { others: usize },
    Upsample,
    Downsample,
    Scale { factor: f32 },
    Activation(Activation),
    Silu,
    Embedding { rows: usize },
    Dropout { probability: f64 },
}

/// What must be done, whatever the algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes that must be read and written once.
    pub bytes: u64,
    /// Two for each multiplication and addition of convolutions and matrix products; nothing else counts.
    pub flop: u64,
}

impl Operation {
    /// The name of the tape's method.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Conv2d { .. } => "conv2d",
            Kind::GroupNorm { .. } => "group_norm",
            Kind::Linear { .. } => "linear",
            Kind::Attention { .. } => "attention",
            Kind::AddChannels => "add_channels",
            Kind::Add => "add",
            Kind::Concat { .. } => "concat",
            Kind::Upsample => "upsample",
            Kind::Downsample => "downsample",
            Kind::Scale { .. } => "scale",
            Kind::Activation(_) => "activation",
            Kind::Silu => "silu",
            Kind::Embedding { .. } => "embedding",
            Kind::Dropout { .. } => "dropout",
        }
    }

    /// The same for `n` samples.
    #[must_use]
    pub fn of_samples(mut self, n: usize) -> Self {
        if let Some(samples) = self.x.first_mut() {
            *samples = n;
        }
        self
    }

    /// The shape of the result.
    pub fn y(&self) -> Vec<usize> {
        let mut y = self.x.to_vec();
        let channels = y.last().copied().unwrap_or(0);
        let mut resize = |by: &dyn Fn(usize) -> usize, channels: usize| {
            let last = y.len().saturating_sub(1);
            y.iter_mut().take(last).skip(1).for_each(|side| *side = by(*side));
            y.iter_mut().skip(last).for_each(|all| *all = channels);
        };
        match self.kind {
            Kind::Conv2d { conv, outputs, .. } => {
                let padding = conv.pad_before + conv.pad_after;
                resize(&|side| (side + padding).saturating_sub(conv.kernel) / conv.stride.max(1) + 1, outputs);
            }
            Kind::Linear { outputs, .. } => resize(&|side| side, outputs),
            Kind::Attention { .. } => resize(&|side| side, channels / 3),
            Kind::Concat { others, .. } => resize(&|side| side, channels + others),
            Kind::Upsample => resize(&|side| 2 * side, channels),
            Kind::Downsample => resize(&|side| side / 2, channels),
            _ => {}
        }
        y
    }

    /// Numbers in weight and bias, in this order.
    pub fn params(&self) -> [usize; 2] {
        let channels = self.x.last().copied().unwrap_or(0);
        match self.kind {
            Kind::Conv2d { conv, outputs, .. } => [outputs * conv.kernel * conv.kernel * channels, outputs],
            Kind::Linear { outputs, .. } => [outputs * channels, outputs],
            Kind::GroupNorm { .. } => [channels; 2],
            Kind::Embedding { rows, .. } => [rows * channels, 0],
            _ => [0; 2],
        }
    }

    /// What its forward pass must do, with activations of `size` bytes a number.
    pub fn forward_work(&self, size: usize) -> Work {
        let (x, y) = (count(&self.x), count(&self.y()));
        let params: usize = self.params().iter().sum();
        let (second, params) = match self.kind {
            Kind::Conv2d { residual, .. } | Kind::Linear { residual, .. } => {
                (if residual { y } else { 0 }, params * size)
            }
            // Its parameters are f32.
            Kind::GroupNorm { modulation, offset, .. } => {
                (self.per_channel(2 * u64::from(modulation) + u64::from(offset)), params * size_of::<f32>())
            }
            Kind::AddChannels => (self.per_channel(1), 0),
            Kind::Add => (x, 0),
            Kind::Concat { .. } => (y - x, 0),
            _ => (0, 0),
        };
        Work { bytes: (x + y + second) * size as u64 + params as u64, flop: self.products() }
    }

    /// What its backward pass must do: the gradients of parameters are f32.
    pub fn backward_work(&self, size: usize) -> Work {
        let (x, y, size) = (count(&self.x), count(&self.y()), size as u64);
        let [weight, bias] = self.params().map(|numbers| numbers as u64);
        let gradients = (weight + bias) * size_of::<f32>() as u64;
        let (bytes, flop) = match self.kind {
            Kind::Conv2d { need_dx, .. } | Kind::Linear { need_dx, .. } => {
                let parts = if need_dx { 2 } else { 1 };
                let dx = if need_dx { x + weight } else { 0 };
                ((x + y + dx) * size + gradients, parts * self.products())
            }
            Kind::GroupNorm { modulation, offset, .. } => {
                let time = self.per_channel(4 * u64::from(modulation) + 2 * u64::from(offset));
                ((x + y + x + time) * size + 2 * gradients, 0)
            }
            Kind::Attention { .. } => ((2 * x + y) * size, 2 * self.products()),
            Kind::AddChannels => ((x + self.per_channel(1)) * size, 0),
            // Its gradient is passed on as it is.
            Kind::Add => (0, 0),
            Kind::Concat { .. } => (2 * y * size, 0),
            Kind::Activation(_) | Kind::Silu => (3 * x * size, 0),
            Kind::Embedding { .. } => (y * size + gradients, 0),
            Kind::Upsample | Kind::Downsample | Kind::Scale { .. } | Kind::Dropout { .. } => ((x + y) * size, 0),
        };
        Work { bytes, flop }
    }

    /// Two for each multiplication and addition of the products of the forward pass.
    fn products(&self) -> u64 {
        let x = &self.x;
        match self.kind {
            Kind::Conv2d { .. } | Kind::Linear { .. } => {
                let rows = count(&self.y()) / self.params()[1].max(1) as u64;
                2 * rows * self.params()[0] as u64
            }
            // Queries by keys, and probabilities by values.
            Kind::Attention { .. } => 2 * 2 * count(x) / 3 * x.get(1).copied().unwrap_or(0) as u64,
            _ => 0,
        }
    }

    /// `numbers` for each channel of each sample.
    fn per_channel(&self, numbers: u64) -> u64 {
        let x = &self.x;
        numbers * x.first().zip(x.last()).map_or(0, |(n, channels)| (n * channels) as u64)
    }
}

/// The shapes and what else makes a difference.
impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sides = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        write!(f, "{} to {}", sides(&self.x), sides(&self.y()))?;
        match self.kind {
            Kind::Conv2d { conv, residual, .. } => {
                write!(f, ", kernel {}, stride {}{}", conv.kernel, conv.stride, added(residual))
            }
            Kind::Linear { residual, .. } => f.write_str(added(residual)),
            Kind::GroupNorm { norm, modulation, offset, dropout } => {
                let parts = [
                    (offset, ", offset"),
                    (norm.silu, ", SiLU"),
                    (modulation, ", scale-shift"),
                    (dropout > 0.0, ", dropout"),
                ];
                write!(f, ", {} groups", norm.groups)?;
                parts.iter().filter(|(there, _)| *there).try_for_each(|(_, name)| f.write_str(name))
            }
            Kind::Attention { heads, .. } => write!(f, ", heads {heads}"),
            Kind::Activation(function) => write!(f, ", {function:?}"),
            _ => Ok(()),
        }
    }
}

fn added(residual: bool) -> &'static str {
    if residual { ", residual" } else { "" }
}

fn count(shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_of_stride_2_is_counted() {
        let conv = Operation {
            x: vec![1, 8, 8, 3],
            kind: Kind::Conv2d { conv: Conv2d::downsample(1), outputs: 5, residual: false, need_dx: false },
        }
        .of_samples(2);
        assert_eq!(conv.y(), [2, 4, 4, 5]);
        let (x, y, weight) = (2 * 8 * 8 * 3, 2 * 4 * 4 * 5, 5 * 9 * 3);
        assert_eq!(conv.forward_work(2), Work { bytes: 2 * (x + y + weight + 5), flop: 2 * 2 * 4 * 4 * weight });
        let flop = 2 * 2 * 4 * 4 * weight;
        assert_eq!(conv.backward_work(2), Work { bytes: 2 * (x + y) + 4 * (weight + 5), flop });
        assert_eq!(conv.to_string(), "2x8x8x3 to 2x4x4x5, kernel 3, stride 2");
    }

    #[test]
    fn attention_has_two_products_forward_and_four_backward() {
        let attention = Operation { x: vec![2, 16, 3 * 8], kind: Kind::Attention { heads: 2 } };
        let flop = 2 * 2 * 2 * 16 * 16 * 8;
        assert_eq!(attention.forward_work(4), Work { bytes: 4 * (2 * 16 * 32), flop });
        assert_eq!(attention.backward_work(4).flop, 2 * flop);
    }
}
