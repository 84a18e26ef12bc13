//! What is seen of a run: read from its files again and again, as little as is needed each time.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ddpm_run::history::{self, Follower, News};
use ddpm_run::jsonl::Rotation;
use ddpm_run::{RunState, RunView};
use image::RgbImage;
use serde::Serialize;
use serde_json::Value;

use crate::curves::curve::Points;
use crate::failure::Failure;
use crate::runs::{name_of, open_run};

/// How much of the end of the log is looked through for warnings.
const TAIL: u64 = 256 << 10;
/// How many of them are kept.
const WARNINGS: usize = 20;

/// See the module.
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) view: RunView,
    /// The logged losses.
    pub(super) losses: Points,
    /// The last logged line.
    pub(super) last: Option<Value>,
    /// The newest first.
    pub(super) warnings: Vec<Warning>,
    pub(super) sample: Option<Sample>,
    /// How long ago its process last said what it does.
    pub(super) age: Option<Duration>,
    metrics: Follower,
    /// Length of the log when warnings were looked for.
    log_read: u64,
}

/// A warning or an error of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Warning {
    pub(super) time: String,
    pub(super) step: u64,
    pub(super) message: String,
}

/// A picture that the run has drawn.
pub(super) struct Sample {
    pub(super) path: PathBuf,
    written: Option<SystemTime>,
    pub(super) picture: RgbImage,
}

impl Seen {
    /// The run in `root`.
    ///
    /// # Errors
    /// There is no run.
    pub(super) fn of(root: &Path) -> Result<Self, Failure> {
        let view = open_run(root)?;
        let metrics = Follower::new(&view.paths.metrics());
        let (losses, warnings) = (Points::new(), Vec::new());
        let name = name_of(root);
        let mut seen = Self { name, view, losses, last: None, warnings, sample: None, age: None, metrics, log_read: 0 };
        seen.look();
        Ok(seen)
    }

    /// Looks again. What cannot be read at this moment stays as it was seen last: a run directory may be on a disk that is away.
    pub(super) fn look(&mut self) {
        let root = self.view.paths.root().to_owned();
        if let Ok(Some(view)) = RunView::open(&root) {
            self.view = view;
        }
        let written = fs::metadata(self.view.paths.status()).and_then(|status| status.modified()).ok();
        self.age = written.and_then(|written| written.elapsed().ok());
        let Self { losses, last, .. } = self;
        let _ = self.metrics.read(|news| match news {
            News::Anew => losses.clear(),
            News::Record(step, record) => {
                losses.extend(history::number(&record, "loss").map(|loss| (step as f64, loss)));
                *last = Some(record);
            }
        });
        let _ = self.look_for_warnings();
        self.look_for_sample();
    }

    /// A number of the last logged line.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        history::number(self.last.as_ref()?, name)
    }

    pub(super) fn is_running(&self) -> bool {
        self.view.state == RunState::Running
    }

    fn look_for_warnings(&mut self) -> io::Result<()> {
        let log = self.view.paths.log();
        let length = fs::metadata(&log)?.len();
        if length == self.log_read {
            return Ok(());
        }
        let mut warnings = Vec::new();
        // A log that has just made room for itself holds none.
        for tail in [tail(&log)?, tail(&Rotation::older(&log, 1)).unwrap_or_default()] {
            warnings.extend(tail.rsplit(|byte| *byte == b'\n').filter_map(Warning::of));
        }
        warnings.truncate(WARNINGS);
        (self.warnings, self.log_read) = (warnings, length);
        Ok(())
    }

    fn look_for_sample(&mut self) {
        let names = fs::read_dir(self.view.paths.samples()).into_iter().flatten().flatten().map(|entry| entry.path());
        // Opening anything else than a file may wait for ever.
        let is_sample = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")) && path.is_file()
        };
        let Some(path) = names.filter(is_sample).max() else { return };
        let written = fs::metadata(&path).and_then(|file| file.modified()).ok();
        if self.sample.as_ref().is_some_and(|sample| sample.path == path && sample.written == written) {
            return;
        }
        if let Ok(picture) = image::open(&path) {
            self.sample = Some(Sample { path, written, picture: picture.into_rgb8() });
        }
    }
}

/// The end of a file.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(tail)
}

impl Warning {
    /// A line of the log, if it is one.
    fn of(line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let is_one = matches!(line["level"].as_str(), Some("warning" | "error"));
        let text = |name: &str| Some(line[name].as_str()?.to_owned());
        let step = line["step"].as_u64().unwrap_or_default();
        is_one.then(|| Some(Self { time: text("time")?, step, message: text("message")? }))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_of_the_log_are_told_from_the_rest() {
        let line = |level: &str| format!(r#"{{"time":"t","level":"{level}","step":7,"message":"disk full"}}"#);
        let warning = Warning { time: "t".to_owned(), step: 7, message: "disk full".to_owned() };
        assert_eq!(Warning::of(line("warning").as_bytes()), Some(warning.clone()));
        assert_eq!(Warning::of(line("error").as_bytes()), Some(warning));
        assert_eq!(Warning::of(line("info").as_bytes()), None);
        assert_eq!(Warning::of(&line("warning").as_bytes()[..30]), None);
    }
}
