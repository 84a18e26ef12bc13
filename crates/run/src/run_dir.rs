//! A run's directory with its lock: the holder of a [`RunDir`] may write there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::durable::replace_file;
use crate::error::RunError;
use crate::lock::RunLock;
use crate::paths::RunPaths;
use crate::record::{RunRecord, StartFacts};

/// A run directory that this process alone may write, until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    paths: RunPaths,
    lock: RunLock,
}

impl RunDir {
    /// Creates the directory and its sub-directories where they are missing, and takes the lock.
    ///
    /// # Errors
    /// [`RunError::Locked`] if another process holds it; otherwise the place cannot be written.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RunError> {
        let paths = RunPaths::new(root);
        create_dir(paths.root())?;
        let lock = RunLock::acquire(paths.root())?;
        for dir in [paths.checkpoints(), paths.events(), paths.samples()] {
            create_dir(&dir)?;
        }
        Ok(Self { paths, lock })
    }

    /// Where its files are.
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }

    /// The proof that this process holds the run.
    pub fn lock(&self) -> &RunLock {
        &self.lock
    }

    /// Writes the resolved configuration under a line that names the program version.
    ///
    /// # Errors
    /// The file cannot be written; the old one is untouched.
    pub fn write_config(&self, resolved_toml: &str) -> Result<(), RunError> {
        let path = self.paths.config();
        let text = format!("# Resolved by ddpm {}.\n{resolved_toml}", env!("CARGO_PKG_VERSION"));
        replace_file(&path, text.as_bytes()).map_err(RunError::io("write the configuration", &path))
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
        Ok(record)
    }
}

fn create_dir(path: &Path) -> Result<(), RunError> {
    fs::create_dir_all(path).map_err(RunError::io("create the directory", path))
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
