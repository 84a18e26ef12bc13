//! The bodies for a GPU: one launch each, which reads its input once.

use candle_core::Tensor;

use crate::cuda::{Gpu, empty, operand, pack_width};
use crate::error::Result;

pub(super) fn repeat_pixels(op: &'static str, x: &Tensor, [n, h, w, c]: [usize; 4], factor: f32) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let y = empty(&gpu, x.dtype(), (n, 2 * h, 2 * w, c))?;
    launch(&gpu, (op, "repeat_pixels"), x, &y, (n * h * w, w, c), factor)?;
    Ok(y)
}

pub(super) fn sum_squares(op: &'static str, x: &Tensor, [n, h, w, c]: [usize; 4], factor: f32) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let (h, w) = (h / 2, w / 2);
    let y = empty(&gpu, x.dtype(), (n, h, w, c))?;
    launch(&gpu, (op, "sum_squares"), x, &y, (n * h * w, w, c), factor)?;
    Ok(y)
}

/// `pixels` and `columns` are those of the smaller image.
fn launch(
    gpu: &Gpu,
    (op, kernel): (&'static str, &'static str),
    x: &Tensor,
    y: &Tensor,
    (pixels, columns, c): (usize, usize, usize),
    factor: f32,
) -> Result<()> {
    let dtype = x.dtype();
    let (x, y) = (operand(gpu, op, x, dtype)?, operand(gpu, op, y, dtype)?);
    let width = pack_width(c, dtype, &[x, y]);
    let packs = pixels * c / width;
    gpu.float_kernel(kernel, dtype)?
        .arg(x)
        .arg(y)
        .arg(packs)
        .arg(columns as u32)
        .arg((c / width) as u32)
        .arg(factor)
        .arg(width as u32)
        .over(packs)
}
