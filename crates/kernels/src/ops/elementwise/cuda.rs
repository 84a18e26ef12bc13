//! The bodies for a GPU: one launch each, over tensors of any of our number formats.

use candle_core::{DType, Tensor};

use crate::cuda::{Address, Gpu, empty, operand, pack_width, pixel_sum};
use crate::error::{KernelError, Result};
use crate::gemm::Write;

/// Elements that a thread takes at once, in functions of one element.
fn packs(x: &Tensor) -> usize {
    x.elem_count().div_ceil(16 / x.dtype().size_in_bytes())
}

/// A result like `inputs`, from a kernel that takes them, the result, the number of elements and perhaps a factor.
pub(in crate::ops) fn map(
    op: &'static str,
    inputs: &[&Tensor],
    parameter: Option<crate::cuda::Value>,
) -> Result<Tensor> {
    let Some(x) = inputs.first() else {
        return Err(KernelError::Layout { op, dtype: DType::F32, shape: Vec::new() });
    };
    let gpu = Gpu::of(x.device())?;
    let y = empty(&gpu, x.dtype(), x.dims())?;
    let mut launch = gpu.float_kernel(op, x.dtype())?;
    for input in inputs {
        launch = launch.arg(operand(&gpu, op, input, x.dtype())?);
    }
    launch = launch.arg(operand(&gpu, op, &y, x.dtype())?).arg(x.elem_count());
    if let Some(parameter) = parameter {
        launch = launch.arg(parameter);
    }
    launch.over(packs(x))?;
    Ok(y)
}

pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    map("add", &[a, b], None)
}

pub(super) fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    map("scale", &[x], Some(factor.into()))
}

pub(super) fn silu(x: &Tensor) -> Result<Tensor> {
    map("silu", &[x], None)
}

pub(super) fn silu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    map("silu_backward", &[x, dy], None)
}

/// A format's name in those of kernels.
fn format(op: &'static str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        _ => Err(KernelError::Layout { op, dtype, shape: Vec::new() }),
    }
}

pub(super) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    const OP: &str = "cast";
    let gpu = Gpu::of(x.device())?;
    let y = empty(&gpu, dtype, x.dims())?;
    gpu.kernel(&format!("convert_{}_{}", format(OP, x.dtype())?, format(OP, dtype)?))?
        .arg(operand(&gpu, OP, x, x.dtype())?)
        .arg(operand(&gpu, OP, &y, dtype)?)
        .arg(x.elem_count())
        .over(x.elem_count().div_ceil(4))?;
    Ok(y)
}

pub(super) fn add_channels(x: &Tensor, offset: &Tensor) -> Result<Tensor> {
    const OP: &str = "add_channels";
    let gpu = Gpu::of(x.device())?;
    let (n, c) = offset.dims2()?;
    let dtype = x.dtype();
    let y = empty(&gpu, dtype, x.dims())?;
    let operands = [operand(&gpu, OP, x, dtype)?, operand(&gpu, OP, offset, dtype)?, operand(&gpu, OP, &y, dtype)?];
    let width = pack_width(c, dtype, &operands);
    let packs = x.elem_count() / n / width;
    let [x, offset, y_at] = operands;
    gpu.float_kernel(OP, dtype)?
        .arg(x)
        .arg(offset)
        .arg(y_at)
        .arg(packs)
        .arg((c / width) as u32)
        .arg(width as u32)
        .over_each(n, packs)?;
    Ok(y)
}

pub(super) fn add_channels_backward(dy: &Tensor) -> Result<Tensor> {
    const OP: &str = "add_channels";
    let gpu = Gpu::of(dy.device())?;
    let (n, h, w, c) = dy.dims4()?;
    let sums = empty(&gpu, dy.dtype(), (n, c))?;
    let (x, out) = (operand(&gpu, OP, dy, dy.dtype())?, operand(&gpu, OP, &sums, dy.dtype())?);
    pixel_sum(&gpu, dy.dtype(), x, (n, h * w, c), out)?;
    Ok(sums)
}

/// Copies between rows of `a + b` channels at `y` and their parts.
fn concatenate(
    op: &'static str,
    gpu: &Gpu,
    dtype: DType,
    [a, b, y]: [Address; 3],
    (rows, channels_a, channels_b): (usize, usize, usize),
) -> Result<()> {
    let width = pack_width(channels_a, dtype, &[a, b, y]).min(pack_width(channels_b, dtype, &[]));
    let packs = rows * (channels_a + channels_b) / width;
    gpu.float_kernel(op, dtype)?
        .arg(a)
        .arg(b)
        .arg(y)
        .arg(packs)
        .arg((channels_a / width) as u32)
        .arg((channels_b / width) as u32)
        .arg(width as u32)
        .over(packs)
}

pub(super) fn concat(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "concat";
    let gpu = Gpu::of(a.device())?;
    let ((n, h, w, ca), cb, dtype) = (a.dims4()?, b.dim(3)?, a.dtype());
    let y = empty(&gpu, dtype, (n, h, w, ca + cb))?;
    let places = [operand(&gpu, OP, a, dtype)?, operand(&gpu, OP, b, dtype)?, operand(&gpu, OP, &y, dtype)?];
    concatenate(OP, &gpu, dtype, places, (n * h * w, ca, cb))?;
    Ok(y)
}

pub(super) fn concat_backward(dy: &Tensor, channels: usize) -> Result<(Tensor, Tensor)> {
    const OP: &str = "concat_backward";
    let gpu = Gpu::of(dy.device())?;
    let ((n, h, w, c), dtype) = (dy.dims4()?, dy.dtype());
    let (a, b) = (empty(&gpu, dtype, (n, h, w, channels))?, empty(&gpu, dtype, (n, h, w, c - channels))?);
    let places = [operand(&gpu, OP, &a, dtype)?, operand(&gpu, OP, &b, dtype)?, operand(&gpu, OP, dy, dtype)?];
    concatenate(OP, &gpu, dtype, places, (n * h * w, channels, c - channels))?;
    Ok((a, b))
}

pub(super) fn embedding(table: &Tensor, indices: &Tensor, dtype: DType) -> Result<Tensor> {
    const OP: &str = "embedding";
    let gpu = Gpu::of(table.device())?;
    let ((rows, c), n) = (table.dims2()?, indices.elem_count());
    let y = empty(&gpu, dtype, (n, c))?;
    gpu.kernel(&format!("embedding_{}_{}", format(OP, table.dtype())?, format(OP, dtype)?))?
        .arg(operand(&gpu, OP, table, table.dtype())?)
        .arg(operand(&gpu, OP, indices, DType::U32)?)
        .arg(operand(&gpu, OP, &y, dtype)?)
        .arg(n * c)
        .arg(rows as u32)
        .arg(c as u32)
        .over(n * c)?;
    Ok(y)
}

/// Writes the gradient of the whole table, `[R, C]` in f32.
pub(super) fn embedding_backward(dy: &Tensor, indices: &Tensor, dtable: &Tensor, write: Write) -> Result<()> {
    const OP: &str = "embedding_backward";
    const THREADS: usize = 256;
    let gpu = Gpu::of(dy.device())?;
    let ((rows, c), n) = (dtable.dims2()?, indices.elem_count());
    let threads = c.next_multiple_of(32).min(THREADS);
    gpu.float_kernel(OP, dy.dtype())?
        .arg(operand(&gpu, OP, dy, dy.dtype())?)
        .arg(operand(&gpu, OP, indices, DType::U32)?)
        .arg(operand(&gpu, OP, dtable, DType::F32)?)
        .arg(n as u32)
        .arg(c as u32)
        .arg(u32::from(write == Write::Add))
        .blocks((rows as u32, c.div_ceil(threads) as u32, 1), threads as u32)
}
