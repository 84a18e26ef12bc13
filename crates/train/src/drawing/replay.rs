//! Passes without gradients on a GPU, the same work over and over with other numbers: it runs as it is once, which finds the
//! fastest algorithms for its shapes, and is recorded the second time. From then on a pass is one upload and one replay.

use std::sync::Arc;

use candle_core::{DType, Device};
use ddpm_kernels::cuda::switches::Family;
use ddpm_kernels::cuda::{Gpu, Numbers, Recording};
use ddpm_model::ModelError;
use ddpm_model::unet::UNet;

use crate::error::Error;

/// Work that is to be replayed.
#[derive(Debug)]
pub(crate) struct Replay {
    gpu: Arc<Gpu>,
    recording: Option<Recording>,
    /// Whether it ran, so that it can be recorded.
    warm: bool,
}

impl Replay {
    /// Of work on `gpu`.
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Self {
        Self { gpu: gpu.clone(), recording: None, warm: false }
    }

    /// Queues `work`, which must be the same each time: same shapes, same memory.
    ///
    /// # Errors
    /// The work's own, or a GPU without room for a recording.
    pub(crate) fn run(&mut self, work: impl FnOnce() -> Result<(), ModelError>) -> Result<(), Error> {
        if let Some(recording) = &mut self.recording {
            return Ok(recording.replay()?);
        }
        if !self.warm || !self.gpu.uses(Family::Graph) {
            work()?;
            self.warm = true;
            return Ok(());
        }
        self.gpu.make_room_to_record()?;
        let mut recording = self.gpu.record(work)?;
        recording.replay()?;
        self.recording = Some(recording);
        Ok(())
    }
}

/// How many of `num` at once, at most `most`, so that all batches are nearly alike: a recording is of one size, so the last
/// batch computes one more, of which nobody asks, rather than to find algorithms for another size.
pub(crate) fn evenly(num: usize, most: usize) -> usize {
    num.div_ceil(num.div_ceil(most.max(1)).max(1))
}

/// Labels in the format in which the network takes them.
#[derive(Debug)]
pub(crate) enum Labels {
    /// Rows of an embedding.
    Rows(Vec<u32>),
    /// Embedded as timesteps are.
    AsNumbers(Vec<f32>),
}

impl Labels {
    /// `labels` in `dtype`, the network's.
    pub(crate) fn new(labels: Vec<u32>, dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::AsNumbers(labels.into_iter().map(|label| label as f32).collect()),
            _ => Self::Rows(labels),
        }
    }

    /// To upload them.
    pub(crate) fn numbers(&self) -> Numbers<'_> {
        match self {
            Self::Rows(labels) => Numbers::U32(labels),
            Self::AsNumbers(labels) => Numbers::F32(labels),
        }
    }
}

/// The format in which `unet` takes `labels`, every one of which is looked at: what is uploaded later is not looked at again.
///
/// # Errors
/// A label that the network does not know.
pub(crate) fn labels_dtype(unet: &UNet, labels: &[u32]) -> Result<Option<DType>, Error> {
    let condition = unet.condition(&vec![0.0; labels.len()], Some(labels), &Device::Cpu)?;
    Ok(condition.labels.map(|labels| labels.dtype()))
}
