//! Saving beside the loop: one thread, one save in flight at most.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Checkpoint, CheckpointError, Retention, Saved, Snapshot, save};

/// How often who waits for a save looks whether it has ended.
const GLANCE: Duration = Duration::from_millis(2);

/// A finished save.
#[derive(Debug)]
pub struct SaveOutcome {
    /// The checkpoint, on disk, read back and verified.
    pub saved: Saved,
    /// How long it took to write, verify and tidy up.
    pub took: Duration,
    /// Older checkpoints that were deleted, or why that failed.
    pub removed: Result<Vec<String>, CheckpointError>,
}

/// Writes checkpoints in the background. An error is the loop's to report and no reason to stop: the next save tries
/// anew, and no older checkpoint is deleted before a newer one has verified.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    retention: Retention,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    step: u64,
    thread: JoinHandle<Result<SaveOutcome, CheckpointError>>,
}

impl Writer {
    /// Into `dir` (a run's `checkpoints`).
    pub fn new(dir: PathBuf, retention: Retention) -> Self {
        Self { dir, retention, in_flight: None }
    }

    /// Whether a save is being written; a [`Writer::submit`] would wait for it.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|save| !save.thread.is_finished())
    }

    /// Waits for the save in flight, but not longer than `patience`; whether none is in flight any more.
    pub fn is_free_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.is_busy() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(GLANCE);
        }
        true
    }

    /// Starts saving what `snapshot` makes, or says why it cannot, on the thread that writes: the loop goes on meanwhile. Waits for an
    /// earlier save first, and returns its result if that was not polled.
    pub fn submit(
        &mut self,
        step: u64,
        snapshot: impl FnOnce() -> Result<Snapshot, String> + Send + 'static,
    ) -> Option<Result<SaveOutcome, CheckpointError>> {
        let earlier = self.finish();
        let (dir, retention) = (self.dir.clone(), self.retention);
        let span = tracing::debug_span!("save", step);
        let spawned = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            let _span = span.entered();
            let start = Instant::now();
            let snapshot = snapshot().map_err(|reason| CheckpointError::Thread { step, reason })?;
            let saved = save(&dir, &snapshot)?;
            let verified = Checkpoint::open(&saved.path)?;
            let removed = retention.apply(&dir, &verified);
            Ok(SaveOutcome { saved, took: start.elapsed(), removed })
        });
        match spawned {
            Ok(thread) => {
                self.in_flight = Some(InFlight { step, thread });
                earlier
            }
            Err(error) => Some(Err(CheckpointError::Thread { step, reason: format!("no thread: {error}") })),
        }
    }

    /// The result of a save that has ended since the last call, without waiting.
    pub fn poll(&mut self) -> Option<Result<SaveOutcome, CheckpointError>> {
        if self.is_busy() { None } else { self.finish() }
    }

    /// Waits for the save in flight and returns its result; `None` if there is none.
    pub fn finish(&mut self) -> Option<Result<SaveOutcome, CheckpointError>> {
        let InFlight { step, thread } = self.in_flight.take()?;
        let ended = thread
            .join()
            .unwrap_or_else(|_| Err(CheckpointError::Thread { step, reason: "the saving thread panicked".into() }));
        Some(ended)
    }
}

impl Drop for Writer {
    /// Lets a save in flight end: the process must not exit on half of it.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::snapshot;
    use super::super::{dir_name, list};
    use super::*;

    const KEEP_TWO: Retention = Retention { keep_last: 2, keep_every: 0 };

    #[test]
    fn every_submitted_snapshot_is_saved_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().into(), KEEP_TWO);
        assert!(writer.poll().is_none() && writer.finish().is_none());
        assert!(writer.submit(10, || Ok(snapshot(10, 1.0))).is_none());
        let first = writer.submit(20, || Ok(snapshot(20, 2.0))).unwrap().unwrap();
        assert_eq!(first.saved.step, 10);
        assert_eq!(writer.submit(30, || Ok(snapshot(30, 3.0))).unwrap().unwrap().saved.step, 20);
        let last = writer.finish().unwrap().unwrap();
        assert_eq!(last.removed.unwrap(), [dir_name(10)]);
        assert_eq!(Checkpoint::open(&last.saved.path).unwrap().state, snapshot(30, 3.0).state);
    }

    #[test]
    fn a_save_that_takes_long_is_waited_for_only_so_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().into(), KEEP_TWO);
        assert!(writer.is_free_within(Duration::ZERO));
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        writer.submit(10, move || {
            let _ = wait.recv();
            Ok(snapshot(10, 1.0))
        });
        assert!(!writer.is_free_within(Duration::from_millis(5)));
        drop(go_on);
        assert!(writer.is_free_within(Duration::from_secs(60)));
        assert_eq!(writer.poll().unwrap().unwrap().saved.step, 10);
    }

    #[test]
    fn dropping_the_writer_completes_the_save() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().into(), KEEP_TWO);
        writer.submit(10, || Ok(snapshot(10, 1.0)));
        drop(writer);
        Checkpoint::open(&dir.path().join(dir_name(10))).unwrap();
    }

    #[test]
    fn a_failed_save_is_reported_touches_nothing_and_the_next_one_works() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().into(), Retention { keep_last: 1, keep_every: 0 });
        writer.submit(10, || Ok(snapshot(10, 1.0)));
        writer.finish().unwrap().unwrap();
        let mut wrong = snapshot(20, 1.0);
        wrong.files[0].tensors[0].shape.push(2);
        writer.submit(20, || Ok(wrong));
        assert!(writer.finish().unwrap().is_err());
        writer.submit(20, || Err("the GPU fell off".to_owned()));
        assert!(writer.finish().unwrap().unwrap_err().to_string().ends_with("not written: the GPU fell off"));
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        Checkpoint::open(&dir.path().join(dir_name(10))).unwrap();
        writer.submit(30, || Ok(snapshot(30, 1.0)));
        assert_eq!(writer.finish().unwrap().unwrap().removed.unwrap(), [dir_name(10)]);
    }
}
