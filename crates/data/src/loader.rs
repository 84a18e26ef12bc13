//! Batches made ahead of the training step by a few threads, handed out in order.
//!
//! Each worker claims the next step number, makes that batch and puts it where the consumer waits for it; the consumer
//! takes batch after batch. At most `prefetch` finished batches wait beside those in the making, so memory is bounded.
//! What a batch contains depends on [`Batcher`] alone, so the number of workers changes nothing but the speed.
//!
//! Corrupt samples are counted here, on the consumer's side and in the order of the steps, so that a run stops at the same step
//! whatever the threads did. Counting starts again at a resume; it decides when the run ends, and changes no pixel. Each rank
//! counts what it meets in its own share.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::batch::{Batch, Batcher, LoaderConfig, Made, Unreadable};
use crate::error::{DataError, panic_message};
use crate::fitted::Fitted;
use crate::format::Source;
use crate::meter::{Flow, Gauge};

/// More decoding threads than this are a typing error.
const MAX_WORKERS: usize = 1024;
/// Automatic workers stop here: 16 decoders make some 500,000 small PNGs or a few thousand photos per second.
const MAX_AUTO_WORKERS: usize = 16;
/// The share of corrupt samples is taken of at least so many, or one bad file among the first ten would end a run.
const JUDGED_AMONG: usize = 1000;

/// How often a consumer that waits looks up whether it still should.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long a dropped loader waits for its threads.
const FAREWELL: Duration = Duration::from_secs(1);

/// A prefetching reader. Dropping it stops its threads, which takes no longer than decoding one image; one that hangs in a
/// read (a network disk that is gone) is left behind, and ends when that read does.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The thread that fetches what workers will need, where the source comes over a network.
    ahead: Option<JoinHandle<()>>,
    failed: bool,
    seen: usize,
    /// Indices of the corrupt samples met so far.
    corrupt: HashSet<usize>,
    warnings: Vec<Unreadable>,
    /// What fitting did to the first images; none once it has been said.
    fitted: Option<Fitted>,
    notices: Vec<String>,
}

struct Shared {
    batcher: Batcher,
    /// Finished batches and batches in the making that may be ahead of the consumer.
    ahead: u64,
    state: Mutex<State>,
    /// Signalled when the consumer has taken a batch, when a worker has claimed one, or when all are to stop.
    room: Condvar,
    /// Signalled when a batch is finished.
    ready: Condvar,
    /// Set under the lock of `state`; read without it between two images.
    stop: AtomicBool,
    /// What each worker does.
    gauges: Vec<Gauge>,
}

struct State {
    /// The step that the next idle worker takes.
    next_claimed: u64,
    /// The step that the consumer gets next.
    next_taken: u64,
    finished: BTreeMap<u64, Result<Made, DataError>>,
}

impl Loader {
    /// Starts reading at batch `first_step`.
    ///
    /// Checks the settings before any thread starts; errors name the key.
    pub fn start(source: Arc<dyn Source>, config: LoaderConfig, first_step: u64) -> Result<Self, DataError> {
        let workers = worker_count(config.workers)?;
        let ahead = (config.prefetch + workers) as u64;
        let batcher = Batcher::new(source, config)?;
        let state = State { next_claimed: first_step, next_taken: first_step, finished: BTreeMap::new() };
        let shared = Arc::new(Shared {
            batcher,
            ahead,
            state: Mutex::new(state),
            room: Condvar::new(),
            ready: Condvar::new(),
            stop: AtomicBool::new(false),
            gauges: (0..workers).map(|_| Gauge::default()).collect(),
        });
        let (corrupt, warnings, notices) = (HashSet::new(), Vec::new(), Vec::new());
        let fitted = Some(Fitted::default());
        let mut loader = Self {
            shared,
            workers: Vec::new(),
            ahead: None,
            failed: false,
            seen: 0,
            corrupt,
            warnings,
            fitted,
            notices,
        };
        for worker in 0..workers {
            let shared = Arc::clone(&loader.shared);
            let thread = Builder::new().name(format!("data-{worker}")).spawn(move || shared.work(worker));
            loader.workers.push(thread.map_err(|cause| DataError::NoThread { worker, cause })?);
        }
        if loader.shared.batcher.fetches_ahead() {
            let shared = Arc::clone(&loader.shared);
            let thread = Builder::new().name("data-ahead".into()).spawn(move || shared.fetch_ahead(first_step));
            loader.ahead = Some(thread.map_err(|cause| DataError::NoThread { worker: workers, cause })?);
        }
        Ok(loader)
    }

    /// The next batch, as [`next`](Self::next); `None` if `is_over` says so before it is there: it is then still the next, unless
    /// a store that was waited for has given it up for the same reason, after which there are no more.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn next_unless(&mut self, is_over: &dyn Fn() -> bool) -> Result<Option<Batch>, DataError> {
        while !self.failed && !self.shared.is_ready_within(LOOK_UP) {
            if is_over() {
                return Ok(None);
            }
        }
        match self.next() {
            Err(DataError::Stopped) if is_over() => Ok(None),
            next => next.map(Some),
        }
    }

    /// The next batch; waits for it where the workers are behind. After an error there are no more batches.
    #[expect(clippy::should_implement_trait, reason = "batches never end, so an Option would be one unwrap more")]
    pub fn next(&mut self) -> Result<Batch, DataError> {
        if self.failed {
            return Err(DataError::Stopped);
        }
        let result = self.shared.take().and_then(|made| self.count(made));
        if result.is_err() {
            self.failed = true;
            self.shared.stop();
        }
        result
    }

    /// The corrupt samples met since the last call, each once, in the order of the batches; also after an error.
    pub fn take_warnings(&mut self) -> Vec<Unreadable> {
        std::mem::take(&mut self.warnings)
    }

    /// What a person should know about the sizes of the images, once the first of them were seen.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// What the threads have done so far, and how many batches wait.
    pub fn flow(&self) -> Flow {
        let mut flow = Flow { queue: self.shared.lock().finished.len(), ..Flow::default() };
        self.shared.gauges.iter().for_each(|gauge| gauge.add_to(&mut flow));
        flow
    }

    /// How many decoding threads there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Counts the corrupt samples of a batch; an error where their share has become too large.
    fn count(&mut self, made: Made) -> Result<Batch, DataError> {
        let (config, len) = (self.shared.batcher.config(), self.shared.batcher.source().len());
        self.seen = self.seen.saturating_add(config.share.count()).min(len);
        if let Some(fitted) = &mut self.fitted {
            fitted.merge(&made.fitted);
            if self.seen >= len.min(JUDGED_AMONG) {
                self.notices = fitted.notices(config.image_size);
                self.fitted = None;
            }
        }
        let among = self.seen.max(len.min(JUDGED_AMONG));
        for unreadable in made.unreadable {
            if !self.corrupt.insert(unreadable.index) {
                continue;
            }
            let (bad, last) = (self.corrupt.len(), unreadable.to_string());
            self.warnings.push(unreadable);
            if bad as f64 > config.max_corrupt * among as f64 {
                return Err(DataError::TooManyUnreadable { bad, among, max_corrupt: config.max_corrupt, last });
            }
        }
        Ok(made.batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        let start = Instant::now();
        let threads: Vec<_> = self.workers.drain(..).chain(self.ahead.take()).collect();
        while start.elapsed() < FAREWELL && !threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for worker in threads.into_iter().filter(JoinHandle::is_finished) {
            // Panics of a worker are caught in `work` and reach the consumer as errors.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, worker: usize) {
        let gauge = &self.gauges[worker];
        while let Some(step) = self.claim() {
            let span = tracing::trace_span!("batch", step).entered();
            let make = || self.batcher.make(step, &self.stop, gauge);
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
            gauge.enter(None);
            let made = made.unwrap_or_else(|payload| {
                Err(DataError::WorkerPanicked { step, message: panic_message(payload.as_ref()) })
            });
            span.exit();
            self.lock().finished.insert(step, made);
            self.ready.notify_one();
        }
    }

    /// The life of the thread that goes ahead: about a window before the workers, at their pace. What it cannot fetch they will
    /// ask for again, and tell the consumer about.
    fn fetch_ahead(&self, first_step: u64) {
        for step in first_step.. {
            let early = |s: &mut State| !self.stop.load(Ordering::Relaxed) && s.next_claimed <= step;
            drop(self.room.wait_while(self.lock(), early).unwrap_or_else(PoisonError::into_inner));
            let fetch = || self.batcher.fetch_ahead(step);
            let fetched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(fetch));
            if self.stop.load(Ordering::Relaxed) || !matches!(fetched, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// The next step to make, once there is room for its batch; `None` when it is time to stop.
    fn claim(&self) -> Option<u64> {
        let full = |s: &mut State| !self.stop.load(Ordering::Relaxed) && s.next_claimed - s.next_taken >= self.ahead;
        let mut state = self.room.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        state.next_claimed += 1;
        let step = state.next_claimed - 1;
        drop(state);
        if self.batcher.fetches_ahead() {
            self.room.notify_all();
        }
        Some(step)
    }

    /// Whether the batch whose turn it is is there, waiting for it no longer than `limit`.
    fn is_ready_within(&self, limit: Duration) -> bool {
        let waiting = |s: &mut State| !s.finished.contains_key(&s.next_taken);
        let waited = self.ready.wait_timeout_while(self.lock(), limit, waiting).unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    /// The batch whose turn it is. Every claimed step is finished, if only with an error, so this ends.
    fn take(&self) -> Result<Made, DataError> {
        let waiting = |s: &mut State| !s.finished.contains_key(&s.next_taken);
        let mut state = self.ready.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        let step = state.next_taken;
        state.next_taken += 1;
        let made = state.finished.remove(&step).unwrap_or(Err(DataError::Stopped));
        drop(state);
        self.room.notify_all();
        made
    }

    fn stop(&self) {
        // Under the lock: a worker between its check and its wait would miss the signal.
        let state = self.lock();
        self.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn worker_count(workers: usize) -> Result<usize, DataError> {
    match workers {
        0 => {
            // The other half is for the training step, on the CPU or feeding the GPU.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Ok((cores / 2).clamp(1, MAX_AUTO_WORKERS))
        }
        1..=MAX_WORKERS => Ok(workers),
        _ => {
            let found = workers.to_string();
            Err(DataError::Setting { key: "data.workers", found, expected: "0 (automatic) to 1024" })
        }
    }
}

#[cfg(test)]
mod tests;
