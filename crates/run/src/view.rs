//! A run as its files tell of it, without holding it: what `ddpm runs` shows, and what a service would.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::list;
use crate::error::RunError;
use crate::lock::RunLock;
use crate::metrics::{self, MetricRecord};
use crate::paths::RunPaths;
use crate::record::RunRecord;
use crate::status::{RunPhase, Status};

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// A process holds it.
    Running,
    /// It has made all its steps.
    Done,
    /// It was stopped before; the same command goes on.
    Stopped,
    /// It ended with an error.
    Failed,
    /// Its process went away without a word: killed, or the machine went down.
    Killed,
    /// Nobody holds it and it has no status: imported, or of an older version.
    Idle,
}

impl fmt::Display for RunState {
    /// As `--json` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What can be read of a run.
#[derive(Clone, Debug)]
pub struct RunView {
    /// Where its files are.
    pub paths: RunPaths,
    /// What became of it.
    pub state: RunState,
    /// Who started it when and how.
    pub record: RunRecord,
    /// What its process said last.
    pub status: Option<Status>,
    /// The last logged step.
    pub metrics: Option<MetricRecord>,
    /// The newest checkpoint: its step and its place. It is not verified.
    pub checkpoint: Option<(u64, PathBuf)>,
}

impl RunView {
    /// The run in `root`; `None` if there is none.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub fn open(root: &Path) -> Result<Option<Self>, RunError> {
        let paths = RunPaths::new(root);
        let Some(record) = RunRecord::read(&paths.record())? else { return Ok(None) };
        // In this order: once the lock is free, the status is the last one.
        let held = RunLock::is_held(root);
        let status = Status::read(&paths.status());
        let state = match status.as_ref().map(|status| status.phase) {
            _ if held => RunState::Running,
            Some(RunPhase::Done) => RunState::Done,
            Some(RunPhase::Stopped) => RunState::Stopped,
            Some(RunPhase::Failed) => RunState::Failed,
            Some(RunPhase::Training | RunPhase::Saving | RunPhase::Sampling) => RunState::Killed,
            None => RunState::Idle,
        };
        let checkpoint = list(&paths.checkpoints()).ok().and_then(|checkpoints| checkpoints.into_iter().next());
        Ok(Some(Self { metrics: metrics::last(&paths.metrics()), paths, state, record, status, checkpoint }))
    }

    /// The runs in `dir`, by name: `dir` itself if it is one, else those among its sub-directories; and what could not be read.
    ///
    /// # Errors
    /// `dir` cannot be listed.
    pub fn all_in(dir: &Path) -> Result<(Vec<Self>, Vec<RunError>), RunError> {
        if let Some(run) = Self::open(dir)? {
            return Ok((vec![run], Vec::new()));
        }
        let failed = || RunError::io("list the directory", dir);
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed())?;
        let mut roots: Vec<PathBuf> =
            entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        roots.sort();
        let (mut runs, mut unread) = (Vec::new(), Vec::new());
        for root in roots {
            match Self::open(&root) {
                Ok(run) => runs.extend(run),
                Err(error) => unread.push(error),
            }
        }
        Ok((runs, unread))
    }

    /// Steps done, as far as its files tell.
    pub fn step(&self) -> u64 {
        let of_status = self.status.as_ref().map(|status| status.step);
        let of_checkpoint = self.checkpoint.as_ref().map(|(step, _)| *step);
        // A run that was killed or failed goes on from its checkpoint, whatever its status said last.
        let known = if matches!(self.state, RunState::Killed | RunState::Failed) {
            of_checkpoint.or(Some(0))
        } else {
            of_status.or(of_checkpoint)
        };
        known.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::testing::record;
    use crate::run_dir::RunDir;
    use crate::status::StatusFile;

    fn run_in(root: &Path) -> RunDir {
        let run = RunDir::open(root).unwrap();
        run.record_start(crate::run_dir::testing::start(0)).unwrap();
        run
    }

    #[test]
    fn a_run_is_running_while_it_is_held_and_killed_if_it_never_said_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let state = || RunView::open(dir.path()).unwrap().unwrap().state;
        let mut status = StatusFile::new(run.paths().status(), 0, 10);
        status.enter(RunPhase::Training).unwrap();
        assert_eq!(state(), RunState::Running);
        drop(run);
        assert_eq!(state(), RunState::Killed);
        for (phase, expected) in [
            (RunPhase::Done, RunState::Done),
            (RunPhase::Stopped, RunState::Stopped),
            (RunPhase::Failed, RunState::Failed),
        ] {
            status.end(phase, None).unwrap();
            assert_eq!(state(), expected);
        }
        fs::remove_file(RunPaths::new(dir.path()).status()).unwrap();
        assert_eq!(state(), RunState::Idle);
    }

    #[test]
    fn looking_at_a_run_does_not_keep_it_from_being_started() {
        let dir = tempfile::tempdir().unwrap();
        drop(run_in(dir.path()));
        let looking = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while looking.load(std::sync::atomic::Ordering::Relaxed) {
                    RunLock::is_held(dir.path());
                }
            });
            for _ in 0..200 {
                drop(RunDir::open(dir.path()).unwrap());
            }
            looking.store(false, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_killed_run_stands_where_its_checkpoint_is() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        fs::create_dir(run.paths().checkpoints().join("step-000000020")).unwrap();
        fs::write(run.paths().metrics(), serde_json::to_string(&record(30)).unwrap() + "\n{\"step\": 31").unwrap();
        let mut status = StatusFile::new(run.paths().status(), 0, 100);
        status.enter(RunPhase::Training).unwrap();
        status.step(33).unwrap();
        status.enter(RunPhase::Training).unwrap();
        let view = || RunView::open(dir.path()).unwrap().unwrap();
        assert_eq!((view().step(), view().metrics.unwrap()), (33, record(30)));
        drop(run);
        assert_eq!((view().state, view().step()), (RunState::Killed, 20));
    }

    #[test]
    fn a_directory_of_runs_is_listed_by_name_with_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            run_in(&dir.path().join(name));
        }
        fs::create_dir(dir.path().join("no-run")).unwrap();
        fs::create_dir(dir.path().join("torn")).unwrap();
        fs::write(dir.path().join("torn/run.json"), "{").unwrap();
        let (runs, unread) = RunView::all_in(dir.path()).unwrap();
        let names: Vec<_> = runs.iter().map(|run| run.paths.root().file_name().unwrap().to_owned()).collect();
        assert_eq!((names, unread.len()), (vec!["a".into(), "b".into()], 1));
        assert_eq!(RunView::all_in(&dir.path().join("a")).unwrap().0.len(), 1, "a run is its own list");
        assert!(RunView::all_in(&dir.path().join("nowhere")).is_err());
    }
}
