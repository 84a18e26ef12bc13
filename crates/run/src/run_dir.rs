//! A run's directory with its lock: the holder of a [`RunDir`] may write there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::checkpoint::{self, CheckpointError};
use crate::disk;
use crate::durable::replace_file;
use crate::error::RunError;
use crate::lock::RunLock;
use crate::paths::RunPaths;
use crate::record::{RunRecord, StartFacts};

/// A run directory that this process alone may write, until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    paths: RunPaths,
    /// Always there but while it is dropped.
    lock: Mutex<Option<RunLock>>,
    /// The directories that were missing, the outermost first.
    created: Vec<PathBuf>,
    begun: AtomicBool,
    /// What was written, to be written again where the directory has to be made again.
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    config: Option<String>,
    record: Option<RunRecord>,
}

impl RunDir {
    /// Takes the lock and makes the places; see [`RunDir::claim`] and [`RunDir::begin`].
    ///
    /// # Errors
    /// [`RunError::Locked`] if another process holds it; otherwise the place cannot be written.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RunError> {
        let run = Self::claim(root)?;
        run.begin()?;
        Ok(run)
    }

    /// Takes the lock, for which the directory is created if it is missing. If the start is refused after all, dropping the
    /// claim leaves everything as it was.
    ///
    /// # Errors
    /// As [`RunDir::open`].
    pub fn claim(root: impl Into<PathBuf>) -> Result<Self, RunError> {
        let paths = RunPaths::new(root);
        let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let mut created: Vec<_> = paths.root().ancestors().take_while(missing).map(Path::to_owned).collect();
        created.reverse();
        create_dir(paths.root())?;
        let lock = RunLock::acquire(paths.root()).inspect_err(|_| remove_empty(&created))?;
        let (lock, written) = (Mutex::new(Some(lock)), Mutex::default());
        Ok(Self { paths, lock, created, begun: AtomicBool::new(false), written })
    }

    /// Makes its sub-directories: from now on it is a run.
    ///
    /// # Errors
    /// The place cannot be written.
    pub fn begin(&self) -> Result<(), RunError> {
        self.begun.store(true, Ordering::Relaxed);
        [self.paths.checkpoints(), self.paths.events(), self.paths.samples()].iter().try_for_each(|dir| create_dir(dir))
    }

    /// Makes the directory again, with configuration and record, where it was removed or another disk was mounted over it.
    /// Returns whether that was so. To be called before a checkpoint is written.
    ///
    /// # Errors
    /// [`RunError::Locked`] if another process has the run now; otherwise the place cannot be written.
    pub fn make_again_if_gone(&self) -> Result<bool, RunError> {
        let mut lock = self.held();
        match lock.as_ref() {
            Some(held) if held.is_lost() => return Err(held.taken_over()),
            Some(held) if held.is_in_place() => return Ok(false),
            _ => {}
        }
        create_dir(self.paths.root())?;
        *lock = Some(RunLock::acquire(self.paths.root())?);
        self.begin()?;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = written.config.as_ref().filter(|_| !self.paths.config().exists()) {
            write_config(&self.paths.config(), text)?;
        }
        if let Some(record) = written.record.as_ref().filter(|_| !self.paths.record().exists()) {
            record.write(&self.paths.record())?;
        }
        let root = self.paths.root().display();
        tracing::warn!(
            "{root} is gone: removed, or hidden by another disk. It is made again, and the next checkpoint is saved there; what was in \
             it is lost"
        );
        Ok(true)
    }

    /// See [`checkpoint::put_back`].
    ///
    /// # Errors
    /// It cannot be put back.
    pub fn put_back(&self) -> Result<(), CheckpointError> {
        self.held().as_ref().map_or(Ok(()), |lock| checkpoint::put_back(&self.paths.checkpoints(), lock))
    }

    /// See [`checkpoint::remove_stale`].
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove_stale(&self) -> Result<Vec<String>, CheckpointError> {
        self.held().as_ref().map_or(Ok(Vec::new()), |lock| checkpoint::remove_stale(&self.paths.checkpoints(), lock))
    }

    fn held(&self) -> MutexGuard<'_, Option<RunLock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where its files are.
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }

    /// Writes the resolved configuration under a line that names the program version.
    ///
    /// # Errors
    /// The file cannot be written; the old one is untouched.
    pub fn write_config(&self, resolved_toml: &str) -> Result<(), RunError> {
        let text = format!("# Resolved by ddpm {}.\n{resolved_toml}", env!("CARGO_PKG_VERSION"));
        write_config(&self.paths.config(), &text)?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).config = Some(text);
        Ok(())
    }

    /// Notes this start in `run.json`: the run's creation, or a restart at `start.step`. Returns the whole record.
    ///
    /// # Errors
    /// The file cannot be written, or an existing one cannot be understood.
    pub fn record_start(&self, start: StartFacts) -> Result<RunRecord, RunError> {
        let path = self.paths.record();
        let record = match RunRecord::read(&path)? {
            Some(record) => record.restarted(start),
            None => RunRecord::created(start),
        };
        record.write(&path)?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).record = Some(record.clone());
        Ok(record)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Some(lock) = self.held().take()
            && !self.begun.load(Ordering::Relaxed)
        {
            // The refusal is the error to report.
            let _ = lock.release_without_trace();
            remove_empty(&self.created);
        }
    }
}

fn create_dir(path: &Path) -> Result<(), RunError> {
    disk::create_dir_all(path).map_err(RunError::io("create the directory", path))
}

/// Removes the directories that are empty, the last one first.
fn remove_empty(created: &[PathBuf]) {
    // Not with all in it: another process may have begun there.
    created.iter().rev().for_each(|dir| drop(disk::remove_empty_dir(dir)));
}

fn write_config(path: &Path, text: &str) -> Result<(), RunError> {
    replace_file(path, text.as_bytes()).map_err(RunError::io("write the configuration", path))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A start at `step`.
    pub(crate) fn start(step: u64) -> StartFacts {
        let command = vec!["ddpm".into(), "train".into(), "a b.toml".into()];
        StartFacts { step, device: "cpu".into(), command, accepted: Vec::new(), reason: None, changed_data: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::testing::start;
    use super::*;

    #[test]
    fn opening_creates_the_places_and_locks_them_against_a_second_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("runs/first");
        let run = RunDir::open(&root).unwrap();
        assert!(run.paths().checkpoints().is_dir() && run.paths().samples().is_dir() && run.paths().events().is_dir());
        let error = RunDir::open(&root).unwrap_err();
        assert!(matches!(error, RunError::Locked { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(run);
        RunDir::open(&root).unwrap();
    }

    #[test]
    fn a_claim_that_is_given_up_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunDir::claim(dir.path().join("runs/deep/first")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let root = dir.path().join("theirs");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("notes.txt"), "kept").unwrap();
        drop(RunDir::claim(&root).unwrap());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);

        let held = RunDir::open(&root).unwrap();
        RunDir::claim(&root).unwrap_err();
        assert!(root.join("LOCK").exists() && held.paths().samples().is_dir());
    }

    #[test]
    fn a_directory_that_was_removed_is_made_again_with_what_was_written_and_locked_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let run = RunDir::open(&root).unwrap();
        run.write_config("[train]\nlr = 1e-4\n").unwrap();
        let id = run.record_start(start(0)).unwrap().id;
        assert!(!run.make_again_if_gone().unwrap());
        fs::rename(&root, dir.path().join("moved")).unwrap();
        assert!(run.make_again_if_gone().unwrap());
        assert!(fs::read_to_string(run.paths().config()).unwrap().contains("lr = 1e-4"));
        assert_eq!(RunRecord::read(&run.paths().record()).unwrap().unwrap().id, id);
        assert!(run.paths().checkpoints().is_dir());
        assert!(matches!(RunDir::claim(&root), Err(RunError::Locked { .. })));
        assert!(!run.make_again_if_gone().unwrap());

        fs::remove_dir_all(&root).unwrap();
        let other = RunDir::open(&root).unwrap();
        assert!(matches!(run.make_again_if_gone(), Err(RunError::Locked { .. })));
        drop(other);
    }

    #[test]
    fn a_file_where_the_run_should_be_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("occupied");
        fs::write(&root, "").unwrap();
        let error = RunDir::open(&root).unwrap_err();
        assert!(error.to_string().contains("cannot create the directory"), "{error}");
        assert!(error.help().contains("a file stands where a directory is needed"), "{}", error.help());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_read_only_place_is_explained() {
        let error = RunDir::open("/sys/ddpm-run").unwrap_err();
        assert!(error.help().contains("not writable"), "{error}: {}", error.help());
    }

    #[test]
    fn the_configuration_carries_the_program_version_and_stays_toml() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        run.write_config("[train]\nlr = 1e-4\n").unwrap();
        let text = fs::read_to_string(run.paths().config()).unwrap();
        assert!(text.starts_with(concat!("# Resolved by ddpm ", env!("CARGO_PKG_VERSION"))), "{text}");
        assert_eq!(toml::from_str::<toml::Table>(&text).unwrap()["train"]["lr"].as_float(), Some(1e-4));
    }

    #[test]
    fn restarts_are_added_to_the_record_of_the_creation() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let created = run.record_start(start(0)).unwrap();
        run.record_start(start(200)).unwrap();
        let record = RunRecord::read(&run.paths().record()).unwrap().unwrap();
        assert_eq!((&record.id, &record.created, record.command.len()), (&created.id, &created.created, 3));
        assert_eq!(record.restarts.iter().map(|restart| restart.step).collect::<Vec<_>>(), [200]);
        assert!(created.restarts.is_empty());
    }

    #[test]
    fn a_record_that_is_no_json_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        fs::write(run.paths().record(), "torn {").unwrap();
        let error = run.record_start(start(0)).unwrap_err();
        assert!(error.to_string().contains("run.json"), "{error}");
        assert_eq!(fs::read_to_string(run.paths().record()).unwrap(), "torn {");
    }
}
