//! All that a run has logged, for plots and comparisons: `metrics.jsonl` read from its beginning, a line at a time.
//!
//! A number has the name of its place in the line (`loss`, `loss_parts.mse`, `loss_quartile.1`, `timing.images_per_s`), or only the
//! last part of that. Lines are read as JSON and not as [`MetricRecord`](crate::metrics::MetricRecord): a loss that was not finite is
//! `null` there, and other versions may log other numbers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A line is read no further than this; ours have some 500 bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Calls `take` with the step and the record of every line of the file at `path`. What is no record of a step is passed over, such as
/// a last line that is being written.
///
/// # Errors
/// The file cannot be read; that there is none is no error.
pub fn read(path: &Path, mut take: impl FnMut(u64, Value)) -> io::Result<()> {
    Follower::new(path).read(|news| match news {
        News::Anew => {}
        News::Record(step, record) => take(step, record),
    })
}

/// What a [`Follower`] finds.
#[derive(Debug, PartialEq)]
pub enum News {
    /// The file begins anew, such as after a run went back: what was read before no longer holds.
    Anew,
    /// The step and the record of a line.
    Record(u64, Value),
}

/// Reads a file that grows: each time the whole lines that came since.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// How far it was read, and of which file: its device and number.
    read: Option<(u64, (u64, u64))>,
}

impl Follower {
    /// Of the file at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: None }
    }

    /// Calls `take` with what is new.
    ///
    /// # Errors
    /// The file cannot be read; that there is none is no error.
    pub fn read(&mut self, mut take: impl FnMut(News)) -> io::Result<()> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let metadata = file.metadata()?;
        let which = (metadata.dev(), metadata.ino());
        let known = self.read.filter(|(end, read)| *read == which && *end <= metadata.len());
        let mut end = known.map_or(0, |(end, _)| end);
        if known.is_none() {
            take(News::Anew);
        }
        let mut lines = BufReader::new(file);
        lines.seek(SeekFrom::Start(end))?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
            // The rest of a line that is being written comes next time.
            if count == 0 || (line.last() != Some(&b'\n') && (count as u64) < LONGEST_LINE) {
                self.read = Some((end, which));
                return Ok(());
            }
            end += count as u64;
            if let Ok(record) = serde_json::from_slice::<Value>(&line)
                && let Some(step) = record["step"].as_u64()
            {
                take(News::Record(step, record));
            }
        }
    }
}

/// The number of this name in a record; none if there is none, or it was not finite.
pub fn number(record: &Value, name: &str) -> Option<f64> {
    let mut found = None;
    each(record, "", &mut |path, value| {
        if found.is_none() && is_called(path, name) {
            found = Some(value.as_f64());
        }
    });
    found.flatten()
}

/// The names of the numbers in a record.
pub fn names(record: &Value) -> Vec<String> {
    let mut names = Vec::new();
    each(record, "", &mut |path, _| names.push(path.to_owned()));
    names
}

/// Whether the number at `path` may be called `name`.
fn is_called(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|before| before.ends_with('.'))
}

/// Calls `take` with the path of every number, also of one that was not finite.
fn each(value: &Value, path: &str, take: &mut impl FnMut(&str, &Value)) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Number(_) | Value::Null => take(path, value),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| each(value, &below(name), take)),
        Value::Array(values) => {
            values.iter().zip(1..).for_each(|(value, number)| each(value, &below(&number.to_string()), take));
        }
        Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::metrics::testing::record;

    #[test]
    fn a_number_has_the_name_of_its_place_or_the_last_part_of_it() {
        let line = json!(record(30));
        let found = |name: &str| number(&line, name);
        assert_eq!((found("loss"), found("lr")), (Some(record(30).loss), Some(2e-4)));
        assert_eq!((found("loss_parts.mse"), found("mse")), (Some(0.1), Some(0.1)));
        assert_eq!((found("timing.images_per_s"), found("images_per_s")), (Some(812.5), Some(812.5)));
        assert_eq!((found("loss_quartile.1"), found("loss_quartile.2"), found("oss")), (Some(0.3), None, None));
        let names = names(&line);
        assert!(names.contains(&"loss_parts.vlb".into()) && names.contains(&"loss_quartile.2".into()), "{names:?}");
    }

    #[test]
    fn a_file_that_grows_is_read_once_and_one_that_was_cut_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut follower = Follower::new(&path);
        let mut news = || {
            let mut steps: Vec<u64> = Vec::new();
            follower
                .read(|news| match news {
                    News::Anew => steps.push(0),
                    News::Record(step, _) => steps.push(step),
                })
                .unwrap();
            steps
        };
        assert!(news().is_empty());
        let line = |step: u64| format!("{{\"step\":{step}}}\n");
        std::fs::write(&path, line(1) + &line(2)[..5]).unwrap();
        assert_eq!((news(), news()), (vec![0, 1], vec![]));
        std::fs::write(&path, line(1) + &line(2) + &line(3)).unwrap();
        assert_eq!(news(), [2, 3]);
        // As a run does that goes back: another file of that name, which soon is as long as the first.
        crate::durable::replace_file(&path, (line(1) + &line(4) + &line(5) + &line(6)).as_bytes()).unwrap();
        assert_eq!(news(), [0, 1, 4, 5, 6]);
        std::fs::write(&path, line(1)).unwrap();
        assert_eq!(news(), [0, 1]);
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let steps = || {
            let mut steps = Vec::new();
            read(&path, |step, record| steps.push((step, number(&record, "loss")))).unwrap();
            steps
        };
        assert_eq!(steps(), []);
        let long = "x".repeat(3 << 20);
        let text =
            format!("{{\"step\":1,\"loss\":0.5}}\nnonsense\n{long}\n[]\n{{\"step\":2,\"loss\":null}}\n{{\"step\":3");
        std::fs::write(&path, text).unwrap();
        assert_eq!(steps(), [(1, Some(0.5)), (2, None)]);
    }
}
