//! Where work is done over and over with other numbers: the training's step, a sampler's step, a timestep of an evaluation.
//!
//! Whoever has such work writes it once, against tensors, and does not ask where they lie. What changes from time to time is a
//! struct with a named field for each tensor ([`Inputs`]): it is handed to [`Slots::send`], and comes back as it lies where the
//! network computes. Then [`Engine::run`] does the work, and [`Results`] bring numbers back.
//!
//! - On a CPU the work is done now, on the very tensors that were handed over, and its results are there at once.
//! - On a GPU the tensors are copied in one piece to places that they keep. The work is queued as it is the first time, which
//!   finds the fastest algorithms for its shapes; the second time it is recorded, and from then on it is one upload and one
//!   replay. Results are read some runs later ([`Engine::most_pending`]), so that the host never waits for them.
//!
//! | module | what |
//! | --- | --- |
//! | [`slots`] | the numbers on their way there |
//! | [`recorded`] | a GPU's way: as it is, recorded, replayed |
//! | [`results`] | the numbers on their way back |
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

/// Work that an engine does; must be the same each time: same shapes, same memory.
pub(crate) type Work<'a> = dyn FnMut(&mut Clock) -> Result<(), ModelError> + 'a;

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    way: Way,
    phases: Option<Phases>,
}

/// How work is done.
#[derive(Debug)]
enum Way {
    Now,
    Recorded(Box<Recorded>),
}

impl Engine {
    /// For work on `device`.
    ///
    /// # Errors
    /// A GPU that refuses.
    pub(crate) fn new(device: &Device) -> Result<Self, KernelError> {
        let way = if device.is_cpu() { Way::Now } else { Way::Recorded(Box::new(Recorded::new(Gpu::of(device)?))) };
        Ok(Self { way, phases: None })
    }

    /// Room for inputs of the formats and shapes of `like`.
    ///
    /// # Errors
    /// A GPU without room.
    pub(crate) fn slots<I: Inputs>(&self, like: &I) -> Result<Slots<I>, ModelError> {
        Slots::new(self.gpu(), like)
    }

    /// The way back of these tensors, f64, which the work writes.
    ///
    /// # Errors
    /// No page-locked memory.
    pub(crate) fn results(&self, tensors: Vec<Tensor>) -> Result<Results, KernelError> {
        Results::new(self.gpu(), tensors)
    }

    fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.way {
            Way::Now => None,
            Way::Recorded(recorded) => Some(recorded.gpu()),
        }
    }

    /// Runs whose results need not be read yet.
    pub(crate) fn most_pending(&self) -> usize {
        match self.way {
            Way::Now => 0,
            Way::Recorded(_) => IN_FLIGHT,
        }
    }

    /// How many of `num` are best computed at once, at most `most`.
    ///
    /// A recording is of one size. So there all batches are alike, and the last one may compute some of which nobody asks, rather
    /// than to find algorithms for another size.
    pub(crate) fn batch_size(&self, num: usize, most: usize) -> usize {
        let most = most.clamp(1, num.max(1));
        match self.way {
            Way::Now => most,
            Way::Recorded(_) => num.div_ceil(num.div_ceil(most).max(1)).max(1),
        }
    }

    /// How many are computed where the last of the batches of `batch_size` has only `count`.
    pub(crate) fn computed(&self, count: usize, batch_size: usize) -> usize {
        match self.way {
            Way::Now => count,
            Way::Recorded(_) => batch_size,
        }
    }

    /// Does `work`: now, or as what was recorded.
    ///
    /// # Errors
    /// The work's own, or a GPU without room for a recording.
    pub(crate) fn run(&mut self, work: &mut Work<'_>) -> Result<(), ModelError> {
        if self.will_replay() { self.replay(work) } else { self.run_as_it_is(work) }
    }

    /// Whether the next run is a recording's, or to be recorded.
    pub(crate) fn will_replay(&self) -> bool {
        match &self.way {
            Way::Now => false,
            Way::Recorded(recorded) => recorded.will_replay(),
        }
    }

    /// Does `work` operation by operation.
    ///
    /// # Errors
    /// The work's own.
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

    /// Replays `work`, which is recorded first where it is not.
    ///
    /// # Errors
    /// The work's own, or no room for what it allocates: then nothing of it has run.
    pub(crate) fn replay(&mut self, work: &mut Work<'_>) -> Result<(), ModelError> {
        self.phases = None;
        match &mut self.way {
            Way::Now => self.run_as_it_is(work),
            Way::Recorded(recorded) => recorded.replay(|| work(&mut Clock::stopped())),
        }
    }

    /// Waits for all that is queued.
    ///
    /// # Errors
    /// Something of it has failed.
    pub(crate) fn finish(&self) -> Result<(), KernelError> {
        self.gpu().map_or(Ok(()), |gpu| gpu.synchronize())
    }

    /// Gives back all memory that is kept for later, a recording's too; whether there was a recording.
    ///
    /// # Errors
    /// Something queued before has failed.
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

    /// Has the phases of the next run timed, where they are not anyway: on a GPU that run is queued as it is and waited for.
    pub(crate) fn time_next_run(&mut self) {
        if let Way::Recorded(recorded) = &mut self.way {
            recorded.time_next_run();
        }
    }

    /// Where the time of the last run went; none where nobody could see it.
    pub(crate) fn phases(&self) -> Option<Phases> {
        self.phases
    }
}

/// Shows `work` to a profiler that waits for it, where there is one: on a GPU.
///
/// # Errors
/// The work's own; the driver refuses.
pub(crate) fn profiled<T, E: From<KernelError>>(device: &Device, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if device.is_cpu() { work() } else { Gpu::of(device)?.profiled(work) }
}
