//! The body for a GPU: cuDNN, with our own kernels where it has no engine or a slow one ([`few`](super::few)); 1x1 convolutions
//! are products of matrices.

use candle_core::{DType, Tensor};

use super::few::Few;
use super::{Algorithm, Geometry, OP};
use crate::buffer::ParamGrads;
use crate::cuda::dnn::{ConvAddresses, Pass, Request};
use crate::cuda::{Gpu, Launch, column_sum, empty, operand, optional};
use crate::error::Result;
use crate::gemm::Write;
use crate::ops::linear;

impl Geometry {
    fn request(&self, pass: Pass, dtype: DType) -> Request {
        Request {
            pass,
            x: [self.n, self.h, self.w, self.ci],
            y: [self.n, self.oh(), self.ow(), self.co],
            kernel: self.conv.kernel,
            stride: self.conv.stride,
            pad_before: self.conv.pad_before,
            pad_after: self.conv.pad_after,
            dtype,
        }
    }

    /// A product of matrices: every output pixel is one input pixel times the weight.
    fn is_product(&self) -> bool {
        let conv = &self.conv;
        (conv.kernel, conv.stride, conv.pad_before, conv.pad_after) == (1, 1, 0, 0)
    }

    fn as_linear(&self) -> linear::Shape {
        linear::Shape { rows: self.n * self.h * self.w, inputs: self.ci, outputs: self.co }
    }

    pub(super) fn exact(&self) -> bool {
        self.conv.algorithm == Algorithm::Exact
    }

    /// The sizes as our kernels take them.
    fn pass_to<'g>(&self, launch: Launch<'g>) -> Launch<'g> {
        let conv = &self.conv;
        let sizes = [self.n, self.h, self.w, self.ci, self.oh(), self.ow(), self.co];
        let sizes = sizes.into_iter().chain([conv.kernel, conv.stride, conv.pad_before]);
        sizes.fold(launch, |launch, size| launch.arg(size as u32))
    }
}

pub(super) fn forward(
    g: &Geometry,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let dtype = x.dtype();
    let y = empty(&gpu, dtype, &[g.n, g.oh(), g.ow(), g.co])?;
    let operands = ConvAddresses::forward(&gpu, OP, (x, &y), (weight, bias), residual)?;
    if g.is_product() {
        linear::cuda::forward_at(&gpu, g.as_linear(), dtype, &operands)?;
        return Ok(y);
    }
    if residual.is_none()
        && let Some(few) = Few::of(&gpu, g, dtype, operands.x, operands.y)
    {
        few.forward(&gpu, &operands)?;
        return Ok(y);
    }
    let fused = Pass::Forward { bias: true, residual: residual.is_some() };
    let plain = Pass::Forward { bias: false, residual: false };
    let elements = y.elem_count();
    if !g.exact() && gpu.convolve(&g.request(fused, dtype), &operands)? {
        return Ok(y);
    }
    if !g.exact() && gpu.convolve(&g.request(plain, dtype), &operands)? {
        operands.add_bias_and_residual(&gpu, dtype, g.co, elements)?;
        return Ok(y);
    }
    let launch = gpu.float_kernel("conv2d_direct", dtype)?.arg(operands.x).arg(operands.weight);
    let launch = launch.arg(operands.bias).arg(operands.residual).arg(operands.y);
    g.pass_to(launch).arg(elements).over(elements)?;
    Ok(y)
}

pub(super) fn backward(
    g: &Geometry,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    need_dx: bool,
    grads: &ParamGrads<'_>,
) -> Result<Option<Tensor>> {
    let gpu = Gpu::of(x.device())?;
    let dtype = x.dtype();
    let dx = need_dx.then(|| empty(&gpu, dtype, x.dims())).transpose()?;
    let operands = ConvAddresses::backward(&gpu, OP, x, weight, dy)?;
    let dx_at = optional(&gpu, OP, dx.as_ref(), dtype)?;
    if g.is_product() {
        linear::cuda::backward_at(&gpu, g.as_linear(), dtype, &operands, dx_at, grads)?;
        return Ok(dx);
    }
    if need_dx {
        input_gradient(&gpu, g, dtype, ConvAddresses { x: dx_at, ..operands })?;
    }
    if let Some(few) = Few::of(&gpu, g, dtype, operands.x, operands.y) {
        few.weight_gradient(&gpu, &operands, grads)?;
        return Ok(dx);
    }
    weight_gradient(&gpu, g, dtype, operands, grads)?;
    if !grads.bias_summed {
        let (_, db) = grads.addresses(&gpu)?;
        column_sum(&gpu, dtype, operands.y, (g.n * g.oh() * g.ow(), g.co), db, grads.write)?;
    }
    Ok(dx)
}

fn input_gradient(gpu: &Gpu, g: &Geometry, dtype: DType, operands: ConvAddresses) -> Result<()> {
    if let Some(few) = Few::of(gpu, g, dtype, operands.x, operands.y) {
        return few.input_gradient(gpu, &operands);
    }
    if !g.exact() && gpu.convolve(&g.request(Pass::InputGradient, dtype), &operands)? {
        return Ok(());
    }
    let elements = g.n * g.h * g.w * g.ci;
    let launch = gpu.float_kernel("conv2d_input_gradient", dtype)?.arg(operands.y).arg(operands.weight).arg(operands.x);
    g.pass_to(launch).arg(elements).over(elements)
}

/// Writes straight into the flat buffer where that is possible. cuDNN has no fast engine that reads 16 bits and writes f32: there
/// the gradient waits in the activations' format, to be added with all others of the pass in one launch, or it is written to a
/// tensor of its own first.
fn weight_gradient(
    gpu: &Gpu,
    g: &Geometry,
    dtype: DType,
    operands: ConvAddresses,
    grads: &ParamGrads<'_>,
) -> Result<()> {
    let elements = g.co * g.patch();
    let ((dw, _), write) = (grads.addresses(gpu)?, grads.write);
    let convolve = |weight| -> Result<bool> {
        let operands = ConvAddresses { weight, ..operands };
        gpu.convolve(&g.request(Pass::WeightGradient, dtype), &operands)
    };
    if !g.exact() {
        if dtype == DType::F32 && write == Write::Assign && convolve(dw)? {
            return Ok(());
        }
        if let Some(narrow) = grads.narrow
            && let Some(place) = narrow.place(gpu, dtype, grads)?
            && convolve(place)?
        {
            narrow.expect(grads);
            return Ok(());
        }
        let part = empty(gpu, dtype, elements)?;
        let at = operand(gpu, OP, &part, dtype)?;
        if convolve(at)? {
            let launch = gpu.float_kernel("accumulate", dtype)?.arg(at).arg(dw);
            // A thread takes four.
            return launch.arg(u32::from(write == Write::Add)).arg(elements).over(elements.div_ceil(4));
        }
    }
    let launch = gpu.float_kernel("conv2d_weight_gradient", dtype)?.arg(operands.x).arg(operands.y).arg(dw);
    g.pass_to(launch).arg(u32::from(write == Write::Add)).blocks((elements as u32, 1, 1), 256)
}
