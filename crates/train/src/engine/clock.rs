//! Where the phases of work begin and end: the one place that knows it, for timing and for traces.
//!
//! The work says when a phase begins, which ends the phase before. On a CPU the host's clock times the phase, and the phase is
//! a span; on a GPU marks are queued, if times were requested.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::{Gpu, Mark};
use tracing::span::EnteredSpan;

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Noise, network and loss.
    Forward,
    /// The backward pass.
    Backward,
    /// The sum of the gradients of several ranks; clipping, AdamW and the averages.
    Optimizer,
}

impl Phase {
    fn span(self) -> tracing::Span {
        match self {
            Self::Forward => tracing::trace_span!("forward"),
            Self::Backward => tracing::trace_span!("backward"),
            Self::Optimizer => tracing::trace_span!("optimizer"),
        }
    }
}

/// Time by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    /// Noise, network and loss.
    pub forward: Duration,
    /// The backward pass.
    pub backward: Duration,
    /// Clipping, AdamW and the averages.
    pub optimizer: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    by: By,
    /// The current phase.
    phase: Option<Phase>,
}

#[derive(Debug)]
enum By {
    None,
    Host {
        since: Instant,
        phases: Phases,
        span: Option<EnteredSpan>,
    },
    /// A mark where each phase begins, and one where the last phase ends.
    Gpu {
        gpu: Arc<Gpu>,
        marks: Vec<(Option<Phase>, Mark)>,
    },
}

impl Clock {
    /// A clock that measures nothing.
    pub(crate) fn stopped() -> Self {
        Self { by: By::None, phase: None }
    }

    pub(super) fn of_host() -> Self {
        Self { by: By::Host { since: Instant::now(), phases: Phases::default(), span: None }, phase: None }
    }

    pub(super) fn of_gpu(gpu: &Arc<Gpu>) -> Self {
        Self { by: By::Gpu { gpu: gpu.clone(), marks: Vec::new() }, phase: None }
    }

    /// Begins `phase`, which ends the one before.
    ///
    /// # Errors
    /// The driver refuses a mark.
    pub(crate) fn begin(&mut self, phase: Phase) -> Result<(), KernelError> {
        self.change(Some(phase))
    }

    /// Ends the current phase; what follows belongs to none.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(crate) fn end(&mut self) -> Result<(), KernelError> {
        self.change(None)
    }

    fn change(&mut self, phase: Option<Phase>) -> Result<(), KernelError> {
        let ended = std::mem::replace(&mut self.phase, phase);
        match &mut self.by {
            By::None => {}
            By::Host { since, phases, span } => {
                let now = Instant::now();
                phases.add(ended, now - std::mem::replace(since, now));
                // The span before ends first: spans nest.
                *span = None;
                *span = phase.map(|phase| phase.span().entered());
            }
            By::Gpu { gpu, marks } => marks.push((phase, gpu.mark()?)),
        }
        Ok(())
    }

    /// Ends the work and returns the times, if they were taken. Waits for those of a GPU.
    ///
    /// # Errors
    /// Work queued before has failed.
    pub(super) fn stop(mut self) -> Result<Option<Phases>, KernelError> {
        self.end()?;
        match self.by {
            By::None => Ok(None),
            By::Host { phases, .. } => Ok(Some(phases)),
            By::Gpu { marks, .. } => {
                let mut phases = Phases::default();
                for ((phase, start), (_, end)) in marks.iter().zip(marks.iter().skip(1)) {
                    let seconds = f64::from(end.milliseconds_since(start)?.max(0.0)) * 1e-3;
                    phases.add(*phase, Duration::from_secs_f64(seconds));
                }
                Ok(Some(phases))
            }
        }
    }
}

impl Phases {
    /// The sum of all phases.
    pub(crate) fn total(&self) -> Duration {
        self.forward + self.backward + self.optimizer
    }

    fn add(&mut self, phase: Option<Phase>, time: Duration) {
        match phase {
            Some(Phase::Forward) => self.forward += time,
            Some(Phase::Backward) => self.backward += time,
            Some(Phase::Optimizer) => self.optimizer += time,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_phase_ends_where_the_next_begins_and_what_is_before_the_first_is_none() {
        let mut clock = Clock::of_host();
        let wait = Duration::from_millis(2);
        std::thread::sleep(wait);
        for phase in [Phase::Forward, Phase::Backward, Phase::Forward] {
            clock.begin(phase).unwrap();
            std::thread::sleep(wait);
        }
        let Phases { forward, backward, optimizer } = clock.stop().unwrap().unwrap();
        assert!(forward >= 2 * wait && backward >= wait && optimizer.is_zero(), "{forward:?} {backward:?}");
        assert_eq!(Clock::stopped().stop().unwrap(), None);
    }
}
