//! Doubling and halving an image without weights: every pixel repeated, `[N, H, W, C] -> [N, 2H, 2W, C]`, and the mean
//! of every 2x2 square, `[N, H, W, C] -> [N, H/2, W/2, C]`. The gradient of each is the other, up to a factor of 4.
//!
//! Halving with weights is a strided convolution ([`super::conv2d::Conv2d::downsample`]).

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::buffer::{cpu_slice, cpu_tensor, unwritten};
use crate::check;
use crate::error::{KernelError, Result};
use crate::vectorized;

/// Repeats every pixel of `x` `[N, H, W, C]` twice along both axes.
///
/// # Errors
/// A tensor that is not contiguous f32 `[N, H, W, C]`, or a device without this operation.
pub fn upsample(x: &Tensor) -> Result<Tensor> {
    repeat_pixels("upsample", "x", x, 1.0)
}

/// The gradient of [`upsample`], given `dy` `[N, 2H, 2W, C]`: the sum over each pixel's four copies.
///
/// # Errors
/// As [`upsample`].
pub fn upsample_backward(dy: &Tensor) -> Result<Tensor> {
    sum_squares("upsample", "dy", dy, 1.0)
}

/// The mean of every 2x2 square of `x` `[N, H, W, C]`, whose height and width are even.
///
/// # Errors
/// As [`upsample`], or an odd height or width.
pub fn downsample(x: &Tensor) -> Result<Tensor> {
    sum_squares("downsample", "x", x, 0.25)
}

/// The gradient of [`downsample`], given `dy` `[N, H/2, W/2, C]`: a quarter of it for each pixel of the square.
///
/// # Errors
/// As [`upsample`].
pub fn downsample_backward(dy: &Tensor) -> Result<Tensor> {
    repeat_pixels("downsample", "dy", dy, 0.25)
}

/// `factor` times each pixel, four times.
fn repeat_pixels(op: &'static str, name: &'static str, x: &Tensor, factor: f32) -> Result<Tensor> {
    let [n, h, w, c] = check::dims(op, name, x)?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::repeat_pixels(op, x, [n, h, w, c], factor),
        Device::Cpu => {
            let x = cpu_slice(op, x)?;
            let mut y = unwritten(4 * x.len());
            y.par_chunks_mut(4 * w * c).zip(x.par_chunks(w * c)).for_each(|(rows, x)| {
                let (first, second) = rows.split_at_mut(2 * w * c);
                for (pair, pixel) in first.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)) {
                    for (y, x) in pair[..c].iter_mut().zip(pixel) {
                        *y = factor * x;
                    }
                    pair.copy_within(..c, c);
                }
                second.copy_from_slice(first);
            });
            cpu_tensor(y, (n, 2 * h, 2 * w, c))
        }
        other => Err(KernelError::Device { op, device: other.location() }),
    }
}

/// `factor` times the sum of each 2x2 square.
fn sum_squares(op: &'static str, name: &'static str, x: &Tensor, factor: f32) -> Result<Tensor> {
    let [n, h, w, c] = check::dims(op, name, x)?;
    check::shape(op, name, x, &[n, h.next_multiple_of(2), w.next_multiple_of(2), c])?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::sum_squares(op, x, [n, h, w, c], factor),
        Device::Cpu => {
            let x = cpu_slice(op, x)?;
            let mut y = unwritten(x.len() / 4);
            let row = w * c;
            y.par_chunks_mut(row / 2).zip(x.par_chunks(2 * row)).for_each(|(y, x)| sum_pairs(y, x, c, factor));
            cpu_tensor(y, (n, h / 2, w / 2, c))
        }
        other => Err(KernelError::Device { op, device: other.location() }),
    }
}

vectorized! {
    /// One row of `y` from two rows of `x`.
    fn sum_pairs<I>(y: &mut [f32], x: &[f32], c: usize, factor: f32) {
        let (first, second) = x.split_at(x.len() / 2);
        for ((y, a), b) in y.chunks_exact_mut(c).zip(first.chunks_exact(2 * c)).zip(second.chunks_exact(2 * c)) {
            for i in 0..c {
                y[i] = factor * ((a[i] + a[c + i]) + (b[i] + b[c + i]));
            }
        }
    }
}

/// The twins in plain candle operations, in any dtype.
pub mod reference {
    use candle_core::{Result, Tensor};

    /// See [`super::upsample`]. (Candle's own `upsample_nearest2d` overwrites gradients, so: reshape and broadcast.)
    ///
    /// # Errors
    /// Candle's own.
    pub fn upsample(x: &Tensor) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        x.reshape((n, h, 1, w, 1, c))?.broadcast_as((n, h, 2, w, 2, c))?.contiguous()?.reshape((n, 2 * h, 2 * w, c))
    }

    /// See [`super::downsample`].
    ///
    /// # Errors
    /// Candle's own.
    pub fn downsample(x: &Tensor) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        x.reshape((n, h / 2, 2, w / 2, 2, c))?.mean(4)?.mean(2)
    }
}
