//! The twin of [`super::forward`] in plain candle operations, differentiable by candle's autograd, in any dtype.

use candle_core::{Result, Tensor};

/// See [`super::forward`].
///
/// # Errors
/// Candle's own.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let inputs = dims[dims.len() - 1];
    let y = x.reshape((x.elem_count() / inputs, inputs))?.matmul(&weight.t()?.contiguous()?)?.broadcast_add(bias)?;
    if let Some(last) = dims.last_mut() {
        *last = weight.dim(0)?;
    }
    let y = y.reshape(dims)?;
    match residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}
