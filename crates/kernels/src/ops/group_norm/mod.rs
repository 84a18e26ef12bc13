//! Group normalisation, scale-shift and SiLU in one operation (Wu & He 2018; Nichol & Dhariwal 2021, appendix A).
//!
//! For image `n`, channel `c` in group `g`, pixel `p`:
//!
//! `x^ = (x - mean[n, g]) rstd[n, g]`, `z = (weight[c] x^ + bias[c]) (1 + scale[n, c]) + shift[n, c]`, `y = silu(z)`.
//!
//! Without modulation `scale = shift = 0`; without the activation `y = z`. Per image and channel the whole
//! affine map is one multiply-add `z = x a[c] + b[c]`, so forward reads `x` twice and writes `y` once; backward reads
//! `x` and `dy` once for the sums, then `x` and `dz` once. Stock candle needs 55 operations for the pair.
//!
//! On a GPU `x`, the modulation and their gradients have one number format; weight, bias and statistics are f32 in any case.
//!
//! Statistics are sums in f32 of differences from the first pixel (a plain sum of squares would cancel where the
//! mean is large against the spread), combined in f64.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub mod fused;
#[cfg(feature = "cuda")]
mod fusion;
#[cfg(feature = "cuda")]
mod plan;
pub mod reference;

use candle_core::{Device, Tensor};

use crate::buffer::{ParamGrads, cpu_slice, cpu_tensor};
use crate::error::{KernelError, Result};
use crate::ops::check;

const OP: &str = "group_norm";

/// The fixed part of a group normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// What [`forward`] found and [`backward`] needs: `[N, 2, G]`, mean then reciprocal standard deviation.
#[derive(Clone, Debug)]
pub struct Statistics(Tensor);

/// The sizes of an image batch: images, pixels per image, channels.
#[derive(Clone, Copy)]
struct Shape {
    pixels: usize,
    channels: usize,
    groups: usize,
}

impl GroupNorm {
    fn shape(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, modulation: Option<&Tensor>) -> Result<Shape> {
        check::not_empty(OP, "x", x)?;
        let dims = x.dims();
        let (n, channels) = (dims.first().copied().unwrap_or(0), dims.last().copied().unwrap_or(0));
        if dims.len() < 3 || self.groups == 0 || channels % self.groups != 0 {
            let expected = vec![n, 0, 0, channels.next_multiple_of(self.groups.max(1))];
            return Err(KernelError::Shape { op: OP, tensor: "x", found: dims.to_vec(), expected });
        }
        check::shape(OP, "weight", weight, &[channels])?;
        check::shape(OP, "bias", bias, &[channels])?;
        if let Some(modulation) = modulation {
            check::shape(OP, "modulation", modulation, &[n, 2 * channels])?;
        }
        Ok(Shape { pixels: dims[1..dims.len() - 1].iter().product(), channels, groups: self.groups })
    }
}

/// Normalises `x` `[N, ..., C]`. `modulation` `[N, 2C]` holds the scale, then the shift.
///
/// # Errors
/// Shapes that do not fit, tensors that are not contiguous f32, or a device without this operation.
pub fn forward(
    norm: &GroupNorm,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    modulation: Option<&Tensor>,
) -> Result<(Tensor, Statistics)> {
    let shape = norm.shape(x, weight, bias, modulation)?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let affine = cuda::Affine { weight, bias, modulation };
            let source = cuda::Source { x, parts: None };
            let (y, statistics) = cuda::forward(norm, shape, source, affine, fused::Fused::default())?;
            Ok((y, Statistics(statistics)))
        }
        Device::Cpu => {
            let modulation = modulation.map(|m| cpu_slice(OP, m)).transpose()?;
            let (weight, bias) = (cpu_slice(OP, weight)?, cpu_slice(OP, bias)?);
            let affine = cpu::Affine { weight: &weight, bias: &bias, modulation: modulation.as_deref() };
            let (y, statistics) = cpu::forward(norm, shape, &cpu_slice(OP, x)?, affine);
            let statistics = cpu_tensor(statistics, (x.dim(0)?, 2, norm.groups))?;
            Ok((cpu_tensor(y, x.dims())?, Statistics(statistics)))
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The gradients with respect to the inputs.
#[derive(Debug)]
pub struct InputGrads {
    /// `[N, ..., C]`.
    pub dx: Tensor,
    /// `[N, 2C]`, where there was a modulation.
    pub modulation: Option<Tensor>,
}

/// The gradients of [`forward`]. `extra` is a gradient of `x` from elsewhere (the skip connection around the block);
/// it is added to `dx` while that is written.
///
/// # Errors
/// As [`forward`].
#[allow(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn backward(
    norm: &GroupNorm,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    modulation: Option<&Tensor>,
    statistics: &Statistics,
    dy: &Tensor,
    extra: Option<&Tensor>,
    grads: &ParamGrads<'_>,
) -> Result<InputGrads> {
    let shape = norm.shape(x, weight, bias, modulation)?;
    check::shape(OP, "dy", dy, x.dims())?;
    check::shape(OP, "statistics", &statistics.0, &[x.dim(0)?, 2, norm.groups])?;
    if let Some(extra) = extra {
        check::shape(OP, "extra", extra, x.dims())?;
    }
    grads.check(OP, shape.channels, shape.channels)?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let operands = cuda::BackwardInputs { x, dy, statistics: &statistics.0, extra: [extra, None] };
            let affine = cuda::Affine { weight, bias, modulation };
            let (fused, wanted) = (fused::Fused::default(), fused::Wanted::default());
            let found = cuda::backward(norm, shape, operands, affine, fused, &wanted, grads)?;
            Ok(InputGrads { dx: found.dx, modulation: found.modulation })
        }
        Device::Cpu => {
            let modulation_slice = modulation.map(|m| cpu_slice(OP, m)).transpose()?;
            let extra = extra.map(|e| cpu_slice(OP, e)).transpose()?;
            let (weight, bias) = (cpu_slice(OP, weight)?, cpu_slice(OP, bias)?);
            let affine = cpu::Affine { weight: &weight, bias: &bias, modulation: modulation_slice.as_deref() };
            let operands = cpu::BackwardInputs {
                x: &cpu_slice(OP, x)?,
                dy: &cpu_slice(OP, dy)?,
                statistics: &cpu_slice(OP, &statistics.0)?,
                extra: extra.as_deref(),
            };
            let (dx, dmodulation) =
                grads.with_mut(|dw, db| cpu::backward(norm, shape, operands, affine, dw, db, grads.write))?;
            let modulation = modulation.map(|m| cpu_tensor(dmodulation, m.dims())).transpose()?;
            Ok(InputGrads { dx: cpu_tensor(dx, x.dims())?, modulation })
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}
