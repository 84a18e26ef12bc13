//! Inputs on their way to the network's device.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::Tensor;
use ddpm_kernels::cuda::{Gpu, Upload};
use ddpm_model::ModelError;

/// The inputs that change from run to run: a struct of tensors.
pub(crate) trait Inputs: Sized {
    /// The same struct with the result of `f` for each tensor, always in the same order.
    ///
    /// # Errors
    /// Those of `f`.
    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor, ModelError>) -> Result<Self, ModelError>;
}

/// The destination of one kind of inputs. On a GPU their addresses are valid as long as this lives, and they must not be used
/// longer.
#[derive(Debug)]
pub(crate) struct Slots<I> {
    upload: Option<Upload>,
    of: PhantomData<fn(I) -> I>,
}

impl<I: Inputs> Slots<I> {
    pub(super) fn new(gpu: Option<&Arc<Gpu>>, like: &I) -> Result<Self, ModelError> {
        let shapes: Vec<_> = tensors(like)?.iter().map(|tensor| (tensor.dtype(), tensor.dims().to_vec())).collect();
        let gpu = gpu.filter(|_| !shapes.is_empty());
        Ok(Self { upload: gpu.map(|gpu| Upload::new(gpu, &shapes)).transpose()?, of: PhantomData })
    }

    /// Copies `inputs`, tensors on the host, to the network's device and returns them there. The GPU does not wait, and the
    /// host waits only if it is too far ahead.
    ///
    /// # Errors
    /// On a GPU: the tensors do not fit the slots, or the driver fails.
    pub(crate) fn send(&mut self, inputs: I) -> Result<I, ModelError> {
        let Some(upload) = &mut self.upload else { return Ok(inputs) };
        upload.send(&tensors(&inputs)?.iter().collect::<Vec<_>>())?;
        let mut part = 0..;
        inputs.map(&mut |_| Ok(upload.tensor(part.next().unwrap_or_default()).clone()))
    }
}

/// All tensors of `inputs`.
fn tensors(inputs: &impl Inputs) -> Result<Vec<Tensor>, ModelError> {
    let mut all = Vec::new();
    inputs.map(&mut |tensor| {
        all.push(tensor.clone());
        Ok(tensor.clone())
    })?;
    Ok(all)
}
