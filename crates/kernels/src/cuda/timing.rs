//! When the GPU gets where: marks between the things that are queued; and which of several ways is the fastest here, asked
//! once per shape.

use std::fmt::Debug;

use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};

use super::{Gpu, refused};
use crate::error::Result;

/// Runs of each way that are timed together, after one that is not.
const RUNS: usize = 3;
/// The GPU's cycles for the host to queue them in, about 0.1 ms.
const HEAD_START: usize = 200_000;
/// How often they are: the least time counts, since nothing makes a way faster than it is.
const ROUNDS: usize = 2;

/// The number of the fastest of `ways` to do `computation`, or of the one that was chosen before; the first that works
/// where the stream is being captured and nothing can be timed. None if none works.
///
/// # Errors
/// The GPU itself fails, rather than a way being refused.
pub(super) fn fastest<W>(
    gpu: &Gpu,
    computation: &dyn Debug,
    ways: &[W],
    mut queue: impl FnMut(&W) -> Result<()>,
) -> Result<Option<usize>> {
    let chosen = gpu.chosen(computation, ways.len());
    let capturing = gpu.stream().capture_status().map_err(refused("asking whether the stream is captured"))?;
    if capturing != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(chosen.or((!ways.is_empty()).then_some(0)));
    }
    // Where it fails now, such as for want of scratch space, another may do.
    if let Some(way) = chosen
        && queue(&ways[way]).is_ok()
    {
        return Ok(Some(way));
    }
    let mut best: Option<(usize, f32)> = None;
    let mut full = None;
    for (number, way) in ways.iter().enumerate() {
        match queue(way) {
            // Which is the fastest differs from run to run, and with it the last bits.
            Ok(()) if gpu.deterministic() || ways.len() == 1 => return Ok(Some(number)),
            Ok(()) => {}
            Err(error) if error.is_out_of_memory() => {
                full = Some(error);
                continue;
            }
            Err(_) => continue,
        }
        for _ in 0..ROUNDS {
            let time = milliseconds(gpu, || (0..RUNS).try_for_each(|_| queue(way)))?;
            if best.is_none_or(|(_, least)| time < least) {
                best = Some((number, time));
            }
        }
    }
    if let Some((number, _)) = best {
        gpu.keep_choice(computation, number, ways.len());
    }
    match (best, full) {
        // That there is no room now must not be remembered as that there is no way.
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best.map(|(number, _)| number)),
    }
}

/// How long the GPU takes for what `work` queues.
fn milliseconds(gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<f32> {
    // On an idle GPU a short computation is over before the host has queued the next one, and the host would be timed.
    gpu.kernel("busy")?.arg(HEAD_START).blocks((1, 1, 1), 1)?;
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
