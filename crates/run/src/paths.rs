//! Where each file of a run is.
//!
//! ```text
//! runs/NAME/   config.toml  run.json  metrics.jsonl  log.jsonl  events/  checkpoints/  samples/  hub/  engines.json
//!              status.json  divergence/  unreadable.jsonl  LOCK
//! ```
//! [`RunPaths`] only knows names, for readers; a writer holds a [`RunDir`](crate::RunDir).

use std::path::{Path, PathBuf};

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

    /// The run that the checkpoint at `path` belongs to, and its step; none if the name is not a checkpoint's. Does not look
    /// whether a run is there.
    pub fn of_checkpoint(path: &Path) -> Option<(Self, u64)> {
        let step = parse_dir_name(path.file_name()?.to_str()?)?;
        Some((Self::new(path.parent()?.parent()?), step))
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// See [`RunRecord`](crate::RunRecord).
    pub fn record(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// See [`Status`](crate::Status).
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    /// One line per logged step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The structured log.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// The samples that could not be read.
    pub fn unreadable(&self) -> PathBuf {
        self.root.join("unreadable.jsonl")
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

    /// Which candidates were chosen on a GPU.
    pub fn engines(&self) -> PathBuf {
        self.root.join("engines.json")
    }

    /// Pushes to the hub that are not done yet.
    pub fn uploads(&self) -> PathBuf {
        self.root.join("hub")
    }

    /// The report on the divergence at `step`.
    pub fn divergence(&self, step: u64) -> PathBuf {
        self.root.join("divergence").join(dir_name(step))
    }

    /// The sample grid of `step`.
    pub fn sample(&self, step: u64) -> PathBuf {
        self.samples().join(format!("{}.png", dir_name(step)))
    }
}

/// The directory name of the checkpoint at `step`: zero-padded, so that names sort as steps do.
pub(crate) fn dir_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// The step a directory name stands for; `None` for any name that [`dir_name`] does not produce.
pub(crate) fn parse_dir_name(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (dir_name(step) == name).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_names_sort_as_steps_and_only_canonical_ones_are_read() {
        assert_eq!(dir_name(10_000), "step-000010000");
        assert_eq!(parse_dir_name("step-000010000"), Some(10_000));
        assert_eq!(parse_dir_name(&dir_name(12_345_678_901)), Some(12_345_678_901));
        for name in
            ["step-10000", "step-", "step-+00000001", ".tmp-step-000000001", "step-000000001x", "step-0000000001"]
        {
            assert_eq!(parse_dir_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_checkpoint_knows_its_run_by_its_place() {
        let (run, step) = RunPaths::of_checkpoint(Path::new("runs/a/checkpoints/step-000000020")).expect("it is one");
        assert_eq!((run.root(), step), (Path::new("runs/a"), 20));
        assert_eq!(RunPaths::of_checkpoint(Path::new("runs/a")), None);
    }
}
