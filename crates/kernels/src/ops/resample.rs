//! Nearest-neighbour doubling of an image: `[N, H, W, C] -> [N, 2H, 2W, C]`.
//!
//! Halving is a strided convolution ([`super::conv2d::Conv2d::downsample`]).

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::buffer::{cpu_slice, cpu_tensor, unwritten};
use crate::error::{KernelError, Result};
use crate::ops::check;
use crate::vectorized;

const OP: &str = "upsample";

/// Repeats every pixel of `x` `[N, H, W, C]` twice along both axes.
///
/// # Errors
/// A tensor that is not contiguous f32 `[N, H, W, C]`, or a device without this operation.
pub fn upsample(x: &Tensor) -> Result<Tensor> {
    let [n, h, w, c] = check::dims(OP, "x", x)?;
    match x.device() {
        Device::Cpu => {
            let x = cpu_slice(OP, x)?;
            let mut y = unwritten(4 * x.len());
            y.par_chunks_mut(4 * w * c).zip(x.par_chunks(w * c)).for_each(|(rows, x)| {
                let (first, second) = rows.split_at_mut(2 * w * c);
                for (pair, pixel) in first.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)) {
                    pair[..c].copy_from_slice(pixel);
                    pair[c..].copy_from_slice(pixel);
                }
                second.copy_from_slice(first);
            });
            cpu_tensor(y, (n, 2 * h, 2 * w, c))
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The gradient of [`upsample`], given `dy` `[N, 2H, 2W, C]`: the sum over each pixel's four copies.
///
/// # Errors
/// As [`upsample`].
pub fn upsample_backward(dy: &Tensor) -> Result<Tensor> {
    let [n, h, w, c] = check::dims(OP, "dy", dy)?;
    check::shape(OP, "dy", dy, &[n, h.next_multiple_of(2), w.next_multiple_of(2), c])?;
    match dy.device() {
        Device::Cpu => {
            let dy = cpu_slice(OP, dy)?;
            let mut dx = unwritten(dy.len() / 4);
            let row = w * c;
            dx.par_chunks_mut(row / 2).zip(dy.par_chunks(2 * row)).for_each(|(dx, dy)| sum_pairs(dx, dy, c));
            cpu_tensor(dx, (n, h / 2, w / 2, c))
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

vectorized! {
    /// One row of `dx` from two rows of `dy`.
    fn sum_pairs<I>(dx: &mut [f32], dy: &[f32], c: usize) {
        let (first, second) = dy.split_at(dy.len() / 2);
        for ((dx, a), b) in dx.chunks_exact_mut(c).zip(first.chunks_exact(2 * c)).zip(second.chunks_exact(2 * c)) {
            for i in 0..c {
                dx[i] = (a[i] + a[c + i]) + (b[i] + b[c + i]);
            }
        }
    }
}

/// The twin of [`upsample`] in plain candle operations, in any dtype.
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
}
