//! Notices that a run does not go on: a hung network disk, a driver that never answers, a lock that nobody gives back.
//!
//! A thread beside the run looks at what it does and since when. After [`run.stall_after`](crate::config::types::RunConfig)
//! seconds in one activity, or ten times the longest of this kind so far if that is more, it reports what every thread waits for
//! and, on Linux, in which functions it is ([`stacks`](super::stacks)).
//! A hung call cannot be interrupted, so all that can be done is to end the process, where the configuration asks for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::Span;

use super::threads::Thread;
use crate::error::Error;

/// An activity may take so many times as long as the longest of its kind.
const PATIENCE: u32 = 10;

/// How long an end waits for the report.
const REPORTING: Duration = Duration::from_secs(5);

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Opening the data, the device, the checkpoint.
    Setup,
    /// Waiting for a batch.
    Data,
    /// Making a step.
    Step,
    /// Writing a checkpoint, as far as the loop waits for it.
    Save,
    /// Drawing pictures.
    Sample,
}

impl Activity {
    const COUNT: usize = 5;

    fn in_words(self) -> &'static str {
        match self {
            Self::Setup => "opening data, device and checkpoint",
            Self::Data => "waiting for images",
            Self::Step => "in a step",
            Self::Save => "saving",
            Self::Sample => "drawing pictures",
        }
    }
}

/// See the module. Dropping it ends the watch.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the watch ends.
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    activity: Activity,
    since: Instant,
    longest: [Duration; Activity::COUNT],
    reported: bool,
    over: bool,
}

impl State {
    fn limit(&self, least: Duration) -> Duration {
        least.max(self.longest[self.activity as usize] * PATIENCE)
    }
}

/// Ends the watch when the run ends in any way.
#[derive(Debug)]
pub(super) struct Watch(Watchdog);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.rest();
    }
}

impl Watch {
    /// Begins to watch; `on_stall` is called once a stall was reported. With `after` zero nothing is watched.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn begin(after: Duration, on_stall: Option<fn()>) -> Result<Self, Error> {
        if after.is_zero() {
            return Ok(Self(Watchdog { shared: None }));
        }
        let (activity, longest) = (Activity::Setup, [Duration::ZERO; Activity::COUNT]);
        let state = State { activity, since: Instant::now(), longest, reported: false, over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), ended: Condvar::new() });
        let (watched, span) = (Arc::clone(&shared), Span::current());
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || span.in_scope(|| watched.watch(after, on_stall)))
            .map_err(Error::caused("no thread for the watchdog"))?;
        Ok(Self(Watchdog { shared: Some(shared) }))
    }

    /// To be told what the run does.
    pub(super) fn watchdog(&self) -> Watchdog {
        self.0.clone()
    }
}

impl Watchdog {
    /// What follows may take as long as it takes: an upload waits for a hub, with limits of its own.
    pub(super) fn rest(&self) {
        if let Some(shared) = &self.shared {
            shared.lock().over = true;
            shared.ended.notify_all();
        }
    }

    /// Whether the run makes no progress, and was reported for it.
    pub(super) fn is_stalled(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| {
            let state = shared.lock();
            state.reported && !state.over
        })
    }

    /// Another activity begins.
    pub(super) fn enter(&self, activity: Activity) {
        let Some(shared) = &self.shared else { return };
        let mut state = shared.lock();
        let (took, before) = (state.since.elapsed(), state.activity as usize);
        state.longest[before] = state.longest[before].max(took);
        if std::mem::take(&mut state.reported) {
            tracing::warn!("it goes on, after {} s", took.as_secs());
        }
        (state.activity, state.since) = (activity, Instant::now());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, after: Duration, on_stall: Option<fn()>) {
        let mut state = self.lock();
        while !state.over {
            let (limit, elapsed) = (state.limit(after), state.since.elapsed());
            if elapsed >= limit && !state.reported {
                state.reported = true;
                let activity = state.activity;
                drop(state);
                // The report may hang as the run does: its log may lie on the same disk.
                let (span, (told, wait)) = (Span::current(), std::sync::mpsc::channel());
                let reporting = thread::Builder::new().name("stall".into()).spawn(move || {
                    span.in_scope(|| report(activity, elapsed));
                    told.send(())
                });
                if reporting.is_ok() {
                    // Either it was told in time, or it was not.
                    let _ = wait.recv_timeout(REPORTING);
                }
                on_stall.iter().for_each(|end| end());
                state = self.lock();
                continue;
            }
            let rest = if state.reported { after } else { limit.saturating_sub(elapsed) };
            let waited = self.ended.wait_timeout(state, rest.max(Duration::from_millis(10)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn report(activity: Activity, elapsed: Duration) {
    let (doing, seconds) = (activity.in_words(), elapsed.as_secs());
    let threads: Vec<String> = Thread::all().iter().map(Thread::to_string).collect();
    let threads = if threads.is_empty() { "not known on this system".to_owned() } else { threads.join(", ") };
    tracing::warn!(doing, seconds, threads, "no progress for {seconds} s, {doing}; its threads: {threads}");
    #[cfg(target_os = "linux")]
    super::stacks::all().iter().for_each(|stack| tracing::warn!("{stack}"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Far longer than anything takes that is not meant to stall.
    const AFTER: Duration = Duration::from_millis(300);

    #[test]
    fn a_stall_is_reported_once_and_progress_is_none() {
        static STALLS: AtomicUsize = AtomicUsize::new(0);
        let stalls = || STALLS.load(Ordering::SeqCst);
        let watch = Watch::begin(AFTER, Some(|| _ = STALLS.fetch_add(1, Ordering::SeqCst))).unwrap();
        let watchdog = watch.watchdog();
        for _ in 0..20 {
            watchdog.enter(Activity::Data);
            watchdog.enter(Activity::Step);
            thread::sleep(AFTER / 20);
        }
        assert_eq!(stalls(), 0);
        watchdog.enter(Activity::Data);
        thread::sleep(AFTER * 4);
        assert_eq!(stalls(), 1, "a stall is reported, and once");
        watchdog.enter(Activity::Step);
        drop(watch);
        thread::sleep(AFTER * 2);
        assert_eq!(stalls(), 1, "after the end nothing is watched");
    }

    #[test]
    fn what_once_took_long_may_take_longer() {
        let state = |longest| State {
            activity: Activity::Sample,
            since: Instant::now(),
            longest: [longest; Activity::COUNT],
            reported: false,
            over: false,
        };
        assert_eq!(state(Duration::from_secs(1)).limit(Duration::from_secs(60)), Duration::from_secs(60));
        assert_eq!(state(Duration::from_secs(9)).limit(Duration::from_secs(60)), Duration::from_secs(90));
    }
}
