//! The bodies for a GPU: one launch each, over tensors of any of our number formats.

use candle_core::Tensor;

use crate::cuda::{Gpu, empty, operand};
use crate::error::Result;

pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    let gpu = Gpu::of(a.device())?;
    let dtype = a.dtype();
    let y = empty(&gpu, dtype, a.dims())?;
    gpu.float_kernel(OP, dtype)?
        .arg(operand(&gpu, OP, a, dtype)?)
        .arg(operand(&gpu, OP, b, dtype)?)
        .arg(operand(&gpu, OP, &y, dtype)?)
        .arg(a.elem_count())
        .over(a.elem_count())?;
    Ok(y)
}
