//! The bodies for a GPU: [`flash`] for heads of up to 128 channels in bf16 and f16, [`products`] for all others.

mod flash;
mod products;
mod rows;

use candle_core::Tensor;

use super::{Kept, OP, Shape};
use crate::error::{KernelError, Result};

pub(super) fn forward(s: Shape, qkv: &Tensor) -> Result<(Tensor, Kept)> {
    if flash::fits(s, qkv)? { flash::forward(s, qkv) } else { products::forward(s, qkv) }
}

pub(super) fn backward(s: Shape, qkv: &Tensor, kept: &Kept, d_out: &Tensor) -> Result<Tensor> {
    match kept {
        Kept::Probabilities(probabilities) => products::backward(s, qkv, probabilities, d_out),
        Kept::LogSums { out, log_sums } => flash::backward(s, qkv, out, log_sums, d_out),
    }
}

/// A size as the kernels take it.
fn length(size: usize) -> Result<u32> {
    let refused =
        |_| KernelError::Shape { op: OP, tensor: "qkv", found: vec![size], expected: vec![u32::MAX as usize] };
    u32::try_from(size).map_err(refused)
}
