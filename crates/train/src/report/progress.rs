//! What a person sees of a run, on stderr: a bar that redraws itself on a terminal, lines elsewhere.

use std::fmt::{self, Write as _};
use std::io::{Write, stderr};
use std::time::{Duration, Instant};

use ddpm_run::metrics::MetricRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::Terminal;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Warnings only.
    Quiet,
    /// Progress and what matters.
    #[default]
    Normal,
    /// Details too.
    Verbose,
}

/// The progress of one run.
pub struct Progress {
    display: Display,
    verbosity: Verbosity,
    colour: bool,
    total: u64,
    first: u64,
    started: Instant,
}

enum Display {
    Bar(ProgressBar),
    Lines(Box<dyn Write + Send>),
}

impl Progress {
    /// Of a run that has done `first` of `total` steps.
    pub fn new(terminal: Terminal, verbosity: Verbosity, first: u64, total: u64) -> Self {
        let display = if terminal.interactive && verbosity > Verbosity::Quiet {
            Display::Bar(bar(terminal.colour, first, total))
        } else {
            Display::Lines(Box::new(stderr()))
        };
        Self { display, verbosity, colour: terminal.colour, total, first, started: Instant::now() }
    }

    /// A step is done.
    pub fn step(&mut self, step: u64) {
        if let Display::Bar(bar) = &self.display {
            bar.set_position(step);
        }
    }

    /// A step was logged.
    pub fn metrics(&mut self, record: &MetricRecord) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let status = status(record, self.eta(record.step));
        match &mut self.display {
            Display::Bar(bar) => bar.set_message(status),
            Display::Lines(out) => write_line(out, &format!("step {}/{}  {status}", record.step, self.total)),
        }
    }

    /// Something worth a line.
    pub fn say(&mut self, message: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.line(message);
        }
    }

    /// Something worth a line to whoever asked for details.
    pub fn detail(&mut self, message: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.line(message);
        }
    }

    /// Something that is not as it should be; said even when quiet.
    pub fn warn(&mut self, message: &str) {
        let label = if self.colour { "\x1b[1;33mwarning\x1b[0m" } else { "warning" };
        self.line(&format!("{label}: {message}"));
    }

    /// Leaves the last state of the bar standing.
    pub fn finish(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.abandon();
            // indicatif leaves the cursor behind the bar.
            write_line(&mut stderr(), "");
        }
    }

    fn line(&mut self, text: &str) {
        match &mut self.display {
            Display::Bar(bar) => bar.suspend(|| write_line(&mut stderr(), text)),
            Display::Lines(out) => write_line(out, text),
        }
    }

    /// Time left at the mean pace of this process; none is known before its first step.
    fn eta(&self, step: u64) -> Option<Duration> {
        let done = step.checked_sub(self.first).filter(|done| *done > 0)?;
        let left = self.total.saturating_sub(step) as f64;
        Duration::try_from_secs_f64(self.started.elapsed().as_secs_f64() * left / done as f64).ok()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("first", &self.first).field("total", &self.total).finish_non_exhaustive()
    }
}

/// Loss, speed, time left and the share of time spent waiting for data, in one line.
fn status(record: &MetricRecord, eta: Option<Duration>) -> String {
    let mut status = format!("loss {:.4}  {:.0} images/s", record.loss, record.timing.images_per_s);
    if let Some(eta) = eta {
        let _ = write!(status, "  {} left", format_duration(eta));
    }
    let _ = write!(status, "  data wait {:.0}%", 100.0 * record.timing.data_wait);
    status
}

/// The two largest units: `2h05m`, `3m20s`, `12s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, _, _) => format!("{d}d{h:02}h"),
    }
}

pub(super) fn bar(colour: bool, first: u64, total: u64) -> ProgressBar {
    let template = if colour { "{pos}/{len} {bar:20.cyan/dim} {wide_msg}" } else { "{pos}/{len} {bar:20} {wide_msg}" };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_position(first);
    bar
}

/// A closed stderr must not end a run.
fn write_line(out: &mut impl Write, text: &str) {
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::super::testing::record;
    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(verbosity: Verbosity, tell: impl FnOnce(&mut Progress)) -> String {
        let page = Page::default();
        let mut progress = Progress::new(Terminal { interactive: false, colour: false }, verbosity, 100, 200);
        progress.display = Display::Lines(Box::new(page.clone()));
        tell(&mut progress);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    fn everything(progress: &mut Progress) {
        progress.step(110);
        progress.say("saved");
        progress.detail("took 3 ms");
        progress.warn("disk full");
        progress.finish();
    }

    #[test]
    fn verbosity_chooses_what_is_said() {
        assert_eq!(said(Verbosity::Quiet, everything), "warning: disk full\n");
        assert_eq!(said(Verbosity::Normal, everything), "saved\nwarning: disk full\n");
        assert_eq!(said(Verbosity::Verbose, everything), "saved\ntook 3 ms\nwarning: disk full\n");
    }

    #[test]
    fn a_logged_step_is_one_plain_line_with_all_that_matters() {
        let line = said(Verbosity::Normal, |progress| {
            progress.started = Instant::now() - Duration::from_secs(50);
            progress.metrics(&record(150));
        });
        assert_eq!(line, "step 150/200  loss 50.1000  812 images/s  50s left  data wait 1%\n");
        assert_eq!(said(Verbosity::Quiet, |progress| progress.metrics(&record(150))), "");
    }

    #[test]
    fn no_time_left_is_promised_before_the_first_step() {
        let line = said(Verbosity::Normal, |progress| progress.metrics(&record(100)));
        assert!(!line.contains("left"), "{line}");
    }

    #[test]
    fn durations_have_two_units() {
        let words = [12, 200, 7500, 93_600].map(|seconds| format_duration(Duration::from_secs(seconds)));
        assert_eq!(words, ["12s", "3m20s", "2h05m", "1d02h"]);
    }

    #[test]
    fn the_templates_of_the_bar_are_valid() {
        for colour in [false, true] {
            let bar = bar(colour, 3, 10);
            assert_eq!((bar.position(), bar.length()), (3, Some(10)));
        }
        ProgressStyle::with_template("{pos}/{len} {bar:20.cyan/dim} {wide_msg}").unwrap();
        ProgressStyle::with_template("{pos}/{len} {bar:20} {wide_msg}").unwrap();
    }
}
