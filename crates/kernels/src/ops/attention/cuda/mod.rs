//! The bodies for a GPU: [`flash`] for heads of up to 128 channels in bf16 and f16, [`products`] for all others.

mod flash;
mod products;
mod rows;

use candle_core::{DType, Tensor};

use super::{Kept, OP, Shape};
use crate::cuda::Gpu;
use crate::cuda::switches::Family;
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

/// Images, or heads, of a launch.
const MOST: usize = 65_535;

/// Whether scores may stay in registers: the kernels for it read 16 bytes at a time, of numbers that tensor cores multiply.
fn may_keep_scores(gpu: &Gpu, s: Shape, dtype: DType) -> bool {
    let numbers = matches!(dtype, DType::BF16 | DType::F16) && s.head_dim().is_multiple_of(8);
    numbers && s.n <= MOST && s.heads <= MOST && gpu.uses(Family::Flash)
}

/// A size as the kernels take it.
fn length(size: usize) -> Result<u32> {
    let refused =
        |_| KernelError::Shape { op: OP, tensor: "qkv", found: vec![size], expected: vec![u32::MAX as usize] };
    u32::try_from(size).map_err(refused)
}
