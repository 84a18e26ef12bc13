//! Tensors of random numbers made on the GPU, the same as [`Philox`] makes on the CPU.
//!
//! Bits are equal; normals are too but for the last digit of a logarithm, a sine or a cosine in f64, which rounding to f32
//! nearly always hides.

use candle_core::{DType, Device, Tensor};

use super::{Address, Gpu, Launch, empty, operand};
use crate::check;
use crate::error::Result;
use crate::philox::Philox;

/// 32 random bits per element of a tensor `[N, ...]`: sample `n`'s are [`Philox::fill_bits`] at `(step, position + n)`.
///
/// # Errors
/// No GPU, or its memory is full.
pub fn bits(philox: &Philox, step: u64, position: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    const OP: &str = "random_bits";
    let gpu = Gpu::of(device)?;
    let y = empty(&gpu, DType::U32, shape)?;
    check::not_empty(OP, "y", &y)?;
    fill(gpu.kernel(OP)?, operand(&gpu, OP, &y, DType::U32)?, philox, (step, position), &y)?;
    Ok(y)
}

/// Standard normals of `dtype` `[N, ...]`: sample `n`'s are [`Philox::fill_normal`] at `(step, position + n)`.
///
/// # Errors
/// No GPU, its memory is full, or `dtype` is none of f32, bf16, f16.
pub fn normals(
    philox: &Philox,
    step: u64,
    position: u64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    const OP: &str = "random_normals";
    let gpu = Gpu::of(device)?;
    let y = empty(&gpu, dtype, shape)?;
    check::not_empty(OP, "y", &y)?;
    fill(gpu.float_kernel(OP, dtype)?, operand(&gpu, OP, &y, dtype)?, philox, (step, position), &y)?;
    Ok(y)
}

/// Queues a kernel of `cuda/random.cu` over all of `y`, which begins at `at`.
fn fill(launch: Launch<'_>, at: Address, philox: &Philox, (step, position): (u64, u64), y: &Tensor) -> Result<()> {
    let samples = y.dim(0)?;
    let length = y.elem_count() / samples;
    let launch = launch.arg(at).arg(samples).arg(length).arg(philox.key()).arg(step).arg(position);
    launch.over(samples * length.div_ceil(4))
}
