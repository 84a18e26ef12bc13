//! The twin of [`super::forward`] in plain candle operations, differentiable by candle's autograd, in any dtype.

use candle_core::{Result, Tensor};

use super::Conv2d;

/// See [`super::forward`].
///
/// # Errors
/// Candle's own.
pub fn forward(conv: &Conv2d, x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let nchw = |t: &Tensor| t.permute((0, 3, 1, 2))?.contiguous();
    let mut x = nchw(x)?;
    for axis in [2, 3] {
        x = x.pad_with_zeros(axis, conv.pad_before, conv.pad_after)?;
        // Cut what no output reads: candle's gradient takes the width's rest to be the height's.
        let used = (x.dim(axis)? - conv.kernel) / conv.stride * conv.stride + conv.kernel;
        x = x.narrow(axis, 0, used)?.contiguous()?;
    }
    let y = x.conv2d(&nchw(weight)?, 0, conv.stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let y = y.broadcast_add(bias)?;
    match residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}
