//! Which of several ways is the fastest here: asked once per shape.

use candle_core::cuda_backend::cudarc::driver::sys::{CUevent_flags, CUstreamCaptureStatus};

use super::{Gpu, refused};
use crate::error::{KernelError, Result};

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
    if ways.len() == 1 || capturing != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(ways.first());
    }
    let mut best: Option<(&W, f32)> = None;
    for way in ways {
        if queue(way).is_err() {
            continue;
        }
        let time = milliseconds(gpu, || (0..RUNS).try_for_each(|_| queue(way)))?;
        if best.is_none_or(|(_, least)| time < least) {
            best = Some((way, time));
        }
    }
    Ok(best.map(|(way, _)| way))
}

/// How long the GPU takes for what `work` queues.
pub(super) fn milliseconds(gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<f32> {
    let fail = |error| -> KernelError { refused("timing on the GPU")(error) };
    let (context, stream) = (gpu.stream().context(), gpu.stream());
    let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let (start, end) = (context.new_event(flags).map_err(fail)?, context.new_event(flags).map_err(fail)?);
    start.record(stream).map_err(fail)?;
    work()?;
    end.record(stream).map_err(fail)?;
    end.synchronize().map_err(fail)?;
    start.elapsed_ms(&end).map_err(fail)
}
