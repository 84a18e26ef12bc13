//! Where an operation writes the gradients of its parameters.

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::DType;

use super::FlatBuffer;
#[cfg(feature = "cuda")]
use super::{DeferredSums, NarrowGradients};
#[cfg(feature = "cuda")]
use crate::cuda::{Address, Gpu};
use crate::error::{KernelError, Result};
use crate::gemm::Write;

/// Where an operation writes the gradient of its weight and bias: two places in the flat gradient buffer.
#[derive(Clone, Debug)]
pub struct ParamGrads<'a> {
    /// The flat gradient buffer.
    pub buffer: &'a FlatBuffer,
    /// The weight's elements.
    pub weight: Range<usize>,
    /// The bias's elements; they come after the weight's.
    pub bias: Range<usize>,
    /// Overwrite (the first micro-batch of a step) or add (the others).
    pub write: Write,
    /// Whether the bias' gradient has been written already: `ops::group_norm::fused` does it for the layer before it.
    pub bias_summed: bool,
    /// Where a weight's gradient of 16 bits may wait until all are [settled](NarrowGradients::settle).
    #[cfg(feature = "cuda")]
    pub narrow: Option<&'a NarrowGradients>,
    /// Where sums may wait until all are [taken](DeferredSums::settle).
    #[cfg(feature = "cuda")]
    pub sums: Option<&'a DeferredSums>,
}

impl<'a> ParamGrads<'a> {
    /// Both written straight into the buffer.
    pub fn new(buffer: &'a FlatBuffer, weight: Range<usize>, bias: Range<usize>, write: Write) -> Self {
        Self {
            buffer,
            weight,
            bias,
            write,
            bias_summed: false,
            #[cfg(feature = "cuda")]
            narrow: None,
            #[cfg(feature = "cuda")]
            sums: None,
        }
    }

    /// The same, with the bias' gradient written already or not; only operations on a GPU leave it out.
    #[must_use]
    pub fn with_bias_summed(self, bias_summed: bool) -> Self {
        Self { bias_summed, ..self }
    }

    /// Refuses places that do not have the parameters' sizes, or lie outside the buffer.
    pub(crate) fn check(&self, op: &'static str, weight: usize, bias: usize) -> Result<()> {
        let refuse = |tensor, found: usize, expected: usize| {
            Err(KernelError::Shape { op, tensor, found: vec![found], expected: vec![expected] })
        };
        if self.weight.len() != weight {
            return refuse("gradient of weight", self.weight.len(), weight);
        }
        if self.bias.len() != bias {
            return refuse("gradient of bias", self.bias.len(), bias);
        }
        let needed = self.bias.end.max(self.weight.end + bias);
        if self.buffer.len() < needed || self.weight.end > self.bias.start {
            return refuse("gradient buffer", self.buffer.len(), needed);
        }
        Ok(())
    }

    /// Where both gradients begin on `gpu`.
    #[cfg(feature = "cuda")]
    pub(crate) fn addresses(&self, gpu: &Gpu) -> Result<(Address, Address)> {
        Ok((self.address(gpu, self.weight.start)?, self.address(gpu, self.bias.start)?))
    }

    /// Where this element of the flat gradient buffer lies on `gpu`.
    #[cfg(feature = "cuda")]
    pub(crate) fn address(&self, gpu: &Gpu, element: usize) -> Result<Address> {
        Ok(self.buffer.address(gpu)?.offset(element, DType::F32))
    }

    /// Lends both gradients to `f` for writing (CPU only).
    pub fn with_mut<R>(&self, f: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> Result<R> {
        self.buffer.with_mut(|all| {
            let (head, tail) = all.split_at_mut(self.bias.start);
            f(&mut head[self.weight.clone()], &mut tail[..self.bias.len()])
        })
    }
}
