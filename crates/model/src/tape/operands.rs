//! Operands for an operation that is run again and again on its own, as `bench ops` does.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::KernelError;
#[cfg(feature = "cuda")]
use ddpm_kernels::buffer::DeferredSums;
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::elementwise;

/// Different numbers in the operands; they repeat after so many.
const PATTERN: usize = 65_521;

type Result<T> = std::result::Result<T, KernelError>;

/// An operation that can be run again.
pub type Run = Box<dyn Fn() -> Result<()>>;

/// Both passes of an operation.
#[allow(missing_debug_implementations, reason = "closures")]
pub struct Runs {
    /// The forward pass.
    pub forward: Run,
    /// The backward pass, unless there is nothing to do.
    pub backward: Option<Run>,
}

impl Runs {
    pub(super) fn both(
        forward: impl Fn() -> Result<()> + 'static,
        backward: impl Fn() -> Result<()> + 'static,
    ) -> Result<Self> {
        Ok(Self { forward: Box::new(forward), backward: Some(Box::new(backward)) })
    }
}

/// Makes operands.
pub(super) struct Maker<'a> {
    /// The format the network computes in.
    pub(super) dtype: DType,
    pub(super) device: &'a Device,
}

impl Maker<'_> {
    /// Numbers between -1 and 1, in the format that the network computes in.
    pub(super) fn numbers(&self, shape: &[usize]) -> Result<Tensor> {
        elementwise::cast(&self.f32(shape)?, self.dtype)
    }

    /// The same, if there are to be any.
    pub(super) fn numbers_if(&self, there: bool, shape: &[usize]) -> Result<Option<Tensor>> {
        there.then(|| self.numbers(shape)).transpose()
    }

    pub(super) fn f32(&self, shape: &[usize]) -> Result<Tensor> {
        let number = |k: usize| ((k % PATTERN) as f32 * 0.618_034).fract() * 2.0 - 1.0;
        let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        Ok(Tensor::from_vec(numbers, shape, self.device)?)
    }

    /// Room for the gradients of a layer with so many numbers in weight and bias.
    pub(super) fn gradients(&self, params: [usize; 2]) -> Result<OwnGrads> {
        Ok(OwnGrads {
            buffer: FlatBuffer::zeros(params[0] + params[1], self.device)?,
            params,
            #[cfg(feature = "cuda")]
            sums: DeferredSums::default(),
        })
    }
}

/// Gradients of one layer.
pub(super) struct OwnGrads {
    pub(super) buffer: FlatBuffer,
    params: [usize; 2],
    #[cfg(feature = "cuda")]
    pub(super) sums: DeferredSums,
}

impl OwnGrads {
    pub(super) fn places(&self) -> ParamGrads<'_> {
        let [weight, bias] = self.params;
        ParamGrads::new(&self.buffer, 0..weight, weight..weight + bias, Write::Assign)
    }
}
