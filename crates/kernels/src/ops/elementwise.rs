//! Small operations that move or add numbers: sums, multiples, casts, channel offsets, concatenation, SiLU, row look-up.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod embedding;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

pub use self::embedding::{embedding, embedding_backward, embedding_rows, embedding_rows_backward};
use super::{CHUNK, add_rows, check};
use crate::buffer::{cpu_slice, cpu_tensor, unwritten};
use crate::error::{KernelError, Result};
use crate::simd::sigmoid;
use crate::vectorized;

fn on_cpu(op: &'static str, x: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu => Ok(()),
        other => Err(KernelError::Device { op, device: other.location() }),
    }
}

/// `a + b`, same shape.
///
/// # Errors
/// Shapes that differ, tensors that are not contiguous f32, or a device without this operation.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check::shape("add", "b", b, a.dims())?;
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::add(a, b);
    }
    on_cpu("add", a)?;
    let (left, right) = (cpu_slice("add", a)?, cpu_slice("add", b)?);
    let mut y = unwritten(left.len());
    y.par_chunks_mut(CHUNK).zip(left.par_chunks(CHUNK)).zip(right.par_chunks(CHUNK)).for_each(|((y, a), b)| {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a + b;
        }
    });
    cpu_tensor(y, a.dims())
}

/// `factor x`; the gradient is the same of `dy`.
///
/// # Errors
/// A tensor that is not contiguous f32, or a device without this operation.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::scale(x, factor);
    }
    on_cpu("scale", x)?;
    let mut y = cpu_slice("scale", x)?.to_vec();
    y.par_chunks_mut(CHUNK).for_each(|y| y.iter_mut().for_each(|v| *v *= factor));
    cpu_tensor(y, x.dims())
}

/// `x` rounded to `dtype`, to the nearest number and of two such to the even one; between f32, bf16 and f16.
///
/// # Errors
/// On a GPU, a tensor that is not contiguous, or another dtype.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::cast(x, dtype);
    }
    Ok(x.to_dtype(dtype)?)
}

/// `x[n, h, w, c] + offset[n, c]`: `x` `[N, H, W, C]`, `offset` `[N, C]`.
///
/// # Errors
/// As [`add`].
pub fn add_channels(x: &Tensor, offset: &Tensor) -> Result<Tensor> {
    const OP: &str = "add_channels";
    let [n, h, w, c] = check::dims(OP, "x", x)?;
    check::shape(OP, "offset", offset, &[n, c])?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::add_channels(x, offset);
    }
    on_cpu(OP, x)?;
    let (data, offset) = (cpu_slice(OP, x)?, cpu_slice(OP, offset)?);
    let mut y = data.to_vec();
    y.par_chunks_mut(h * w * c).zip(offset.par_chunks(c)).for_each(|(y, offset)| {
        for pixel in y.chunks_exact_mut(c) {
            for (y, o) in pixel.iter_mut().zip(offset) {
                *y += o;
            }
        }
    });
    cpu_tensor(y, x.dims())
}

/// The gradient of [`add_channels`] with respect to `offset`: `dy` `[N, H, W, C]` summed over the pixels.
///
/// # Errors
/// As [`add`].
pub fn add_channels_backward(dy: &Tensor) -> Result<Tensor> {
    const OP: &str = "add_channels";
    let [n, h, w, c] = check::dims(OP, "dy", dy)?;
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return cuda::add_channels_backward(dy);
    }
    on_cpu(OP, dy)?;
    let data = cpu_slice(OP, dy)?;
    let mut sums = vec![0.0; n * c];
    sums.par_chunks_mut(c).zip(data.par_chunks(h * w * c)).for_each(|(sum, image)| add_rows(sum, image));
    cpu_tensor(sums, (n, c))
}

/// Joins `a` `[N, H, W, A]` and `b` `[N, H, W, B]` along the channels.
///
/// # Errors
/// As [`add`].
pub fn concat(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "concat";
    let [n, h, w, ca] = check::dims(OP, "a", a)?;
    let cb = b.dims().last().map_or(1, |&c| c.max(1));
    check::shape(OP, "b", b, &[n, h, w, cb])?;
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return cuda::concat(a, b);
    }
    on_cpu(OP, a)?;
    let (left, right) = (cpu_slice(OP, a)?, cpu_slice(OP, b)?);
    let mut y = unwritten(left.len() + right.len());
    y.par_chunks_mut(w * (ca + cb)).zip(left.par_chunks(w * ca)).zip(right.par_chunks(w * cb)).for_each(
        |((y, a), b)| {
            for ((y, a), b) in y.chunks_exact_mut(ca + cb).zip(a.chunks_exact(ca)).zip(b.chunks_exact(cb)) {
                y[..ca].copy_from_slice(a);
                y[ca..].copy_from_slice(b);
            }
        },
    );
    cpu_tensor(y, (n, h, w, ca + cb))
}

/// The gradients of [`concat()`]: `dy` split after `channels`.
///
/// # Errors
/// As [`add`], or a part without channels.
pub fn concat_backward(dy: &Tensor, channels: usize) -> Result<(Tensor, Tensor)> {
    const OP: &str = "concat";
    let [n, h, w, c] = check::dims(OP, "dy", dy)?;
    if channels == 0 || channels >= c {
        let expected = vec![n, h, w, channels + 1];
        return Err(KernelError::Shape { op: OP, tensor: "dy", found: dy.dims().to_vec(), expected });
    }
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return cuda::concat_backward(dy, channels);
    }
    on_cpu(OP, dy)?;
    let rest = c - channels;
    let data = cpu_slice(OP, dy)?;
    let (mut a, mut b) = (unwritten(n * h * w * channels), unwritten(n * h * w * rest));
    a.par_chunks_mut(w * channels).zip(b.par_chunks_mut(w * rest)).zip(data.par_chunks(w * c)).for_each(
        |((a, b), dy)| {
            for ((a, b), dy) in a.chunks_exact_mut(channels).zip(b.chunks_exact_mut(rest)).zip(dy.chunks_exact(c)) {
                a.copy_from_slice(&dy[..channels]);
                b.copy_from_slice(&dy[channels..]);
            }
        },
    );
    Ok((cpu_tensor(a, (n, h, w, channels))?, cpu_tensor(b, (n, h, w, rest))?))
}

/// `x * sigmoid(x)`, for the time embedding; in residual blocks it is part of the group normalisation.
///
/// # Errors
/// A tensor that is not contiguous f32, or a device without this operation.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::silu(x);
    }
    on_cpu("silu", x)?;
    let mut y = cpu_slice("silu", x)?.to_vec();
    y.par_chunks_mut(CHUNK).for_each(silu_in_place);
    cpu_tensor(y, x.dims())
}

/// The gradient of [`silu`] at `x`.
///
/// # Errors
/// As [`silu`].
pub fn silu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    check::shape("silu", "dy", dy, x.dims())?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::silu_backward(x, dy);
    }
    on_cpu("silu", x)?;
    let data = cpu_slice("silu", x)?;
    let mut dx = cpu_slice("silu", dy)?.to_vec();
    dx.par_chunks_mut(CHUNK).zip(data.par_chunks(CHUNK)).for_each(|(dx, x)| silu_gradient_in_place(dx, x));
    cpu_tensor(dx, x.dims())
}

vectorized! {
    fn silu_in_place<I>(x: &mut [f32]) {
        for v in x {
            *v *= sigmoid::<I>(*v);
        }
    }
}

vectorized! {
    fn silu_gradient_in_place<I>(dx: &mut [f32], x: &[f32]) {
        for (dx, x) in dx.iter_mut().zip(x) {
            let s = sigmoid::<I>(*x);
            *dx *= s * I::mul_add(*x, 1.0 - s, 1.0);
        }
    }
}

/// Twins in plain candle operations, differentiable by candle's autograd, in any dtype.
pub mod reference {
    use candle_core::{Result, Tensor};

    /// See [`super::add_channels`].
    ///
    /// # Errors
    /// Candle's own.
    pub fn add_channels(x: &Tensor, offset: &Tensor) -> Result<Tensor> {
        x.broadcast_add(&offset.unsqueeze(1)?.unsqueeze(1)?)
    }

    /// See [`super::silu`].
    ///
    /// # Errors
    /// Candle's own.
    pub fn silu(x: &Tensor) -> Result<Tensor> {
        x / (x.neg()?.exp()? + 1.0)?
    }

    /// See [`super::embedding`].
    ///
    /// # Errors
    /// Candle's own.
    pub fn embedding(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
        table.index_select(&Tensor::new(indices, table.device())?, 0)
    }
}
