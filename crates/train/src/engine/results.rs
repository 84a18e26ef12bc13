//! Numbers on their way back to the host.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Tensor;
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::{Download, Gpu};

/// What work writes and somebody wants to know: some tensors, f64, that keep their places.
#[derive(Debug)]
pub(crate) struct Results {
    tensors: Vec<Tensor>,
    back: Back,
}

#[derive(Debug)]
enum Back {
    /// Read at once, oldest first.
    Now(VecDeque<Vec<Vec<f64>>>),
    Later(Download),
}

impl Results {
    pub(super) fn new(gpu: Option<&Arc<Gpu>>, tensors: Vec<Tensor>) -> Result<Self, KernelError> {
        let back = match gpu {
            None => Back::Now(VecDeque::new()),
            Some(gpu) => Back::Later(Download::new(gpu, &tensors.iter().map(Tensor::elem_count).collect::<Vec<_>>())?),
        };
        Ok(Self { tensors, back })
    }

    /// The tensor of this number, for the work to write.
    pub(crate) fn tensor(&self, number: usize) -> &Tensor {
        &self.tensors[number]
    }

    /// Asks for the results of the run before.
    ///
    /// # Errors
    /// A GPU that fails.
    pub(crate) fn ask(&mut self) -> Result<(), KernelError> {
        match &mut self.back {
            Back::Now(read) => {
                let numbers = self.tensors.iter().map(|tensor| Ok(tensor.flatten_all()?.to_vec1()?));
                read.push_back(numbers.collect::<Result<_, KernelError>>()?);
                Ok(())
            }
            Back::Later(download) => download.ask(&self.tensors.iter().collect::<Vec<_>>()),
        }
    }

    /// Runs whose results were asked for and not yet read.
    pub(crate) fn pending(&self) -> usize {
        match &self.back {
            Back::Now(read) => read.len(),
            Back::Later(download) => download.pending(),
        }
    }

    /// The oldest results that were asked for and not yet read, by tensor; waits for them.
    ///
    /// # Errors
    /// The GPU fails: what was queued before may have failed too.
    pub(crate) fn read(&mut self) -> Result<Option<Vec<Vec<f64>>>, KernelError> {
        match &mut self.back {
            Back::Now(read) => Ok(read.pop_front()),
            Back::Later(download) => {
                Ok(download.read()?.map(|numbers| numbers.into_iter().map(<[f64]>::to_vec).collect()))
            }
        }
    }
}
