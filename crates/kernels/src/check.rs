//! Checks of the operands' shapes that every operation makes first.

use candle_core::Tensor;

use crate::error::{KernelError, Result};

/// Refuses a tensor of another shape than `expected`.
pub(crate) fn shape(op: &'static str, tensor: &'static str, found: &Tensor, expected: &[usize]) -> Result<()> {
    if found.dims() == expected {
        return Ok(());
    }
    Err(KernelError::Shape { op, tensor, found: found.dims().to_vec(), expected: expected.to_vec() })
}

/// Refuses an empty tensor.
pub(crate) fn not_empty(op: &'static str, tensor: &'static str, found: &Tensor) -> Result<()> {
    let expected: Vec<usize> = found.dims().iter().map(|&d| d.max(1)).collect();
    shape(op, tensor, found, &expected)
}

/// The sides of a tensor that must have `RANK` axes, none of them empty.
pub(crate) fn dims<const RANK: usize>(op: &'static str, tensor: &'static str, found: &Tensor) -> Result<[usize; RANK]> {
    not_empty(op, tensor, found)?;
    <[usize; RANK]>::try_from(found.dims()).map_err(|_| KernelError::Shape {
        op,
        tensor,
        found: found.dims().to_vec(),
        expected: vec![0; RANK],
    })
}
