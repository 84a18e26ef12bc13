//! The twin of [`super::forward`] in plain candle operations, differentiable by candle's autograd, in any dtype.

use candle_core::{D, Result, Tensor};

/// See [`super::forward`].
///
/// # Errors
/// Candle's own.
pub fn forward(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, tokens, triple) = qkv.dims3()?;
    let (c, d) = (triple / 3, triple / 3 / heads);
    let part = |i: usize| qkv.narrow(2, i * c, c)?.reshape((n, tokens, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (d as f64).sqrt())?;
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((n, tokens, c))
}
