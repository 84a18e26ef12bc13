//! `y = x weight^T + bias (+ residual)` over the last axis: `x` `[..., I]`, `weight` `[O, I]`, `y` `[..., O]`.
//!
//! One product, split over the rows; the bias (and a block's skip connection) is written first and the product
//! added to it.

mod cpu;
#[cfg(feature = "cuda")]
pub(in crate::ops) mod cuda;
pub mod reference;

use candle_core::{Device, Tensor};

use crate::buffer::{ParamGrads, cpu_slice, cpu_tensor};
use crate::error::{KernelError, Result};
use crate::ops::{check, column_sum, elementwise};

const OP: &str = "linear";

/// `x` `[rows, inputs]`, `y` `[rows, outputs]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Shape {
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) inputs: usize,
    pub(in crate::ops) outputs: usize,
}

fn shape(x: &Tensor, weight: &Tensor) -> Result<(Shape, Vec<usize>)> {
    let [outputs, inputs] = check::dims(OP, "weight", weight)?;
    check::not_empty(OP, "x", x)?;
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut().filter(|last| **last == inputs) else {
        let expected = vec![0, inputs];
        return Err(KernelError::Shape { op: OP, tensor: "x", found: x.dims().to_vec(), expected });
    };
    *last = outputs;
    Ok((Shape { rows: x.elem_count() / inputs, inputs, outputs }, dims))
}

/// Applies the layer; see the module.
///
/// # Errors
/// Shapes that do not fit, tensors that are not contiguous f32, or a device without this operation.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let (shape, dims) = shape(x, weight)?;
    check::shape(OP, "bias", bias, &[shape.outputs])?;
    if let Some(residual) = residual {
        check::shape(OP, "residual", residual, &dims)?;
    }
    match x.device() {
        Device::Cpu => {
            let residual = residual.map(|r| cpu_slice(OP, r)).transpose()?;
            let (x, weight, bias) = (cpu_slice(OP, x)?, cpu_slice(OP, weight)?, cpu_slice(OP, bias)?);
            cpu_tensor(cpu::forward(shape, &x, &weight, &bias, residual.as_deref()), dims)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::forward(shape, dims, x, weight, bias, residual),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The gradients of [`forward`]: writes those of weight and bias, returns that of `x` if `need_dx`, with `extra`, a gradient of
/// `x` from elsewhere, added to it.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    need_dx: bool,
    extra: Option<&Tensor>,
    grads: &ParamGrads<'_>,
) -> Result<Option<Tensor>> {
    let (shape, dims) = shape(x, weight)?;
    check::shape(OP, "dy", dy, &dims)?;
    if let Some(extra) = extra {
        check::shape(OP, "extra", extra, x.dims())?;
    }
    grads.check(OP, weight.elem_count(), shape.outputs)?;
    match x.device() {
        Device::Cpu => {
            let x_dims = x.dims().to_vec();
            let (x, weight, dy) = (cpu_slice(OP, x)?, cpu_slice(OP, weight)?, cpu_slice(OP, dy)?);
            grads.with_mut(|dw, db| {
                column_sum(&dy, db, grads.write);
                cpu::weight_gradient(shape, &x, &dy, dw, grads.write);
            })?;
            let dx = need_dx.then(|| cpu_tensor(cpu::input_gradient(shape, &weight, &dy), x_dims)).transpose()?;
            match (extra, &dx) {
                (Some(extra), Some(dx)) => elementwise::add(extra, dx).map(Some),
                _ => Ok(dx),
            }
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::backward(shape, x, weight, dy, need_dx.then_some(extra), grads),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}
