//! Work on a GPU: the first run is queued operation by operation, which finds the fastest algorithms for its shapes; the second
//! is recorded, and later ones are replayed.

use std::sync::Arc;

use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::{Gpu, Recording};
use ddpm_model::ModelError;

use super::Clock;

/// See the module.
#[derive(Debug)]
pub(super) struct Recorded {
    gpu: Arc<Gpu>,
    recording: Option<Recording>,
    /// Runs until the next one can be recorded.
    unrecorded: u64,
    /// Whether the phases of the next run are to be timed.
    timed: bool,
}

impl Recorded {
    pub(super) fn new(gpu: Arc<Gpu>) -> Self {
        Self { gpu, recording: None, unrecorded: 1, timed: false }
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(super) fn will_replay(&self) -> bool {
        !self.timed && self.gpu.records() && (self.recording.is_some() || self.unrecorded == 0)
    }

    /// The clock of a run that is queued operation by operation.
    pub(super) fn clock(&mut self) -> Clock {
        if self.timed { Clock::of_gpu(&self.gpu) } else { Clock::stopped() }
    }

    /// To be called when a run was queued operation by operation.
    pub(super) fn ran(&mut self) {
        self.unrecorded = self.unrecorded.saturating_sub(1);
        self.timed = false;
    }

    pub(super) fn replay(&mut self, work: impl FnOnce() -> Result<(), ModelError>) -> Result<(), ModelError> {
        if let Some(recording) = &mut self.recording {
            return Ok(recording.replay()?);
        }
        self.gpu.make_room_to_record()?;
        let mut recording = self.gpu.record(work)?;
        recording.replay()?;
        self.recording = Some(recording);
        Ok(())
    }

    pub(super) fn give_back_memory(&mut self) -> Result<bool, KernelError> {
        let there = self.recording.take().is_some();
        self.gpu.give_back_unused()?;
        Ok(there)
    }

    pub(super) fn pause_recording(&mut self, runs: u64) {
        self.unrecorded = runs;
    }

    pub(super) fn time_next_run(&mut self) {
        self.timed = true;
    }
}
