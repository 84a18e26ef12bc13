//! The twin of [`super::forward`] in plain candle operations, differentiable by candle's autograd, in any dtype.

use candle_core::{Result, Tensor};

use super::GroupNorm;

/// See [`super::forward`].
///
/// # Errors
/// Candle's own.
pub fn forward(
    norm: &GroupNorm,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    modulation: Option<&Tensor>,
) -> Result<Tensor> {
    let dims = x.dims().to_vec();
    let (n, c) = (dims[0], dims[dims.len() - 1]);
    let pixels = dims[1..dims.len() - 1].iter().product::<usize>();
    let grouped = x.reshape((n, pixels, norm.groups, c / norm.groups))?;
    let mean = grouped.mean_keepdim(3)?.mean_keepdim(1)?;
    let centred = grouped.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(3)?.mean_keepdim(1)?;
    let x_hat = centred.broadcast_div(&(variance + norm.eps)?.sqrt()?)?.reshape((n, pixels, c))?;
    let mut z = x_hat.broadcast_mul(weight)?.broadcast_add(bias)?;
    if let Some(modulation) = modulation {
        let (scale, shift) = (modulation.narrow(1, 0, c)?, modulation.narrow(1, c, c)?);
        z = z.broadcast_mul(&(scale + 1.0)?.unsqueeze(1)?)?.broadcast_add(&shift.unsqueeze(1)?)?;
    }
    if norm.silu {
        z = (&z / (z.neg()?.exp()? + 1.0)?)?;
    }
    z.reshape(dims)
}
