//! Sums over the rows of matrices (`cuda/column_sum.cu`): gradients of biases and of offsets per channel.

use candle_core::DType;

use super::{Address, Gpu};
use crate::error::Result;
use crate::gemm::Write;

/// Threads of a block.
const THREADS: usize = 512;
/// Bytes a thread loads at once.
const PACK: usize = 16;
/// A thread adds at least so many rows before the work is shared with another block.
const ROWS: usize = 4;

/// How many neighbours a thread takes at once where rows of `columns` numbers of `dtype` begin at these addresses: as many
/// as one load fetches, or one.
pub(crate) fn pack_width(columns: usize, dtype: DType, addresses: &[Address]) -> usize {
    let width = PACK / dtype.size_in_bytes();
    let aligned = addresses.iter().all(|address| address.0 % PACK as u64 == 0);
    if aligned && columns.is_multiple_of(width) { width } else { 1 }
}

/// How a launch is split: blocks of threads over slices of the columns and parts of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    /// Elements a thread takes at once.
    width: usize,
    /// Threads side by side.
    across: usize,
    /// Slices of `across * width` columns.
    slices: usize,
    /// Rows of a part.
    part: usize,
    /// Parts of the rows.
    parts: usize,
}

impl Split {
    fn new(matrices: usize, rows: usize, columns: usize, width: usize, multiprocessors: usize) -> Self {
        let across = columns.div_ceil(width).next_power_of_two().min(32);
        let slices = columns.div_ceil(across * width);
        let down = THREADS / across;
        let most = (multiprocessors / (slices * matrices)).max(1);
        let part = rows.div_ceil(rows.div_ceil(down * ROWS).clamp(1, most));
        Self { width, across, slices, part, parts: rows.div_ceil(part) }
    }
}

/// `out[c] (+)= sum over rows of x[row, c]`, `x` `[rows, columns]` of `dtype`, `out` in f32: the gradient of a bias. One
/// launch, the same bits every time.
pub(crate) fn column_sum(
    gpu: &Gpu,
    dtype: DType,
    x: Address,
    (rows, columns): (usize, usize),
    out: Address,
    write: Write,
) -> Result<()> {
    launch(gpu, "column_sum", dtype, x, (1, rows, columns), out, write)
}

/// `out[n, c] = sum over rows of x[n, row, c]`, both of `dtype`, `x` `[matrices, rows, columns]`.
pub(crate) fn pixel_sum(gpu: &Gpu, dtype: DType, x: Address, sizes: (usize, usize, usize), out: Address) -> Result<()> {
    launch(gpu, "pixel_sum", dtype, x, sizes, out, Write::Assign)
}

fn launch(
    gpu: &Gpu,
    name: &'static str,
    dtype: DType,
    x: Address,
    (matrices, rows, columns): (usize, usize, usize),
    out: Address,
    write: Write,
) -> Result<()> {
    let width = pack_width(columns, dtype, &[x]);
    let split = Split::new(matrices, rows, columns, width, gpu.multiprocessors() as usize);
    let scratch = THREADS / 32 * split.across * width * size_of::<f32>();
    let shared_out = split.parts > 1;
    let partials = if shared_out { matrices * split.parts * columns * size_of::<f32>() } else { 0 };
    gpu.float_kernel(name, dtype)?
        .arg(x)
        .arg(out)
        .arg(if shared_out { gpu.workspace(partials)? } else { Address::NONE })
        .arg(if shared_out { gpu.counters(matrices * split.slices)? } else { Address::NONE })
        .arg(rows)
        .arg(columns)
        .arg(split.part)
        .arg(split.across as u32)
        .arg(width as u32)
        .arg(u32::from(write == Write::Add))
        .shared(scratch)
        .blocks((split.slices as u32, split.parts as u32, matrices as u32), THREADS as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_belongs_to_one_block() {
        for (matrices, rows, columns) in [(1, 131_072, 128), (1, 16, 512), (128, 1024, 128), (3, 7, 17), (1, 1, 1)] {
            for width in [1, 8] {
                let split = Split::new(matrices, rows, columns, width, 132);
                assert!(split.part * split.parts >= rows && split.part * (split.parts - 1) < rows, "{split:?}");
                let slice = split.across * width;
                assert!(slice * split.slices >= columns && slice * (split.slices - 1) < columns, "{split:?}");
            }
        }
    }

    #[test]
    fn a_long_matrix_fills_the_gpu_and_a_short_one_is_not_split() {
        assert_eq!(Split::new(1, 131_072, 128, 8, 132).parts, 132);
        assert_eq!(Split::new(1, 16, 512, 8, 132).parts, 1);
    }
}
