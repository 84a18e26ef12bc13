//! When to stop before the end: a signal, or a time limit.
//!
//! The first SIGTERM or SIGINT asks the loop to finish its step, save and end; a second one ends the process at once, for
//! whoever will not wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{ExitCode, Failure};

/// Why a run stops early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SIGTERM or SIGINT.
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

/// Watches for both.
#[derive(Debug)]
pub struct StopWatch {
    signalled: Arc<AtomicBool>,
    started: Instant,
    limit: Option<Duration>,
}

impl StopWatch {
    /// Starts watching; `max_hours` counts from `started`.
    ///
    /// # Errors
    /// The system refuses a signal handler.
    pub fn new(started: Instant, max_hours: Option<f64>) -> Result<Self, Failure> {
        let signalled = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the second signal finds the flag set and ends the process; the first one sets it.
            flag::register_conditional_shutdown(signal, i32::from(ExitCode::Other as u8), Arc::clone(&signalled))
                .and_then(|_| flag::register(signal, Arc::clone(&signalled)))
                .map_err(|error| Failure::caused_by(ExitCode::Other, "cannot listen for signals", &error))?;
        }
        let limit = max_hours.and_then(|hours| Duration::try_from_secs_f64(hours * 3600.0).ok());
        Ok(Self { signalled, started, limit })
    }

    /// Whether there is no time left for anything but saving.
    pub fn is_over(&self) -> bool {
        self.reason(Duration::ZERO).is_some()
    }

    /// Whether to stop now; `ending` is how long another step, saving and the last picture may take, which the
    /// time limit includes.
    pub fn reason(&self, ending: Duration) -> Option<StopReason> {
        if self.signalled.load(Ordering::Relaxed) {
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
        let watch = StopWatch::new(started, Some(1.0 / 60.0)).unwrap();
        assert_eq!(watch.reason(Duration::from_secs(1)), None);
        assert_eq!(watch.reason(Duration::from_secs(20)), Some(StopReason::TimeLimit));
        assert!(!watch.is_over());
        assert!(StopWatch::new(started, Some(0.01)).unwrap().is_over());
        assert_eq!(StopWatch::new(started, None).unwrap().reason(Duration::from_secs(20)), None);
    }
}
