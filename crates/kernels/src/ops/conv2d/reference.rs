//! The twin of [`super::forward`] in plain candle operations, differentiable by candle's autograd, in any dtype.

use candle_core::{Result, Tensor};

use super::Conv2d;

/// See [`super::forward`].
///
/// # Errors
/// Candle's own.
pub fn forward(conv: &Conv2d, x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let nchw = |t: &Tensor| t.permute((0, 3, 1, 2))?.contiguous();
    let x = nchw(x)?.pad_with_zeros(2, conv.pad_before, conv.pad_after)?.pad_with_zeros(
        3,
        conv.pad_before,
        conv.pad_after,
    )?;
    let y = x.conv2d(&nchw(weight)?, 0, conv.stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let y = y.broadcast_add(bias)?;
    match residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}
