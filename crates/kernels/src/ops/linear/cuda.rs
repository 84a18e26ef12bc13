//! The body for a GPU: three products by cuBLASLt, bias and residual added, a gradient from elsewhere too, and the bias'
//! gradient summed by the same product where that is faster.

use candle_core::{DType, Tensor};

use super::{OP, Shape};
use crate::buffer::ParamGrads;
use crate::cuda::dnn::ConvAddresses;
use crate::cuda::matmul::{self, Epilogue, Matrix, Product};
use crate::cuda::switches::Family;
use crate::cuda::{Address, Gpu, column_sum, empty, optional};
use crate::error::{KernelError, Result};
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
    let operands = ConvAddresses::forward(&gpu, OP, (x, &y), (weight, bias), residual)?;
    forward_at(&gpu, shape, dtype, &operands)?;
    Ok(y)
}

/// `dx`: whether it is wanted, with what is added to it.
pub(super) fn backward(
    shape: Shape,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    dx: Option<Option<&Tensor>>,
    grads: &ParamGrads<'_>,
) -> Result<Option<Tensor>> {
    let gpu = Gpu::of(x.device())?;
    let dtype = x.dtype();
    let extra = optional(&gpu, OP, dx.flatten(), dtype)?;
    let dx = dx.map(|_| empty(&gpu, dtype, x.dims())).transpose()?;
    let operands = ConvAddresses { residual: extra, ..ConvAddresses::backward(&gpu, OP, x, weight, dy)? };
    let dx_at = optional(&gpu, OP, dx.as_ref(), dtype)?;
    backward_at(&gpu, shape, dtype, &operands, dx_at, grads)?;
    Ok(dx)
}

/// `y = x weight^T + bias + residual`, given by addresses.
pub(in crate::ops) fn forward_at(gpu: &Gpu, shape: Shape, dtype: DType, operands: &ConvAddresses) -> Result<()> {
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
    let places = matmul::ProductAddresses {
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
    gpu.matmul(&product, &matmul::ProductAddresses { c: None, vector: Address::NONE, ..places })?;
    operands.add_bias_and_residual(gpu, dtype, outputs, rows * outputs)
}

/// The gradients; `operands.y` is dy, `dx` may be none, `operands.residual` is what is added to it.
pub(in crate::ops) fn backward_at(
    gpu: &Gpu,
    shape: Shape,
    dtype: DType,
    operands: &ConvAddresses,
    dx: Address,
    grads: &ParamGrads<'_>,
) -> Result<()> {
    let Shape { rows, inputs, outputs } = shape;
    let ((dw, db), write) = (grads.addresses(gpu)?, grads.write);
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
        let (a, b, extra) = (operands.y, operands.weight, operands.residual);
        let c = (extra != Address::NONE).then_some(extra);
        gpu.matmul(&product, &matmul::ProductAddresses { a, b, c, y: dx, vector: Address::NONE, alpha: 1.0 })?;
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
        epilogue: Epilogue::None,
    };
    let c = (write == Write::Add).then_some(dw);
    let places = matmul::ProductAddresses { a: operands.y, b: operands.x, c, y: dw, vector: Address::NONE, alpha: 1.0 };
    if grads.bias_summed {
        return gpu.matmul(&product, &places);
    }
    Gradients { gpu, product, places, bias: db, write }.queue_faster()
}

/// The gradients of a weight and a bias.
struct Gradients<'g> {
    gpu: &'g Gpu,
    /// The weight's.
    product: Product,
    places: matmul::ProductAddresses,
    bias: Address,
    write: Write,
}

/// How the bias' gradient is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BiasSum {
    /// In a launch of its own, which reads dy once more.
    Apart,
    /// By the product of the weight's. That costs no launch, but leaves the library fewer algorithms: where few outputs are
    /// sums over very many rows, perhaps none that splits the rows between multiprocessors.
    Together,
}

const CANDIDATES: [BiasSum; 2] = [BiasSum::Apart, BiasSum::Together];

/// The name of the choice between them.
#[derive(Debug)]
struct BiasGradient {
    #[expect(dead_code, reason = "its text is the name")]
    of: matmul::Key,
}

impl Gradients<'_> {
    fn queue_faster(&self) -> Result<()> {
        let Self { gpu, product, places, .. } = self;
        // The epilogue overwrites, so it cannot add to what is there. Where the bits must be the same every time, the clock
        // must not choose: our own sums guarantee that, and the library makes no promise for its epilogue.
        let apart = self.write == Write::Add || gpu.deterministic() || !gpu.uses(Family::BiasEpilogue);
        if !apart {
            let choice = BiasGradient { of: matmul::Key::new(gpu, product, places) };
            let chosen = gpu.choose_fastest(&choice, &CANDIDATES, |candidate| self.queue(*candidate))?;
            if chosen.map(|number| CANDIDATES[number]) == Some(BiasSum::Together) && self.together()? {
                return Ok(());
            }
        }
        self.queue(BiasSum::Apart)
    }

    /// Where both are overwritten this can be repeated.
    fn queue(&self, how: BiasSum) -> Result<()> {
        let Self { gpu, product, places, bias, write } = self;
        match how {
            BiasSum::Together if self.together()? => Ok(()),
            BiasSum::Together => {
                let error = "it has no algorithm with this epilogue".to_owned();
                Err(KernelError::Gpu { what: format!("asking cuBLASLt for {product:?}"), error })
            }
            BiasSum::Apart => {
                gpu.matmul(product, places)?;
                column_sum(gpu, product.dtype, places.a, (product.inner, product.rows), *bias, *write)
            }
        }
    }

    /// Whether the library can do that.
    fn together(&self) -> Result<bool> {
        let product = Product { epilogue: Epilogue::RowSums, ..self.product };
        self.gpu.try_matmul(&product, &matmul::ProductAddresses { vector: self.bias, ..self.places })
    }
}
