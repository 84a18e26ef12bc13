//! A run's directory: where each file is, who may write there, and who started it when.
//!
//! ```text
//! runs/NAME/   config.toml  run.json  metrics.jsonl  log.jsonl  events/  checkpoints/  samples/  hub/  engines.json  LOCK
//! ```
//! [`RunPaths`] only knows names, for whoever reads a run. [`RunDir`] holds the lock and may write. The lock is the
//! kernel's (`flock`), so a killed process never leaves a run locked; what stands in the file is for people.

mod error;
mod lock;
mod record;

use std::fs;
use std::path::{Path, PathBuf};

pub use error::RunDirError;
pub use lock::RunLock;
pub(crate) use lock::host_name;
pub use record::{Restart, RunRecord, Start};

use crate::checkpoint;
use crate::durable::replace_file;

/// The names inside a run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    root: PathBuf,
}

impl RunPaths {
    /// Of the run in `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// See [`RunRecord`].
    pub fn record(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// One line per logged step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The structured log.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// TensorBoard's directory.
    pub fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    /// See [`crate::checkpoint`].
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Sample grids.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// The fastest algorithms of a GPU's libraries.
    pub fn engines(&self) -> PathBuf {
        self.root.join("engines.json")
    }

    /// Pushes to the hub that are not done yet.
    pub fn uploads(&self) -> PathBuf {
        self.root.join("hub")
    }

    /// The sample grid of `step`.
    pub fn sample(&self, step: u64) -> PathBuf {
        self.samples().join(format!("{}.png", checkpoint::dir_name(step)))
    }
}

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
    /// [`RunDirError::Locked`] if another process holds it; otherwise the place cannot be written.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RunDirError> {
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
    pub fn write_config(&self, resolved_toml: &str) -> Result<(), RunDirError> {
        let path = self.paths.config();
        let text = format!("# Resolved by ddpm {}.\n{resolved_toml}", env!("CARGO_PKG_VERSION"));
        replace_file(&path, text.as_bytes()).map_err(RunDirError::io("write the configuration", &path))
    }

    /// Notes this start in `run.json`: the run's creation, or a restart at `start.step`.
    ///
    /// # Errors
    /// The file cannot be written, or an existing one cannot be understood.
    pub fn record_start(&self, start: Start) -> Result<RunRecord, RunDirError> {
        let path = self.paths.record();
        let record = match RunRecord::read(&path)? {
            Some(record) => record.restarted(start),
            None => RunRecord::created(start),
        };
        record.write(&path)?;
        Ok(record)
    }
}

fn create_dir(path: &Path) -> Result<(), RunDirError> {
    fs::create_dir_all(path).map_err(RunDirError::io("create the directory", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn start(step: u64) -> Start {
        Start { step, device: "cpu".into(), command: vec!["ddpm".into(), "train".into(), "a b.toml".into()] }
    }

    #[test]
    fn opening_creates_the_places_and_locks_them_against_a_second_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("runs/first");
        let run = RunDir::open(&root).unwrap();
        assert!(run.paths().checkpoints().is_dir() && run.paths().samples().is_dir() && run.paths().events().is_dir());
        let error = RunDir::open(&root).unwrap_err();
        assert!(matches!(error, RunDirError::Locked { .. }), "{error}");
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
