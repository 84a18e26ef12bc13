//! Where the words of a command go: results on stdout (text, or one JSON document), everything else on stderr.
//!
//! A reader that goes away (`ddpm schedule ... | head`) must not end a command with a panic, so writing to a closed
//! pipe is silently given up.

use std::io::{self, Write};

use ddpm_train::config::take_gpu_notices;
use ddpm_train::report::counter::Counter;
use ddpm_train::report::progress::Verbosity;
use ddpm_train::report::terminal::Terminal;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{ExitCode, Failure, Outcome};

/// The document of a command that has a result and fails all the same: the result's fields, and `error`.
#[derive(Serialize)]
struct ResultAndError<'a, T> {
    #[serde(flatten)]
    result: &'a T,
    #[serde(flatten)]
    error: Value,
}

/// What the global options ask for, and what stderr can show.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    verbosity: Verbosity,
    terminal: Terminal,
}

impl Output {
    /// `verbosity` counts `-v` up and `-q` down.
    pub fn new(json: bool, verbosity: i16) -> Self {
        let verbosity = match verbosity {
            ..0 => Verbosity::Quiet,
            0 => Verbosity::Normal,
            1.. => Verbosity::Verbose,
        };
        Self { json, verbosity, terminal: Terminal::detect() }
    }

    /// How much to tell on stderr.
    pub fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// What stderr can show.
    pub fn terminal(&self) -> Terminal {
        self.terminal
    }

    /// Prints the result of a command: `document` on stdout with `--json`, else what `text` returns.
    pub fn result<T: Serialize>(&self, document: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        print(&if self.json { in_json(document)? } else { text() })
    }

    /// Prints a part of a result that is there before the rest: a line on stdout with `--json`, else nothing.
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

    /// Tells something by the way, on stderr; not with `-q`.
    pub fn note(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            write_stderr(text);
        }
    }

    /// Tells a detail, on stderr; only with `-v`.
    pub fn detail(&self, text: &str) {
        if self.verbosity == Verbosity::Verbose {
            write_stderr(text);
        }
    }

    /// Shows how far some work of `total` pieces is, on stderr; not with `-q`.
    pub fn counter(&self, total: usize, unit: &'static str) -> Counter {
        Counter::new(self.terminal, self.verbosity, total as u64, unit)
    }

    /// Warns, on stderr, even with `-q`.
    pub fn warn(&self, text: &str) {
        write_stderr(&format!("{} {text}", self.paint("warning:", "33")));
    }

    /// Warns of what happened on a GPU, unless that has been told.
    pub fn gpu_notices(&self) {
        take_gpu_notices().iter().for_each(|notice| self.warn(notice));
    }

    /// Shows a failure: as JSON on stdout with `--json`, else on stderr.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            // If stdout fails, the exit code is all that is left to tell.
            let _ = write_stdout(&failure.document().to_string());
            return;
        }
        let text = failure.to_string();
        let rest = text.strip_prefix("error:").unwrap_or(&text);
        write_stderr(&format!("{}{rest}", self.paint("error:", "31")));
    }

    /// `text` in bold and in an ANSI colour, where stderr shows colours.
    fn paint(&self, text: &str, colour: &str) -> String {
        if self.terminal.colour { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn in_json<T: Serialize>(document: &T) -> Result<String, Failure> {
    serde_json::to_string(document)
        .map_err(|error| Failure::caused_by(ExitCode::Other, "the result cannot be written as JSON", &error))
}

fn print(text: &str) -> Result<(), Failure> {
    write_stdout(text).map_err(|error| Failure::caused_by(ExitCode::Other, "stdout cannot be written", &error))
}

/// Writes a line to stdout, and gives up quietly when nobody reads.
fn write_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line to stderr, and gives up quietly when nobody reads.
fn write_stderr(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Rows of aligned columns, and the text of them.
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

/// On which side of its column a cell stands.
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

    /// The text: two spaces between columns, no space at the ends of lines.
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
