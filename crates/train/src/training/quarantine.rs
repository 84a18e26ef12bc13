//! `unreadable.jsonl` of a run: every sample that could not be read, once, with its reason.
//!
//! Another sample takes the place of such a one each time it is met, epoch after epoch and start after start; a person wants to
//! be told once, and to have a list to repair or remove by. A list that cannot be written never ends a run.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use ddpm_data::Unreadable;
use ddpm_run::jsonl::JsonLines;
use ddpm_run::{RunPaths, clock};
use serde::{Deserialize, Serialize};

use crate::error::in_one_line;

/// The list, and what stands in it.
#[derive(Debug)]
pub(super) struct Quarantine {
    path: PathBuf,
    known: HashSet<(String, String)>,
    /// Opened for the first sample; most runs have none.
    lines: Option<JsonLines>,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// UTC, RFC 3339.
    time: String,
    /// The step that needed it.
    step: u64,
    /// Its index in the source.
    index: usize,
    /// Its name: a path, or a file and a row.
    sample: String,
    /// Why it could not be read.
    reason: String,
}

impl Quarantine {
    /// Of the run at `paths`, with what its earlier starts met.
    pub(super) fn of_run(paths: &RunPaths) -> Self {
        let path = paths.unreadable();
        let known: HashSet<_> = read(&path).into_iter().map(|line| (line.sample, line.reason)).collect();
        if !known.is_empty() {
            let (count, path) = (known.len(), path.display());
            tracing::info!(count, "images that could not be read at earlier starts: {count}, in {path}");
        }
        Self { path, known, lines: None }
    }

    /// Takes in the samples that `step` met; those that are new are named.
    pub(super) fn add(&mut self, step: u64, unreadable: Vec<Unreadable>) {
        for Unreadable { index, id, reason } in unreadable {
            if !self.known.insert((id.clone(), reason.clone())) {
                continue;
            }
            let sample = Unreadable { index, id: id.clone(), reason: reason.clone() };
            tracing::warn!(index, "{sample} (another image takes its place; data.on_corrupt = \"skip\")");
            let line = Line { time: clock::now(), step, index, sample: id, reason };
            if let Err(error) = self.write(&line) {
                tracing::warn!("the list of unreadable images was not written: {}", in_one_line(&error));
            }
        }
    }

    fn write(&mut self, line: &Line) -> Result<(), ddpm_run::RunError> {
        let lines = match &mut self.lines {
            Some(lines) => lines,
            None => self.lines.insert(JsonLines::append(&self.path)?),
        };
        lines.write(line)
    }
}

/// The lines of a file; those that cannot be understood, and a file that cannot be read, are left aside.
fn read(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn unreadable(index: usize, reason: &str) -> Unreadable {
        Unreadable { index, id: format!("{index}\n.png"), reason: reason.into() }
    }

    #[test]
    fn a_sample_stands_in_the_list_once_over_all_starts() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path());
        Quarantine::of_run(&paths).add(3, vec![unreadable(1, "torn"), unreadable(2, "torn"), unreadable(1, "torn")]);
        let mut again = Quarantine::of_run(&paths);
        again.add(9, vec![unreadable(2, "torn"), unreadable(2, "gone")]);
        let lines = read(&paths.unreadable());
        let found: Vec<_> = lines.iter().map(|line| (line.step, line.index, line.reason.as_str())).collect();
        assert_eq!(found, [(3, 1, "torn"), (3, 2, "torn"), (9, 2, "gone")]);
        assert_eq!((again.known.len(), lines[0].sample.as_str()), (3, "1\n.png"));
    }

    #[test]
    fn a_list_that_cannot_be_written_ends_nothing() {
        let mut list = Quarantine::of_run(&RunPaths::new("/sys/no-such-run"));
        list.add(1, vec![unreadable(1, "torn")]);
        assert_eq!(list.known.len(), 1);
    }
}
