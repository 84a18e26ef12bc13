//! Runs the same work repeatedly on different inputs: a training step, a sampler's step, a timestep of an evaluation.
//!
//! The caller writes such work once, with tensors, for every device. The tensors that change from run to run are the named
//! fields of a struct ([`Inputs`]): [`Slots::send`] takes it and returns the same struct on the network's device. Then
//! [`Engine::run`] does the work, and [`Results`] copy numbers back.
//!
//! - On a CPU the work is done now, on the same tensors that were passed in, and its results are available at once.
//! - On a GPU the tensors are copied in one piece to fixed addresses. The first run is queued operation by operation, which
//!   finds the fastest algorithms for its shapes; the second run is recorded, and from then on a run is one upload and one
//!   replay. Results are read some runs later ([`Engine::most_pending`]), so that the host never waits for them.
//!
//! | module | what |
//! | --- | --- |
//! | [`slots`] | inputs on their way to the device |
//! | [`recorded`] | how a GPU runs: operation by operation, recorded, replayed |
//! | [`results`] | results on their way back |
//! | [`clock`] | where the phases of the work begin and end |

pub(crate) mod clock;
mod recorded;
mod results;
mod slots;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::{Gpu, IN_FLIGHT};
use ddpm_model::ModelError;

pub use self::clock::Phases;
pub(crate) use self::clock::{Clock, Phase};
use self::recorded::Recorded;
pub(crate) use self::results::Results;
pub(crate) use self::slots::{Inputs, Slots};

/// Work that an engine does; it must be the same each time: same shapes, same memory.
pub(crate) type Work<'a> = dyn FnMut(&mut Clock) -> Result<(), ModelError> + 'a;

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    way: Way,
    phases: Option<Phases>,
}

/// How work is run.
#[derive(Debug)]
enum Way {
    Now,
    Recorded(Box<Recorded>),
}

impl Engine {
    /// An engine for work on `device`.
    ///
    /// # Errors
    /// The GPU cannot be used.
    pub(crate) fn new(device: &Device) -> Result<Self, KernelError> {
        let way = if device.is_cpu() { Way::Now } else { Way::Recorded(Box::new(Recorded::new(Gpu::of(device)?))) };
        Ok(Self { way, phases: None })
    }

    /// Slots for inputs with the types and shapes of `like`.
    ///
    /// # Errors
    /// The GPU's memory is full.
    pub(crate) fn slots<I: Inputs>(&self, like: &I) -> Result<Slots<I>, ModelError> {
        Slots::new(self.gpu(), like)
    }

    /// Results in these tensors, f64, which the work writes.
    ///
    /// # Errors
    /// Page-locked memory cannot be allocated.
    pub(crate) fn results(&self, tensors: Vec<Tensor>) -> Result<Results, KernelError> {
        Results::new(self.gpu(), tensors)
    }

    fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.way {
            Way::Now => None,
            Way::Recorded(recorded) => Some(recorded.gpu()),
        }
    }

    /// The most runs whose results may still be unread.
    pub(crate) fn most_pending(&self) -> usize {
        match self.way {
            Way::Now => 0,
            Way::Recorded(_) => IN_FLIGHT,
        }
    }

    /// How many of `num` images are best computed at once, at most `most`.
    ///
    /// A recording has one batch size. So on a GPU all batches have the same size, and the last one may compute more images
    /// than are needed, which is cheaper than finding algorithms for another size.
    pub(crate) fn batch_size(&self, num: usize, most: usize) -> usize {
        let most = most.clamp(1, num.max(1));
        match self.way {
            Way::Now => most,
            Way::Recorded(_) => num.div_ceil(num.div_ceil(most).max(1)).max(1),
        }
    }

    /// How many images are computed for a last batch of only `count`, after batches of `batch_size`.
    pub(crate) fn computed(&self, count: usize, batch_size: usize) -> usize {
        match self.way {
            Way::Now => count,
            Way::Recorded(_) => batch_size,
        }
    }

    /// Does `work`: now, or by replaying its recording.
    ///
    /// # Errors
    /// The work's own errors, or no memory for a recording.
    pub(crate) fn run(&mut self, work: &mut Work<'_>) -> Result<(), ModelError> {
        if self.will_replay() { self.replay(work) } else { self.run_as_it_is(work) }
    }

    /// Whether the next run will be recorded or replayed.
    pub(crate) fn will_replay(&self) -> bool {
        match &self.way {
            Way::Now => false,
            Way::Recorded(recorded) => recorded.will_replay(),
        }
    }

    /// Does `work` operation by operation.
    ///
    /// # Errors
    /// The work's own errors.
    pub(crate) fn run_as_it_is(&mut self, work: &mut Work<'_>) -> Result<(), ModelError> {
        let mut clock = match &mut self.way {
            Way::Now => Clock::of_host(),
            Way::Recorded(recorded) => recorded.clock(),
        };
        let _span = self.gpu().map(|_| tracing::trace_span!("queue").entered());
        work(&mut clock)?;
        self.phases = clock.stop()?;
        if let Way::Recorded(recorded) = &mut self.way {
            recorded.ran();
        }
        Ok(())
    }

    /// Replays `work`; records it first if that was not done yet.
    ///
    /// # Errors
    /// The work's own errors, or no memory for its allocations: then no part of it has run.
    pub(crate) fn replay(&mut self, work: &mut Work<'_>) -> Result<(), ModelError> {
        self.phases = None;
        match &mut self.way {
            Way::Now => self.run_as_it_is(work),
            Way::Recorded(recorded) => recorded.replay(|| work(&mut Clock::stopped())),
        }
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// Some of it has failed.
    pub(crate) fn finish(&self) -> Result<(), KernelError> {
        self.gpu().map_or(Ok(()), |gpu| gpu.synchronize())
    }

    /// Frees all memory that is kept for later use, also a recording's; returns whether there was a recording.
    ///
    /// # Errors
    /// Work queued before has failed.
    pub(crate) fn give_back_memory(&mut self) -> Result<bool, KernelError> {
        match &mut self.way {
            Way::Now => Ok(false),
            Way::Recorded(recorded) => recorded.give_back_memory(),
        }
    }

    /// Records nothing in the next `runs` runs.
    pub(crate) fn pause_recording(&mut self, runs: u64) {
        if let Way::Recorded(recorded) = &mut self.way {
            recorded.pause_recording(runs);
        }
    }

    /// Times the phases of the next run. On a CPU they are always timed; on a GPU that run is queued operation by operation,
    /// and the host waits for it.
    pub(crate) fn time_next_run(&mut self) {
        if let Way::Recorded(recorded) = &mut self.way {
            recorded.time_next_run();
        }
    }

    /// The times of the last run's phases, if they were taken.
    pub(crate) fn phases(&self) -> Option<Phases> {
        self.phases
    }
}

/// Marks `work` for a profiler; only on a GPU.
///
/// # Errors
/// The work's own errors; the driver refuses.
pub(crate) fn profiled<T, E: From<KernelError>>(device: &Device, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if device.is_cpu() { work() } else { Gpu::of(device)?.profiled(work) }
}
