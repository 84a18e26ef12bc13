//! One JSON object per line, each handed to the kernel as it is made: a killed run has every line it wrote.
//!
//! `f64` is written as the shortest decimal that reads back to the same bits, so equal files mean equal numbers; a number
//! that is not finite becomes `null`, since JSON has no word for it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::disk::{self, Output};
use crate::durable::{parent_of, replace_file};
use crate::error::RunError;

/// A file that only grows by whole lines.
#[derive(Debug)]
pub struct JsonLines {
    file: Output,
    path: PathBuf,
    /// Bytes of whole lines in the file.
    end: u64,
    /// Lines that a full disk refused; they go first next time.
    pending: Vec<u8>,
    rotation: Option<Rotation>,
}

/// How a file makes room for the next: it is renamed to `NAME.1.jsonl`, that one to `NAME.2.jsonl`, and the last one replaces the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A file that would grow beyond this many bytes is full.
    pub bytes: u64,
    /// Files kept in all, the one that is written included: at least 2.
    pub files: u64,
}

impl Rotation {
    /// The file that was `path` this many files ago.
    pub fn older(path: &Path, age: u64) -> PathBuf {
        if age == 0 { path.to_owned() } else { path.with_extension(format!("{age}.jsonl")) }
    }

    fn turn(self, path: &Path) -> io::Result<()> {
        for age in (0..self.files.saturating_sub(1)).rev() {
            match disk::rename(&Self::older(path, age), &Self::older(path, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl JsonLines {
    /// Opens `path` for appending, creates it if need be, and drops a last line that a kill cut short.
    ///
    /// # Errors
    /// The file cannot be opened, read or cut.
    pub fn append(path: &Path) -> Result<Self, RunError> {
        let opened = open(path).map_err(RunError::io("open the file", path));
        opened.map(|(file, end)| Self { file, path: path.into(), end, pending: Vec::new(), rotation: None })
    }

    /// The same, but a full file makes room for the next.
    ///
    /// # Errors
    /// As [`JsonLines::append`].
    pub fn rotating(path: &Path, rotation: Rotation) -> Result<Self, RunError> {
        Self::append(path).map(|lines| Self { rotation: Some(rotation), ..lines })
    }

    /// Appends `record` as one line.
    ///
    /// # Errors
    /// The disk refuses. The file then still ends with a whole line, and this one is tried again with the next.
    pub fn write(&mut self, record: &impl Serialize) -> Result<(), RunError> {
        serde_json::to_writer(&mut self.pending, record)
            .map_err(io::Error::from)
            .map_err(RunError::io("write the line", &self.path))?;
        self.pending.push(b'\n');
        self.flush()
    }

    /// Hands all lines to the system; the result then makes them durable, on any thread: after that a power failure cannot take
    /// them back.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn syncing(&mut self) -> Result<impl FnOnce() -> Result<(), RunError> + Send + use<>, RunError> {
        self.flush()?;
        let file = self.file.again().map_err(RunError::io("open the file again", &self.path))?;
        let path = self.path.clone();
        Ok(move || file.sync().map_err(RunError::io("sync the file", &path)))
    }

    fn flush(&mut self) -> Result<(), RunError> {
        self.begin_again_if_gone()?;
        self.rotate_if_full();
        if let Err(error) = self.file.write_all(&self.pending) {
            // Part of a line may be there. If even this fails, the next opening cuts it.
            let _ = self.file.set_len(self.end).and_then(|()| self.file.file.seek(SeekFrom::Start(self.end)));
            return Err(RunError::io("write the line", &self.path)(error));
        }
        self.end += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Where files cannot be renamed this one grows: no line is lost for that, and it is tried again when it is full once more.
    fn rotate_if_full(&mut self) {
        let Some(rotation) = &mut self.rotation else { return };
        if self.end == 0 || self.end + self.pending.len() as u64 <= rotation.bytes {
            return;
        }
        match rotation.turn(&self.path).and_then(|()| open(&self.path)) {
            Ok((file, end)) => (self.file, self.end) = (file, end),
            Err(_) => rotation.bytes = rotation.bytes.max(self.end).saturating_mul(2),
        }
    }

    /// A file that was removed, with its directory or under another mount, would take lines that nobody can read. Says nothing: the
    /// log itself is such a file.
    fn begin_again_if_gone(&mut self) -> Result<(), RunError> {
        if self.file.is_at(&self.path) {
            return Ok(());
        }
        let begun = disk::create_dir_all(parent_of(&self.path)).and_then(|()| open(&self.path));
        (self.file, self.end) = begun.map_err(RunError::io("make the file again", &self.path))?;
        Ok(())
    }
}

/// The file at `path`, created if need be, without a last line that a kill cut short; and where its lines end.
fn open(path: &Path) -> io::Result<(Output, u64)> {
    let mut out = Output::open(File::options().read(true).write(true).create(true).truncate(false), path)?;
    let end = end_of_last_line(&mut out.file)?;
    out.set_len(end)?;
    out.file.seek(SeekFrom::Start(end))?;
    Ok((out, end))
}

/// Drops from `path` every line after `step`, and a last line that a kill cut short, so that a run that goes on from the
/// checkpoint of `step` leaves the same file as one that was never stopped. Returns how many lines went.
///
/// # Errors
/// The file cannot be read or replaced; the old one is untouched. No file is no error.
pub fn truncate_after(path: &Path, step: u64) -> Result<usize, RunError> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(RunError::io("read the file", path))?,
    };
    let is_later = |line: &[u8]| serde_json::from_slice(line).is_ok_and(|line: Step| line.step > step);
    let stays = |line: &&[u8]| line.ends_with(b"\n") && !is_later(line);
    let kept: usize = text.split_inclusive(|byte| *byte == b'\n').take_while(stays).map(<[u8]>::len).sum();
    if kept < text.len() {
        replace_file(path, &text[..kept]).map_err(RunError::io("replace the file", path))?;
    }
    Ok(text[kept..].split_inclusive(|byte| *byte == b'\n').count())
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For whoever looks for details.
    Debug,
    /// Worth keeping.
    Info,
    /// Something was not as it should be; the run goes on.
    Warning,
    /// The run ends.
    Error,
}

/// One line of `log.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct LogRecord<'a> {
    /// UTC, RFC 3339.
    pub time: String,
    /// How much it matters.
    pub level: Level,
    /// The step it happened at.
    pub step: u64,
    /// For a person.
    pub message: &'a str,
    /// The module that said it.
    pub target: &'a str,
    /// The spans around it, the outermost first, with colons between them; empty outside of all.
    pub span: String,
    /// The rank that said it: 0 where there is one process.
    pub rank: u64,
    /// For a program.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

impl<'a> LogRecord<'a> {
    /// A line of this moment, of nowhere and without fields.
    pub fn now(level: Level, step: u64, message: &'a str) -> Self {
        let (time, fields) = (clock::now(), serde_json::Map::new());
        Self { time, level, step, message, target: "", span: String::new(), rank: 0, fields }
    }
}

/// Where the last line feed ends, looked for from the end in pieces: a log may be long, a torn line is not.
fn end_of_last_line(file: &mut File) -> io::Result<u64> {
    const PIECE: u64 = 4096;
    let mut end = file.metadata()?.len();
    let mut piece = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        piece.clear();
        file.seek(SeekFrom::Start(start))?;
        file.take(end - start).read_to_end(&mut piece)?;
        if let Some(position) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + position as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::testing::record;

    fn lines_of(steps: &[u64]) -> String {
        steps.iter().map(|step| serde_json::to_string(&record(*step)).unwrap() + "\n").collect()
    }

    #[test]
    fn numbers_come_back_bit_for_bit_and_timing_stands_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut lines = JsonLines::append(&path).unwrap();
        lines.write(&record(7)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(value["loss"].as_f64().unwrap().to_bits(), record(7).loss.to_bits());
        assert_eq!(value["loss_quartile"][3].as_f64().unwrap().to_bits(), (1.0f64 / 3.0).to_bits());
        assert!(value["loss_quartile"][1].is_null());
        assert_eq!(value["timing"]["images_per_s"], 812.5);
        assert!(value.get("images_per_s").is_none());
    }

    #[test]
    fn a_number_that_is_not_finite_is_null_and_the_line_stays_json() {
        let mut diverged = record(1);
        diverged.loss = f64::NAN;
        let value: serde_json::Value = serde_json::from_str(&serde_json::to_string(&diverged).unwrap()).unwrap();
        assert!(value["loss"].is_null());
    }

    #[test]
    fn appending_after_a_kill_drops_the_torn_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let torn = format!("{}{{\"step\": 3, \"lo{}", lines_of(&[1, 2]), "x".repeat(9000));
        fs::write(&path, torn).unwrap();
        JsonLines::append(&path).unwrap().write(&record(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&[1, 2, 3]));

        fs::write(&path, "all torn").unwrap();
        JsonLines::append(&path).unwrap().write(&record(1)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&[1]));
    }

    #[test]
    fn resuming_drops_later_lines_and_the_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for (step, kept) in [(30, vec![10, 20, 30]), (29, vec![10, 20]), (0, vec![]), (99, vec![10, 20, 30])] {
            fs::write(&path, lines_of(&[10, 20, 30]) + "{\"step\": 40").unwrap();
            let dropped = truncate_after(&path, step).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&kept), "step {step}");
            assert_eq!(dropped, 4 - kept.len());
        }
    }

    #[test]
    fn resuming_leaves_a_file_alone_that_needs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(truncate_after(&path, 5).unwrap(), 0);
        assert!(!path.exists());
        fs::write(&path, lines_of(&[1, 2])).unwrap();
        assert_eq!(truncate_after(&path, 2).unwrap(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&[1, 2]));
    }

    #[test]
    fn a_line_that_the_disk_refused_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut lines = JsonLines::append(&path).unwrap();
        lines.write(&record(1)).unwrap();
        let good = std::mem::replace(&mut lines.file, Output::create(Path::new("/dev/full")).unwrap());
        lines.path = "/dev/full".into();
        assert!(lines.write(&record(2)).unwrap_err().help().contains("free disk space"));
        (lines.file, lines.path) = (good, path.clone());
        lines.write(&record(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&[1, 2, 3]));
    }

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let two = lines_of(&[1, 2]).len() as u64;
        let mut lines = JsonLines::rotating(&path, Rotation { bytes: two + 2, files: 3 }).unwrap();
        for step in 1..=9 {
            lines.write(&record(step)).unwrap();
        }
        let read = |age: u64| fs::read_to_string(Rotation::older(&path, age)).unwrap();
        assert_eq!((read(0), read(1), read(2)), (lines_of(&[9]), lines_of(&[7, 8]), lines_of(&[5, 6])));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(Rotation::older(&path, 1).file_name().unwrap(), "log.1.jsonl");
    }

    #[test]
    fn a_file_that_cannot_be_renamed_grows_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        // A directory with something in it stands where the full file would go.
        fs::create_dir(Rotation::older(&path, 1)).unwrap();
        fs::write(Rotation::older(&path, 1).join("file"), "").unwrap();
        let mut lines = JsonLines::rotating(&path, Rotation { bytes: 1, files: 3 }).unwrap();
        fs::create_dir(Rotation::older(&path, 2)).unwrap();
        fs::write(Rotation::older(&path, 2).join("file"), "").unwrap();
        (1..=5).for_each(|step| lines.write(&record(step)).unwrap());
        let all: String =
            [2, 1, 0].iter().filter_map(|age| fs::read_to_string(Rotation::older(&path, *age)).ok()).collect();
        assert_eq!(all, lines_of(&[1, 2, 3, 4, 5]));
    }

    #[test]
    fn a_file_that_was_removed_with_its_directory_begins_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/metrics.jsonl");
        fs::create_dir(dir.path().join("run")).unwrap();
        let mut lines = JsonLines::append(&path).unwrap();
        lines.write(&record(1)).unwrap();
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        lines.write(&record(2)).unwrap();
        lines.write(&record(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&[2, 3]));
    }
}
