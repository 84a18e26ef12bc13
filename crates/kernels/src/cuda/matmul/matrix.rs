//! A matrix in memory, and its description for cuBLASLt.

use std::ffi::c_void;

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};

use super::super::refused;
use crate::error::{KernelError, Result};

/// One factor, or the result: how its rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Matrix {
    /// Elements from a row to the next one in memory.
    pub(crate) stride: usize,
    /// Elements from one product of a batch to the next.
    pub(crate) batch_stride: usize,
    /// Whether memory holds the transposed matrix.
    pub(crate) transposed: bool,
}

impl Matrix {
    /// One matrix with rows of `columns`.
    pub(crate) fn rows(columns: usize) -> Self {
        Self { stride: columns, batch_stride: 0, transposed: false }
    }

    /// The transposed of a matrix whose rows in memory have `stride` elements.
    pub(crate) fn transposed(stride: usize) -> Self {
        Self { stride, batch_stride: 0, transposed: true }
    }

    /// The same for a batch.
    pub(crate) fn batched(self, batch_stride: usize) -> Self {
        Self { batch_stride, ..self }
    }
}

/// The layout of a row-major matrix `[rows, columns]`, as the library sees what is in memory.
pub(super) fn layout(
    matrix: &Matrix,
    rows: usize,
    columns: usize,
    dtype: DType,
    batch: usize,
) -> Result<sys::cublasLtMatrixLayout_t> {
    let fail = || refused("describing a matrix to cuBLASLt");
    let (rows, columns) = if matrix.transposed { (columns, rows) } else { (rows, columns) };
    let layout = result::create_matrix_layout(data_type(dtype)?, columns as u64, rows as u64, matrix.stride as i64)
        .map_err(fail())?;
    if batch > 1 {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let (count, stride) = (batch as i32, matrix.batch_stride as i64);
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the value lives until the call returns; the library copies it.
            unsafe { result::set_matrix_layout_attribute(layout, attribute, value, size) }.map_err(fail())
        };
        set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, std::ptr::from_ref(&count).cast(), size_of::<i32>())?;
        let offset = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
        set(offset, std::ptr::from_ref(&stride).cast(), size_of::<i64>())?;
    }
    Ok(layout)
}

/// The library's name of a number format.
pub(super) fn data_type(dtype: DType) -> Result<sys::cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType_t::CUDA_R_16F),
        _ => Err(KernelError::Layout { op: "a product", dtype, shape: Vec::new() }),
    }
}
