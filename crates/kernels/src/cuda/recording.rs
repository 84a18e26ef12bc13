//! Work recorded once and replayed by a single call: a CUDA graph. What it reads and writes keeps its place; what it
//! allocates on the way belongs to it.

use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, DriverError};

use super::{Gpu, refused};
use crate::error::{KernelError, Result};

/// See the module.
pub struct Recording {
    graph: CudaGraph,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recording")
    }
}

// SAFETY: a graph belongs to no thread; it is only used through exclusive borrows.
unsafe impl Send for Recording {}

impl Gpu {
    /// Records what `work` queues, without running it. Everything that is looked up once (plans, functions, scratch space)
    /// must have been looked up before, by running the same work.
    ///
    /// # Errors
    /// The work fails, or does what cannot be recorded, such as to wait.
    pub fn record<E: From<KernelError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Recording, E> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream().begin_capture(mode).map_err(refused("beginning a recording"))?;
        let worked = work();
        // Also after a failure: the stream must leave its recording state.
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream().end_capture(flags);
        worked?;
        match graph.map_err(full_or_refused("ending a recording"))? {
            Some(graph) => Ok(Recording { graph }),
            None => {
                Err(KernelError::Gpu { what: "recording".to_owned(), error: "nothing was queued".to_owned() }.into())
            }
        }
    }
}

impl Recording {
    /// Queues all of it once more.
    ///
    /// # Errors
    /// There is no room for what it allocates, or the driver refuses.
    pub fn replay(&mut self) -> Result<()> {
        self.graph.launch().map_err(full_or_refused("replaying a recording"))
    }
}

/// The memory that a recording allocates is looked for when it is made and when it is replayed.
fn full_or_refused(what: &'static str) -> impl FnOnce(DriverError) -> KernelError {
    move |error| match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => KernelError::OutOfMemory { requested: 0 },
        _ => refused(what)(error),
    }
}
