//! Two-dimensional convolution, channels last.
//!
//! `y[n, oy, ox, o] = bias[o] + residual[n, oy, ox, o]
//!                  + sum over ky, kx, i of weight[o, ky, kx, i] x[n, oy s + ky - p, ox s + kx - p, i]`
//!
//! with `x` `[N, H, W, I]`, `weight` `[O, kH, kW, I]`, `y` `[N, H', W', O]`; the residual is a block's skip
//! connection, added while the output is written instead of in a pass of its own.
//!
//! On the CPU, 3x3 convolutions with stride 1 run as Winograd F(4x4, 3x3) (`winograd`: 4 times fewer
//! multiplications, at the price of about one decimal digit), everything else as im2col over row tiles that stay in
//! cache (`im2col`). [`Algorithm::Exact`] forces the latter, for tests and comparisons.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod few;
mod im2col;
pub mod reference;
mod tiles;
mod transforms;
mod winograd;

use candle_core::{Device, Tensor};

use crate::buffer::{ParamGrads, cpu_slice, cpu_tensor};
use crate::error::{KernelError, Result};
use crate::ops::{check, column_sum};

const OP: &str = "conv2d";

/// Which arithmetic a convolution may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// The fastest for the shape.
    #[default]
    Fastest,
    /// Plain sums of products, without a transform's rounding.
    Exact,
}

/// Kernel size, stride and zero padding, the same along both axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros above and left.
    pub pad_before: usize,
    /// Zeros below and right.
    pub pad_after: usize,
    /// The arithmetic.
    pub algorithm: Algorithm,
}

impl Conv2d {
    /// A convolution of odd `kernel` that keeps the image's size.
    pub fn same(kernel: usize) -> Self {
        let pad = kernel / 2;
        Self { kernel, stride: 1, pad_before: pad, pad_after: pad, algorithm: Algorithm::Fastest }
    }

    /// A 3x3 convolution of stride 2. Padding 1 pads all sides, padding 0 the right and the bottom only, as
    /// diffusers' `Downsample2D` does.
    pub fn downsample(padding: usize) -> Self {
        Self { kernel: 3, stride: 2, pad_before: padding, pad_after: 1, algorithm: Algorithm::Fastest }
    }

    fn geometry(&self, x: &Tensor, weight: &Tensor) -> Result<Geometry> {
        let [n, h, w, ci] = check::dims(OP, "x", x)?;
        let co = weight.dims().first().map_or(1, |&co| co.max(1));
        check::shape(OP, "weight", weight, &[co, self.kernel, self.kernel, ci])?;
        let padded = h.min(w) + self.pad_before + self.pad_after;
        if padded < self.kernel {
            let expected = vec![n, self.kernel, self.kernel, ci];
            return Err(KernelError::Shape { op: OP, tensor: "x", found: x.dims().to_vec(), expected });
        }
        Ok(Geometry { n, h, w, ci, co, conv: *self })
    }
}

/// A convolution together with the sizes of its operands.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    n: usize,
    h: usize,
    w: usize,
    ci: usize,
    co: usize,
    conv: Conv2d,
}

impl Geometry {
    fn out(&self, side: usize) -> usize {
        (side + self.conv.pad_before + self.conv.pad_after - self.conv.kernel) / self.conv.stride + 1
    }

    fn oh(&self) -> usize {
        self.out(self.h)
    }

    fn ow(&self) -> usize {
        self.out(self.w)
    }

    /// Elements of one kernel: the rows of the im2col matrix.
    fn patch(&self) -> usize {
        self.conv.kernel * self.conv.kernel * self.ci
    }

    fn uses_winograd(&self) -> bool {
        self.conv.algorithm == Algorithm::Fastest && winograd::fits(self)
    }
}

/// Convolves `x` `[N, H, W, I]`; see the module for the formula.
///
/// # Errors
/// Shapes that do not fit, tensors that are not contiguous f32, or a device without this operation.
pub fn forward(conv: &Conv2d, x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let g = conv.geometry(x, weight)?;
    let out_shape = [g.n, g.oh(), g.ow(), g.co];
    check::shape(OP, "bias", bias, &[g.co])?;
    if let Some(residual) = residual {
        check::shape(OP, "residual", residual, &out_shape)?;
    }
    match x.device() {
        Device::Cpu => {
            let residual = residual.map(|r| cpu_slice(OP, r)).transpose()?;
            let add = Epilogue { bias: &cpu_slice(OP, bias)?, residual: residual.as_deref() };
            let (x, weight) = (cpu_slice(OP, x)?, cpu_slice(OP, weight)?);
            let y = if g.uses_winograd() {
                winograd::forward(&g, &x, &weight, add)
            } else {
                im2col::forward(&g, &x, &weight, add)
            };
            cpu_tensor(y, &out_shape)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::forward(&g, x, weight, bias, residual),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The gradients of [`forward`], given `dy` `[N, H', W', O]`: writes those of weight and bias, returns that of `x`
/// if `need_dx`. The residual's gradient is `dy` itself.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    conv: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    need_dx: bool,
    grads: &ParamGrads<'_>,
) -> Result<Option<Tensor>> {
    let g = conv.geometry(x, weight)?;
    check::shape(OP, "dy", dy, &[g.n, g.oh(), g.ow(), g.co])?;
    grads.check(OP, weight.elem_count(), g.co)?;
    match x.device() {
        Device::Cpu => {
            let shape = x.dims().to_vec();
            let (x, weight, dy) = (cpu_slice(OP, x)?, cpu_slice(OP, weight)?, cpu_slice(OP, dy)?);
            let dx = grads.with_mut(|dw, db| {
                column_sum(&dy, db, grads.write);
                if g.uses_winograd() {
                    winograd::backward(&g, &x, &weight, &dy, need_dx, dw, grads.write)
                } else {
                    im2col::backward(&g, &x, &weight, &dy, need_dx, dw, grads.write)
                }
            })?;
            dx.map(|dx| cpu_tensor(dx, shape)).transpose()
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::backward(&g, x, weight, dy, need_dx, grads),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// What is added while the output is written.
#[derive(Clone, Copy)]
struct Epilogue<'a> {
    /// `[O]`.
    bias: &'a [f32],
    /// `[N, H', W', O]`.
    residual: Option<&'a [f32]>,
}
