//! Results on their way back to the host.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Tensor;
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::{Download, Gpu};

/// The results that work writes for the host: some f64 tensors at fixed addresses.
#[derive(Debug)]
pub(crate) struct Results {
    tensors: Vec<Tensor>,
    back: Back,
}

#[derive(Debug)]
enum Back {
    /// Results that were read at once, oldest first.
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

    /// Requests the results of the last run.
    ///
    /// # Errors
    /// The GPU fails.
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

    /// Number of runs whose results were requested and not yet read.
    pub(crate) fn pending(&self) -> usize {
        match &self.back {
            Back::Now(read) => read.len(),
            Back::Later(download) => download.pending(),
        }
    }

    /// The oldest requested results that were not read yet, by tensor; waits for them.
    ///
    /// # Errors
    /// The GPU fails; the cause may be work that was queued before.
    pub(crate) fn read(&mut self) -> Result<Option<Vec<Vec<f64>>>, KernelError> {
        match &mut self.back {
            Back::Now(read) => Ok(read.pop_front()),
            Back::Later(download) => {
                Ok(download.read()?.map(|numbers| numbers.into_iter().map(<[f64]>::to_vec).collect()))
            }
        }
    }
}
