//! `status.json`: what a run is doing at this moment, for whoever looks at it from outside.
//!
//! It is written often and read by people and services, so a write must be cheap and a reader must never see half a file: it is
//! renamed into place, but not synced. After a power failure it may be old or gone, which costs nothing: a run goes on from
//! its checkpoints alone. What a killed process left says "training" for ever; [`RunView`](crate::RunView) asks the lock too.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::durable::replace_file_unsynced;
use crate::error::RunError;
use crate::lock::host_name;

/// The least time between two writes of the same phase.
const EVERY: Duration = Duration::from_secs(1);

/// What a run is doing, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunPhase {
    /// Making steps.
    Training,
    /// Waiting for a checkpoint to be written.
    Saving,
    /// Drawing pictures.
    Sampling,
    /// It has made all its steps.
    Done,
    /// It was stopped before, with everything saved.
    Stopped,
    /// It ended with an error.
    Failed,
}

impl fmt::Display for RunPhase {
    /// As the files name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub phase: RunPhase,
    /// Steps done.
    pub step: u64,
    /// Steps it is to make in all.
    pub steps: u64,
    /// Since the last logged step.
    pub images_per_s: Option<f64>,
    /// Until the last step, at the speed of this process so far.
    pub seconds_left: Option<f64>,
    /// What ended it.
    pub error: Option<String>,
    /// The process.
    pub pid: u32,
    /// Where it runs.
    pub host: String,
    /// When this was written: UTC, RFC 3339.
    pub updated: String,
}

impl Status {
    /// Reads the file; `None` if there is none, or what is there is no status.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Keeps the file up to date.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    status: Status,
    /// The step this process began at, and when.
    first: (u64, Instant),
    written: Option<Instant>,
}

impl StatusFile {
    /// Of a run at `path` that begins at `step` and is to make `steps` in all.
    pub fn new(path: PathBuf, step: u64, steps: u64) -> Self {
        let status = Status {
            phase: RunPhase::Training,
            step,
            steps,
            images_per_s: None,
            seconds_left: None,
            error: None,
            pid: std::process::id(),
            host: host_name(),
            updated: String::new(),
        };
        Self { path, status, first: (step, Instant::now()), written: None }
    }

    /// What it is, or will be, when it is written.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Another phase: written at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn enter(&mut self, phase: RunPhase) -> Result<(), RunError> {
        self.status.phase = phase;
        self.write()
    }

    /// `step` is done: written if the last time is a while ago.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn step(&mut self, step: u64) -> Result<(), RunError> {
        self.status.step = step;
        let (first, since) = self.first;
        let per_step = since.elapsed().as_secs_f64() / step.saturating_sub(first).max(1) as f64;
        self.status.seconds_left = Some(per_step * self.status.steps.saturating_sub(step) as f64);
        if self.written.is_some_and(|at| at.elapsed() < EVERY) { Ok(()) } else { self.write() }
    }

    /// The speed that was logged last.
    pub fn speed(&mut self, images_per_s: f64) {
        self.status.images_per_s = Some(images_per_s);
    }

    /// The run ends, with `error` if it failed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn end(&mut self, phase: RunPhase, error: Option<String>) -> Result<(), RunError> {
        self.status.error = error;
        self.status.seconds_left = None;
        self.enter(phase)
    }

    fn write(&mut self) -> Result<(), RunError> {
        self.written = Some(Instant::now());
        self.status.updated = clock::now();
        let written = serde_json::to_vec(&self.status).map_err(io::Error::from);
        let written = written.and_then(|text| replace_file_unsynced(&self.path, &text));
        written.map_err(RunError::io("write the status", &self.path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn phases_are_written_at_once_and_steps_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let mut file = StatusFile::new(path.clone(), 10, 100);
        file.enter(RunPhase::Training).unwrap();
        for step in 11..=60 {
            file.step(step).unwrap();
        }
        let read = || Status::read(&path).unwrap();
        assert_eq!((read().phase, read().pid), (RunPhase::Training, std::process::id()));
        assert!(read().step < 60, "fifty writes in less than a second");
        file.enter(RunPhase::Saving).unwrap();
        assert_eq!((read().phase, read().step, read().steps), (RunPhase::Saving, 60, 100));
        assert!(read().seconds_left.is_some_and(|left| left >= 0.0));
        file.end(RunPhase::Failed, Some("the loss is NaN".into())).unwrap();
        assert_eq!((read().error.as_deref(), read().seconds_left), (Some("the loss is NaN"), None));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn the_time_left_is_that_of_the_steps_left_at_the_speed_of_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = StatusFile::new(dir.path().join("status.json"), 1000, 1030);
        file.first.1 = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
        file.step(1010).unwrap();
        let left = file.status.seconds_left.unwrap();
        assert!((40.0..41.0).contains(&left), "{left} s");
    }

    #[test]
    fn what_is_no_status_is_none_and_a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        assert_eq!(Status::read(&path), None);
        fs::write(&path, "{\"phase\": \"dancing\"}").unwrap();
        assert_eq!(Status::read(&path), None);
        let gone = StatusFile::new(dir.path().join("gone/status.json"), 0, 1).enter(RunPhase::Training).unwrap_err();
        assert!(gone.to_string().contains("status.json"), "{gone}");
    }
}
