//! Single images in a folder, each written as soon as it is made. Killed on the way, the same command goes on: a file beside the
//! images says what they are, until all are there. Where pictures of another command are, nothing is drawn.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use ddpm_run::disk::remove_any;
use ddpm_run::durable::{io_help, replace_file};
use ddpm_run::{RunError, RunLock};
use ddpm_train::drawing::Images;
use ddpm_train::report::pictures::{encode, single, write};
use serde_json::Value;

use super::places::file_name;
use crate::failure::{ExitCode, Failure};

/// Says which images an unfinished folder holds.
const UNFINISHED: &str = ".unfinished.json";

/// See the module.
pub(super) struct Series<'a> {
    folder: &'a Path,
    goes_on: bool,
    /// No other process draws into it.
    lock: RunLock,
}

impl<'a> Series<'a> {
    /// The first `num` images that `what` describes, in `folder`, which exists. Those that are there count if `may_go_on`.
    pub(super) fn begin(folder: &'a Path, num: usize, what: &Value, may_go_on: bool) -> Result<Self, Failure> {
        let lock = RunLock::acquire(folder).map_err(|error| match error {
            RunError::Locked { holder, .. } => {
                let message = format!("--out {}: held by {holder}", folder.display());
                let hint = "another process draws into it: wait until it has ended, or name another folder";
                Failure::new(ExitCode::Locked, message).hint(hint)
            }
            other => ddpm_train::Error::from(other).into(),
        })?;
        let path = folder.join(UNFINISHED);
        let there: Option<Value> = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let series = Self { folder, lock, goes_on: may_go_on && there.as_ref() == Some(what) };
        if !series.goes_on {
            // Whatever is there once the file says what it is must be of this command.
            if let Some(first) = series.pictures(num).into_iter().min() {
                let message = format!("--out {}: {} is there already", folder.display(), file_name(first));
                let hint = "name a new folder, or remove its pictures first: nothing is overwritten";
                // What matters is the refusal.
                let _ = series.lock.release_without_trace();
                return Err(Failure::new(ExitCode::Usage, message).hint(hint));
            }
            replace_file(&path, what.to_string().as_bytes())
                .map_err(|error| failed(&path, "cannot be written", &error))?;
        }
        Ok(series)
    }

    /// Which of the first `num` images are there.
    pub(super) fn there(&self, num: usize) -> HashSet<usize> {
        if self.goes_on { self.pictures(num) } else { HashSet::new() }
    }

    /// The numbers below `num` whose pictures are in the folder, whoever drew them.
    fn pictures(&self, num: usize) -> HashSet<usize> {
        let number = |name: &str| name.strip_suffix(".png")?.parse::<usize>().ok();
        let entries = fs::read_dir(self.folder).into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| number(entry.file_name().to_str()?));
        numbers.filter(|&k| k < num && self.path(k).is_file()).collect()
    }

    /// Writes images, of which the first has this number.
    pub(super) fn keep(&self, first: usize, images: &Images) -> Result<(), Failure> {
        let [_, height, width, channels] = images.shape;
        for (k, image) in images.pixels.chunks_exact(height * width * channels).enumerate() {
            write(&self.path(first + k), &encode(&single(image, [height, width, channels])?)?)?;
        }
        Ok(())
    }

    /// All images are there.
    pub(super) fn end(self) -> Result<(), Failure> {
        let path = self.folder.join(UNFINISHED);
        remove_any(&path).map_err(|error| failed(&path, "cannot be removed", &error))?;
        self.lock.remove().map_err(|error| failed(self.folder, "the lock cannot be removed", &error))
    }

    /// The file of the image of this number.
    pub(super) fn path(&self, k: usize) -> PathBuf {
        self.folder.join(file_name(k))
    }
}

fn failed(path: &Path, what: &str, error: &std::io::Error) -> Failure {
    Failure::caused_by(ExitCode::Other, format!("{}: {what}", path.display()), error).hint(io_help(error, path))
}
