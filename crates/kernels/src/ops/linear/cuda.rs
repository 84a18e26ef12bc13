//! The body for a GPU: three products by cuBLASLt, the bias added and its gradient summed on the way.

use candle_core::{DType, Tensor};

use super::{OP, Shape};
use crate::buffer::ParamGrads;
use crate::cuda::dnn::Operands;
use crate::cuda::matmul::{self, Epilogue, Matrix, Product};
use crate::cuda::{Address, Gpu, column_sum, empty, optional};
use crate::error::Result;
use crate::gemm::Write;

pub(super) fn forward(
    shape: Shape,
    dims: Vec<usize>,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let dtype = x.dtype();
    let y = empty(&gpu, dtype, dims)?;
    let operands = Operands::forward(&gpu, OP, (x, &y), (weight, bias), residual)?;
    forward_at(&gpu, shape, dtype, &operands)?;
    Ok(y)
}

pub(super) fn backward(
    shape: Shape,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    need_dx: bool,
    grads: &ParamGrads<'_>,
) -> Result<Option<Tensor>> {
    let gpu = Gpu::of(x.device())?;
    let dtype = x.dtype();
    let dx = need_dx.then(|| empty(&gpu, dtype, x.dims())).transpose()?;
    let operands = Operands::backward(&gpu, OP, x, weight, dy)?;
    let dx_at = optional(&gpu, OP, dx.as_ref(), dtype)?;
    backward_at(&gpu, shape, dtype, &operands, dx_at, grads.addresses(&gpu)?, grads.write)?;
    Ok(dx)
}

/// `y = x weight^T + bias + residual`, wherever they lie.
pub(in crate::ops) fn forward_at(gpu: &Gpu, shape: Shape, dtype: DType, operands: &Operands) -> Result<()> {
    let Shape { rows, inputs, outputs } = shape;
    let product = Product {
        rows,
        columns: outputs,
        inner: inputs,
        batch: 1,
        a: Matrix::rows(inputs),
        b: Matrix::transposed(inputs),
        y: Matrix::rows(outputs),
        dtype,
        y_dtype: dtype,
        epilogue: Epilogue::Bias,
    };
    let has_residual = operands.residual != Address::NONE;
    let places = matmul::Operands {
        a: operands.x,
        b: operands.weight,
        c: has_residual.then_some(operands.residual),
        y: operands.y,
        vector: operands.bias,
        alpha: 1.0,
    };
    if gpu.try_matmul(&product, &places)? {
        return Ok(());
    }
    let product = Product { epilogue: Epilogue::None, ..product };
    gpu.matmul(&product, &matmul::Operands { c: None, vector: Address::NONE, ..places })?;
    operands.add_bias_and_residual(gpu, dtype, outputs, rows * outputs)
}

/// The gradients; `operands.y` is dy, `dx` may be none.
pub(in crate::ops) fn backward_at(
    gpu: &Gpu,
    shape: Shape,
    dtype: DType,
    operands: &Operands,
    dx: Address,
    (dw, db): (Address, Address),
    write: Write,
) -> Result<()> {
    let Shape { rows, inputs, outputs } = shape;
    if dx != Address::NONE {
        let product = Product {
            rows,
            columns: inputs,
            inner: outputs,
            batch: 1,
            a: Matrix::rows(outputs),
            b: Matrix::rows(inputs),
            y: Matrix::rows(inputs),
            dtype,
            y_dtype: dtype,
            epilogue: Epilogue::None,
        };
        let (a, b) = (operands.y, operands.weight);
        gpu.matmul(&product, &matmul::Operands { a, b, c: None, y: dx, vector: Address::NONE, alpha: 1.0 })?;
    }
    let product = Product {
        rows: outputs,
        columns: inputs,
        inner: rows,
        batch: 1,
        a: Matrix::transposed(outputs),
        b: Matrix::rows(inputs),
        y: Matrix::rows(inputs),
        dtype,
        y_dtype: DType::F32,
        epilogue: Epilogue::RowSums,
    };
    let c = (write == Write::Add).then_some(dw);
    let places = matmul::Operands { a: operands.y, b: operands.x, c, y: dw, vector: db, alpha: 1.0 };
    // The epilogue overwrites: where there is something to add to, the bias' gradient is a launch of its own.
    if write == Write::Assign && gpu.try_matmul(&product, &places)? {
        return Ok(());
    }
    let product = Product { epilogue: Epilogue::None, ..product };
    gpu.matmul(&product, &matmul::Operands { vector: Address::NONE, ..places })?;
    column_sum(gpu, dtype, operands.y, (rows, outputs), db, write)
}
