//! When to stop before the end: a signal, or a time limit.
//!
//! Here a signal is a flag, which the caller sets from its own handler. The loop then finishes its step, saves and ends, or
//! saves and continues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why a run stops early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// [`Requests::stop`].
    Signal,
    /// `--max-hours`.
    TimeLimit,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Signal => "a signal",
            Self::TimeLimit => "the time limit",
        })
    }
}

/// Requests to a run, which may come at any time.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Finish the step, save and end.
    pub stop: Arc<AtomicBool>,
    /// Save after the step and continue; cleared when that is done.
    pub save: Arc<AtomicBool>,
}

/// Watches for requests and for the time limit.
#[derive(Debug)]
pub(crate) struct StopWatch {
    requests: Requests,
    started: Instant,
    limit: Option<Duration>,
}

impl StopWatch {
    /// Starts watching; `max_hours` counts from `started`.
    pub(crate) fn new(started: Instant, max_hours: Option<f64>, requests: Requests) -> Self {
        let limit = max_hours.and_then(|hours| Duration::try_from_secs_f64(hours * 3600.0).ok());
        Self { requests, started, limit }
    }

    /// Whether a save was requested since the last call.
    pub(crate) fn takes_save_request(&self) -> bool {
        self.requests.save.swap(false, Ordering::Relaxed)
    }

    /// Whether only the time for saving is left.
    pub(crate) fn is_over(&self) -> bool {
        self.reason(Duration::ZERO).is_some()
    }

    /// Whether to stop now; `ending` is how long another step, saving and the last picture may take, which the
    /// time limit includes.
    pub(crate) fn reason(&self, ending: Duration) -> Option<StopReason> {
        if self.requests.stop.load(Ordering::Relaxed) {
            return Some(StopReason::Signal);
        }
        let limit = self.limit?;
        // A reserve larger than half the limit would leave no time to train.
        let reserve = ending.min(limit / 2);
        (self.started.elapsed() + reserve >= limit).then_some(StopReason::TimeLimit)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_time_limit_leaves_time_to_save() {
        let started = Instant::now().checked_sub(Duration::from_secs(50)).unwrap();
        let watch = StopWatch::new(started, Some(1.0 / 60.0), Requests::default());
        assert_eq!(watch.reason(Duration::from_secs(1)), None);
        assert_eq!(watch.reason(Duration::from_secs(20)), Some(StopReason::TimeLimit));
        assert!(!watch.is_over());
        assert!(StopWatch::new(started, Some(0.01), Requests::default()).is_over());
        assert_eq!(StopWatch::new(started, None, Requests::default()).reason(Duration::from_secs(20)), None);
    }
}
