//! Progress of counted work other than a run: a bar on a terminal, elsewhere a line now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::progress::format_duration;
use super::screen::Screen;

/// Without a terminal, the time between two lines.
const BETWEEN_LINES: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Counter {
    /// `None`: nothing is shown.
    display: Option<Display>,
    unit: &'static str,
    total: u64,
    started: Instant,
}

struct Display {
    screen: Arc<Screen>,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Counter {
    /// A counter of `total` pieces of work, each called a `unit`; without a screen it shows nothing.
    pub(crate) fn new(screen: Option<&Arc<Screen>>, total: u64, unit: &'static str) -> Self {
        let started = Instant::now();
        let display =
            screen.map(|screen| Display { bar: screen.show_bar(0, total), screen: Arc::clone(screen), last: started });
        Self { display, unit, total, started }
    }

    /// Shows that `done` pieces are done; `status` is the result so far.
    pub(crate) fn set(&mut self, done: u64, status: &str) {
        let Self { unit, total, started, display } = self;
        let Some(display) = display else { return };
        let left = started.elapsed().as_secs_f64() * total.saturating_sub(done) as f64 / done.max(1) as f64;
        let left = Duration::try_from_secs_f64(left).map_or_else(|_| "?".to_owned(), format_duration);
        let left = format!("{left} left");
        let parts = [*unit, status, left.as_str()].into_iter().filter(|part| !part.is_empty());
        let status = parts.collect::<Vec<_>>().join("  ");
        match &display.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(status);
            }
            None if display.last.elapsed() >= BETWEEN_LINES => {
                display.last = Instant::now();
                display.screen.line(&format!("{done} of {total} {status}"));
            }
            None => {}
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(Display { screen, bar: Some(_), .. }) = &self.display {
            screen.clear_bar();
        }
    }
}
