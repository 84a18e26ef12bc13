//! The body for a GPU: one launch, with the same mask as the CPU's, bit for bit.

use candle_core::{DType, Tensor};

use super::{Dropout, OP};
use crate::check;
use crate::cuda::{Gpu, empty, operand, optional, pack_width};
use crate::error::Result;

/// With the step that `step` holds, or the one of `dropout`.
pub(super) fn apply(dropout: &Dropout, step: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
    check::not_empty(OP, "x", x)?;
    let gpu = Gpu::of(x.device())?;
    let (n, dtype) = (x.dim(0)?, x.dtype());
    let y = empty(&gpu, dtype, x.dims())?;
    let (from, to) = (operand(&gpu, OP, x, dtype)?, operand(&gpu, OP, &y, dtype)?);
    let length = x.elem_count() / n;
    let width = pack_width(length, dtype, &[from, to]);
    gpu.float_kernel(OP, dtype)?
        .arg(from)
        .arg(to)
        .arg(length)
        .arg(dropout.philox().key())
        .arg(optional(&gpu, OP, step, DType::U32)?)
        .arg(dropout.step)
        .arg(dropout.first_position)
        .arg(dropout.threshold())
        .arg(dropout.keep())
        .arg(width as u32)
        .over_each(n, length.div_ceil(width.max(4)))?;
    Ok(y)
}
