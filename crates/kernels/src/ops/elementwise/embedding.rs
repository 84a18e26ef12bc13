//! Row look-up: the embedding of a class.
//!
//! Indices come as a slice, which is checked, or as a tensor, which a captured graph reads again in each replay. On a GPU an
//! index beyond the table cannot be refused then, so it gives a row of NaN, and no gradient.

use candle_core::{DType, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::on_cpu;
use crate::buffer::{FlatBuffer, cpu_slice, cpu_tensor};
use crate::error::{KernelError, Result};
use crate::gemm::Write;
use crate::ops::{add_assign, check};

const OP: &str = "embedding";

/// Refuses an index beyond a table of `rows` rows.
fn in_table(indices: &[u32], rows: usize, c: usize) -> Result<()> {
    match indices.iter().map(|&index| index as usize + 1).max() {
        Some(needed) if needed > rows => {
            Err(KernelError::Shape { op: OP, tensor: "table", found: vec![rows, c], expected: vec![needed, c] })
        }
        _ => Ok(()),
    }
}

/// Rows `indices` of `table` `[R, C]`, as `[N, C]`: an embedding.
///
/// # Errors
/// An index beyond the table, a tensor that is not contiguous f32, or a device without this operation.
pub fn embedding(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
    let [rows, c] = check::dims(OP, "table", table)?;
    in_table(indices, rows, c)?;
    embedding_rows(table, &Tensor::new(indices, table.device())?, table.dtype())
}

/// As [`embedding`], for indices `[N]` (u32) on the table's device, with a result of `dtype`: on the CPU f32.
///
/// # Errors
/// As [`embedding`]; on a GPU an index beyond the table is no error, see the module.
pub fn embedding_rows(table: &Tensor, indices: &Tensor, dtype: DType) -> Result<Tensor> {
    let [rows, c] = check::dims(OP, "table", table)?;
    let [n] = check::dims(OP, "indices", indices)?;
    #[cfg(feature = "cuda")]
    if table.device().is_cuda() {
        return cuda::embedding(table, indices, dtype);
    }
    on_cpu(OP, table)?;
    if dtype != DType::F32 {
        return Err(KernelError::Layout { op: OP, dtype, shape: vec![n, c] });
    }
    let indices = indices.to_vec1::<u32>()?;
    in_table(&indices, rows, c)?;
    let data = cpu_slice(OP, table)?;
    let mut y = Vec::with_capacity(n * c);
    for index in indices {
        y.extend_from_slice(&data[index as usize * c..][..c]);
    }
    cpu_tensor(y, (n, c))
}

/// The gradient of [`embedding`]: adds each row of `dy` `[N, C]` to its row of the table's gradient, which starts at
/// `offset` in `buffer`.
///
/// # Errors
/// As [`embedding`].
pub fn embedding_backward(
    dy: &Tensor,
    indices: &[u32],
    rows: usize,
    buffer: &FlatBuffer,
    offset: usize,
    write: Write,
) -> Result<()> {
    let [_, c] = check::dims(OP, "dy", dy)?;
    in_table(indices, rows, c)?;
    embedding_rows_backward(dy, &Tensor::new(indices, dy.device())?, rows, buffer, offset, write)
}

/// As [`embedding_backward`], for indices `[N]` (u32) on the device of `dy`. The samples that took the same row are added
/// in their order, so that the result is the same bits every time.
///
/// # Errors
/// As [`embedding_rows`].
pub fn embedding_rows_backward(
    dy: &Tensor,
    indices: &Tensor,
    rows: usize,
    buffer: &FlatBuffer,
    offset: usize,
    write: Write,
) -> Result<()> {
    let [_, c] = check::dims(OP, "dy", dy)?;
    if buffer.len() < offset + rows * c {
        let (found, expected) = (vec![buffer.len()], vec![offset + rows * c]);
        return Err(KernelError::Shape { op: OP, tensor: "gradient buffer", found, expected });
    }
    check::shape(OP, "dy", dy, &[indices.elem_count(), c])?;
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return cuda::embedding_backward(dy, indices, &buffer.view(offset, &[rows, c])?, write);
    }
    on_cpu(OP, dy)?;
    let indices = indices.to_vec1::<u32>()?;
    in_table(&indices, rows, c)?;
    let data = cpu_slice(OP, dy)?;
    buffer.with_mut(|all| {
        let table = &mut all[offset..][..rows * c];
        if write == Write::Assign {
            table.fill(0.0);
        }
        for (row, &index) in data.chunks_exact(c).zip(&indices) {
            add_assign(&mut table[index as usize * c..][..c], row);
        }
    })
}
