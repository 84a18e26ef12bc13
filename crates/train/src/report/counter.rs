//! Progress of work that is counted and is no run: a bar on a terminal, now and then a line elsewhere.

use std::io::{Write, stderr};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::progress::{Verbosity, bar, format_duration};
use super::terminal::Terminal;

/// Without a terminal there is a line after each so long a time.
const BETWEEN_LINES: Duration = Duration::from_secs(20);

/// See the module.
pub struct Counter {
    display: Display,
    unit: &'static str,
    total: u64,
    started: Instant,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

impl Counter {
    /// Of `total` pieces of work, each called a `unit`.
    pub fn new(terminal: Terminal, verbosity: Verbosity, total: u64, unit: &'static str) -> Self {
        let started = Instant::now();
        let display = match verbosity {
            Verbosity::Quiet => Display::Nothing,
            _ if terminal.interactive => Display::Bar(bar(terminal.colour, 0, total)),
            _ => Display::Lines { last: started },
        };
        Self { display, unit, total, started }
    }

    /// `done` pieces are done; `status` is what is known so far.
    pub fn set(&mut self, done: u64, status: &str) {
        let Self { unit, total, started, .. } = self;
        let left = started.elapsed().as_secs_f64() * total.saturating_sub(done) as f64 / done.max(1) as f64;
        let left = Duration::try_from_secs_f64(left).map_or_else(|_| "?".to_owned(), format_duration);
        let left = format!("{left} left");
        let parts = [*unit, status, left.as_str()].into_iter().filter(|part| !part.is_empty());
        let status = parts.collect::<Vec<_>>().join("  ");
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(status);
            }
            Display::Lines { last } if last.elapsed() >= BETWEEN_LINES => {
                *last = Instant::now();
                // A closed stderr must not end the work.
                let _ = writeln!(stderr(), "{done} of {total} {status}");
            }
            Display::Lines { .. } | Display::Nothing => {}
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}
