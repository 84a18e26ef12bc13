//! Work recorded once and replayed by a single call: a CUDA graph. What it reads and writes keeps its place; memory
//! that it allocates belongs to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus,
};

use super::out_of_memory;
use super::switches::Family;
use super::{Gpu, refused};
use crate::error::{KernelError, Result};

/// See the module.
pub struct Recording {
    graph: CudaGraph,
    _alive: Alive,
}

/// One of the recordings that a GPU counts.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recording")
    }
}

// SAFETY: a graph belongs to no thread; it is only used through exclusive borrows.
unsafe impl Send for Recording {}

impl Gpu {
    /// Whether work may be recorded, or that is [turned off](super::switches).
    pub fn records(&self) -> bool {
        self.uses(Family::Graph)
    }

    /// Records what `work` queues, without running it. Everything that is looked up once (plans, functions, scratch space)
    /// must have been looked up before, by running the same work.
    ///
    /// # Errors
    /// The work fails, or does what cannot be recorded, such as to wait.
    pub fn record<E: From<KernelError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Recording, E> {
        let _span = tracing::trace_span!("record").entered();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream().begin_capture(mode).map_err(refused("beginning a recording"))?;
        let worked = work();
        // Also after a failure: the stream must leave its recording state. An error that cudarc has noted meanwhile would be
        // returned instead; it comes from the work, which reports it itself.
        let _ = self.stream().context().check_err();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream().end_capture(flags);
        worked?;
        match graph.map_err(out_of_memory("ending a recording".to_owned()))? {
            Some(graph) => Ok(Recording { graph, _alive: Alive::new(&self.recordings) }),
            None => {
                Err(KernelError::Gpu { what: "recording".to_owned(), error: "nothing was queued".to_owned() }.into())
            }
        }
    }

    /// Whether what is queued now is recorded.
    pub(super) fn is_recording(&self) -> Result<bool> {
        let status = self.stream().capture_status().map_err(refused("asking whether the stream is captured"))?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Refuses while work is recorded: `what` would become part of the recording, and each replay would upload it again from host
    /// memory that is gone by then.
    pub(crate) fn must_not_record(&self, what: &str) -> Result<()> {
        if !self.is_recording()? {
            return Ok(());
        }
        let error = "the pass before the recording did not need it: this is a bug".to_owned();
        Err(KernelError::Gpu { what: format!("making {what}"), error })
    }
}

impl Recording {
    /// Queues all of it once more.
    ///
    /// # Errors
    /// There is no room for what it allocates, or the driver refuses.
    pub fn replay(&mut self) -> Result<()> {
        let _span = tracing::trace_span!("replay").entered();
        // Only now does the driver find memory for it; it runs whole or not at all.
        self.graph.launch().map_err(out_of_memory("replaying a recording".to_owned()))
    }
}
