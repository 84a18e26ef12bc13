//! Probabilities and the gradients of scores in one launch each; otherwise the library's product would write the scores and a
//! softmax read them again: see `cuda/attention_rows.cu`.

use candle_core::DType;

use super::super::Shape;
use super::{length, may_keep_scores};
use crate::cuda::{Address, Gpu, Launch};
use crate::error::Result;

/// Rows of a block, and its threads.
const TILE: usize = 64;
const THREADS: u32 = 256;
/// Tokens at most: a row stays in registers.
const MOST: usize = 256;
/// Elements from a row to the next in shared memory, and pieces of the channels there.
const STRIDE: usize = 64 + 8;
const STAGES: usize = 2;
/// Whether the kernels can do this, and are switched on; reads and writes of 16 bytes must be `aligned`.
pub(super) fn fits(gpu: &Gpu, s: Shape, dtype: DType, aligned: &[Address]) -> bool {
    may_keep_scores(gpu, s, dtype)
        && s.tokens <= MOST
        && s.tokens.is_multiple_of(8)
        && aligned.iter().all(|at| at.alignment() >= 16)
        && shared(s, dtype) <= gpu.shared_memory()
}

fn shared(s: Shape, dtype: DType) -> usize {
    STAGES * (TILE + s.tokens.next_multiple_of(32)) * STRIDE * dtype.size_in_bytes()
}

fn sizes(launch: Launch<'_>, s: Shape) -> Result<Launch<'_>> {
    Ok(launch.arg(length(s.tokens)?).arg(length(s.heads)?).arg(length(s.head_dim())?))
}

fn queue(launch: Launch<'_>, s: Shape, dtype: DType) -> Result<()> {
    let grid = (length(s.tokens.div_ceil(TILE))?, length(s.heads)?, length(s.n)?);
    launch.shared(shared(s, dtype)).blocks(grid, THREADS)
}

/// `p = softmax(q k^T / sqrt(d))`, `[N, heads, L, L]`.
pub(super) fn probabilities(gpu: &Gpu, s: Shape, dtype: DType, qkv: Address, p: Address) -> Result<()> {
    let launch = gpu.float_kernel("attention_rows_probabilities", dtype)?.arg(qkv).arg(p);
    queue(sizes(launch, s)?.arg(s.scale()), s, dtype)
}

/// `ds = p (dp - sum p dp)` with `dp = d_out v^T`: the gradients of the scores as they enter the softmax.
pub(super) fn score_gradients(
    gpu: &Gpu,
    s: Shape,
    dtype: DType,
    [qkv, d_out, p]: [Address; 3],
    ds: Address,
) -> Result<()> {
    let launch = gpu.float_kernel("attention_rows_gradients", dtype)?.arg(qkv).arg(d_out).arg(p).arg(ds);
    queue(sizes(launch, s)?, s, dtype)
}
