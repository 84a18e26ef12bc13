//! When the GPU gets where: marks between the things that are queued; and which of several ways is the fastest here, asked
//! once per shape.

use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};

use super::{Gpu, refused};
use crate::error::Result;

/// Runs of each way that are timed, after one that is not.
const RUNS: usize = 3;

/// The fastest of `ways`; the first that works where the stream is being captured and nothing can be timed. None if none
/// works.
///
/// # Errors
/// The GPU itself fails, rather than a way being refused.
pub(super) fn fastest<'w, W>(
    gpu: &Gpu,
    ways: &'w [W],
    mut queue: impl FnMut(&W) -> Result<()>,
) -> Result<Option<&'w W>> {
    let capturing = gpu.stream().capture_status().map_err(refused("asking whether the stream is captured"))?;
    if capturing != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(ways.first());
    }
    let mut best: Option<(&W, f32)> = None;
    let mut full = None;
    for way in ways {
        match queue(way) {
            // Which is the fastest differs from run to run, and with it the last bits.
            Ok(()) if gpu.deterministic() || ways.len() == 1 => return Ok(Some(way)),
            Ok(()) => {}
            Err(error) if error.is_out_of_memory() => {
                full = Some(error);
                continue;
            }
            Err(_) => continue,
        }
        let time = milliseconds(gpu, || (0..RUNS).try_for_each(|_| queue(way)))?;
        if best.is_none_or(|(_, least)| time < least) {
            best = Some((way, time));
        }
    }
    match (best, full) {
        // That there is no room now must not be remembered as that there is no way.
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best.map(|(way, _)| way)),
    }
}

/// How long the GPU takes for what `work` queues.
pub(super) fn milliseconds(gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<f32> {
    let start = gpu.mark()?;
    work()?;
    gpu.mark()?.milliseconds_since(&start)
}

/// A place in what is queued, and when the GPU gets there.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Gpu {
    /// Marks what is queued next.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn mark(&self) -> Result<Mark> {
        let event = self.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.map(Mark).map_err(refused("timing on the GPU"))
    }
}

impl Mark {
    /// The GPU's time from `earlier` to here; waits until the GPU is here.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32> {
        earlier.0.elapsed_ms(&self.0).map_err(refused("timing on the GPU"))
    }
}
