//! Where a command's output goes: results to stdout (text, or one JSON document), everything else as `tracing` events to the
//! listeners (`listen`), at least to stderr.
//!
//! A reader that closes the pipe (`ddpm schedule ... | head`) must not end a command with a panic, so errors of writing to it
//! are ignored.

use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::failure::{ExitCode, Failure, Outcome};
use crate::listen::counter::Counter;
use crate::listen::screen::{Label, Screen, tame};

/// The document of a command that has a result and fails all the same: the result's fields, and `error`.
#[derive(Serialize)]
struct ResultAndError<'a, T> {
    #[serde(flatten)]
    result: &'a T,
    #[serde(flatten)]
    error: Value,
}

/// The global options' settings, and stderr.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    screen: Arc<Screen>,
    progress: bool,
}

impl Output {
    /// Prints results in JSON or as text; `progress`: whether to show the progress of long work.
    pub(crate) fn new(json: bool, screen: &Arc<Screen>, progress: bool) -> Self {
        Self { json, screen: Arc::clone(screen), progress }
    }

    /// Whether results are printed in JSON.
    #[cfg(feature = "watch")]
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result of a command: `document` on stdout with `--json`, else what `text` returns.
    pub fn result<T: Serialize>(&self, document: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        print(&if self.json { in_json(document)? } else { tame(&text()).into_owned() })
    }

    /// Prints a part of a result that is ready before the rest: a line on stdout with `--json`, else nothing.
    pub fn piece<T: Serialize>(&self, document: &T) -> Result<(), Failure> {
        if self.json { print(&in_json(document)?) } else { Ok(()) }
    }

    /// Prints the result of a command that fails all the same, then the failure on stderr; with `--json` both in the one
    /// document.
    pub fn result_and_failure<T: Serialize>(
        &self,
        document: &T,
        text: impl FnOnce() -> String,
        failure: &Failure,
    ) -> Result<Outcome, Failure> {
        self.result(&ResultAndError { result: document, error: failure.document() }, text)?;
        if !self.json {
            self.failure(failure);
        }
        Ok(Outcome::Failed(failure.code))
    }

    /// Shows the progress of work with `total` pieces, on stderr; not with `-q`.
    pub(crate) fn counter(&self, total: usize, unit: &'static str) -> Counter {
        Counter::new(Some(&self.screen).filter(|_| self.progress), total as u64, unit)
    }

    /// Shows a failure: as JSON on stdout with `--json`, else on stderr.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            // If stdout fails, only the exit code can report it.
            let _ = write_stdout(&failure.document().to_string());
            return;
        }
        let text = failure.to_string();
        let rest = text.strip_prefix("error:").unwrap_or(&text);
        self.screen.labelled(Label::Error, rest.trim_start());
    }
}

fn in_json<T: Serialize>(document: &T) -> Result<String, Failure> {
    serde_json::to_string(document)
        .map_err(|error| Failure::caused_by(ExitCode::Other, "the result cannot be written as JSON", &error))
}

fn print(text: &str) -> Result<(), Failure> {
    write_stdout(text).map_err(|error| Failure::caused_by(ExitCode::Other, "stdout cannot be written", &error))
}

/// Writes a line to stdout; a closed stdout is ignored.
fn write_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Rows of aligned columns, and the text of them.
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

/// The alignment of a cell in its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

impl Table {
    /// An empty table of these columns.
    pub fn new(columns: &[Align]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the columns are not shown.
    pub fn row(&mut self, cells: &[&dyn ToString]) {
        self.rows.push(cells.iter().map(|cell| cell.to_string()).collect());
    }

    /// The table as text: two spaces between columns, no space at the ends of lines.
    pub fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns).zip(&widths).map(|((cell, align), &width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

/// A text, cut where it has more than so many letters.
pub(super) fn short(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_and_a_failure_make_one_document() {
        let failure = Failure::new(ExitCode::Data, "no such folder").hint("make one");
        let both = ResultAndError { result: &json!({"parameters": 7}), error: failure.document() };
        let error = json!({"code": 3, "message": "no such folder", "causes": [], "hint": "make one"});
        assert_eq!(json!(both), json!({"parameters": 7, "error": error}));
    }

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let mut table = Table::new(&[Align::Left, Align::Right]);
        table.row(&[&"shirts", &7]);
        table.row(&[&"bags", &1200]);
        assert_eq!(table.render(), "shirts     7\nbags    1200\n");
    }
}
