//! The kernels that keep scores in registers: see `cuda/attention_flash.cu`. Three launches a training step, and one number
//! per row is kept instead of the probabilities.

use candle_core::{DType, Tensor};

use super::super::{Kept, OP, Shape};
use super::{length, may_keep_scores};
use crate::cuda::{Gpu, Launch, empty, operand};
use crate::error::Result;
use crate::ops::elementwise;

/// Tokens of a tile, and threads of a block.
const TILE: usize = 64;
const THREADS: u32 = 128;
/// Channels of a head that kernels exist for; narrower heads are padded.
const WIDTHS: [usize; 3] = [32, 64, 128];
/// Tiles in shared memory: two stages of two, and the kernel over keys has its own two besides.
const TILES: usize = 4;
const KEYS_TILES: usize = 6;

/// The kernels, for each of [`WIDTHS`].
const FORWARD: [&str; 3] = ["attention_flash_forward_32", "attention_flash_forward_64", "attention_flash_forward_128"];
const QUERIES: [&str; 3] = ["attention_flash_queries_32", "attention_flash_queries_64", "attention_flash_queries_128"];
const KEYS: [&str; 3] = ["attention_flash_keys_32", "attention_flash_keys_64", "attention_flash_keys_128"];

/// Whether the kernels can do this, and are switched on.
pub(super) fn fits(s: Shape, qkv: &Tensor) -> Result<bool> {
    let gpu = Gpu::of(qkv.device())?;
    if width(s.head_dim()).is_none() || !may_keep_scores(&gpu, s, qkv.dtype()) {
        return Ok(false);
    }
    let room = KEYS_TILES * tile_bytes(s, qkv.dtype()) <= gpu.shared_memory();
    Ok(room && operand(&gpu, OP, qkv, qkv.dtype())?.alignment() >= 16)
}

/// Shared memory of a tile of a head, padded as the kernels lay it out.
fn tile_bytes(s: Shape, dtype: DType) -> usize {
    let at = width(s.head_dim()).unwrap_or(WIDTHS.len() - 1);
    TILE * (WIDTHS[at] + 8) * dtype.size_in_bytes()
}

/// Which of [`WIDTHS`] a head gets.
fn width(d: usize) -> Option<usize> {
    WIDTHS.iter().position(|&width| d <= width)
}

/// One of the kernels, ready for its arguments, with room for so many tiles.
fn kernel<'g>(gpu: &'g Gpu, s: Shape, names: [&'static str; 3], dtype: DType, tiles: usize) -> Result<Launch<'g>> {
    let at = width(s.head_dim()).unwrap_or(WIDTHS.len() - 1);
    Ok(gpu.float_kernel(names[at], dtype)?.shared(tiles * tile_bytes(s, dtype)))
}

/// Adds the last arguments of every kernel, and launches it.
fn queue(launch: Launch<'_>, s: Shape) -> Result<()> {
    let grid = (length(s.tokens.div_ceil(TILE))?, length(s.heads)?, length(s.n)?);
    launch.arg(length(s.tokens)?).arg(length(s.heads)?).arg(length(s.head_dim())?).arg(s.scale()).blocks(grid, THREADS)
}

pub(super) fn forward(s: Shape, qkv: &Tensor) -> Result<(Tensor, Kept)> {
    let gpu = Gpu::of(qkv.device())?;
    let dtype = qkv.dtype();
    let out = empty(&gpu, dtype, (s.n, s.tokens, s.channels))?;
    let log_sums = empty(&gpu, DType::F32, (s.n, s.heads, s.tokens))?;
    let launch = kernel(&gpu, s, FORWARD, dtype, TILES)?
        .arg(operand(&gpu, OP, qkv, dtype)?)
        .arg(operand(&gpu, OP, &out, dtype)?)
        .arg(operand(&gpu, OP, &log_sums, DType::F32)?);
    queue(launch, s)?;
    Ok((out.clone(), Kept::LogSums { out, log_sums }))
}

pub(super) fn backward(s: Shape, qkv: &Tensor, out: &Tensor, log_sums: &Tensor, d_out: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(qkv.device())?;
    let dtype = qkv.dtype();
    let dqkv = empty(&gpu, dtype, qkv.dims())?;
    let losses = empty(&gpu, DType::F32, log_sums.dims())?;
    // A view of a larger tensor may begin anywhere, but reads of 16 bytes must be aligned.
    // (candle's own copy keeps the place in the storage.)
    let aligned =
        if operand(&gpu, OP, d_out, dtype)?.alignment() < 16 { &elementwise::scale(d_out, 1.0)? } else { d_out };
    let (at, d_out) = (operand(&gpu, OP, qkv, dtype)?, operand(&gpu, OP, aligned, dtype)?);
    let log_sums = operand(&gpu, OP, log_sums, DType::F32)?;
    let (losses, d_at) = (operand(&gpu, OP, &losses, DType::F32)?, operand(&gpu, OP, &dqkv, dtype)?);
    let launch = kernel(&gpu, s, QUERIES, dtype, TILES)?
        .arg(at)
        .arg(operand(&gpu, OP, out, dtype)?)
        .arg(d_out)
        .arg(log_sums)
        .arg(losses)
        .arg(d_at);
    queue(launch, s)?;
    let launch = kernel(&gpu, s, KEYS, dtype, KEYS_TILES)?.arg(at).arg(d_out).arg(log_sums).arg(losses).arg(d_at);
    queue(launch, s)?;
    Ok(dqkv)
}
