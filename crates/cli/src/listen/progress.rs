//! The progress of a run: a bar that redraws itself on a terminal, a line for each logged step elsewhere.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::fields::Fields;
use super::screen::Screen;

/// See the module.
pub(super) struct Progress {
    screen: Arc<Screen>,
    bar: Option<ProgressBar>,
    total: u64,
    first: u64,
    started: Instant,
}

impl Progress {
    /// The progress of a run that has done `first` of `total` steps.
    pub(super) fn new(screen: &Arc<Screen>, first: u64, total: u64) -> Self {
        let bar = screen.show_bar(first, total);
        Self { screen: Arc::clone(screen), bar, total, first, started: Instant::now() }
    }

    /// Shows that `steps` steps are done.
    pub(super) fn step(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// Shows a logged step.
    pub(super) fn logged(&self, fields: &Fields) {
        let step = fields.count("step").unwrap_or_default();
        let status = status(fields, self.eta(step));
        match &self.bar {
            Some(bar) => bar.set_message(status),
            None => self.screen.line(&format!("step {step}/{}  {status}", self.total)),
        }
    }

    /// Time left at the mean pace of this process; unknown before its first step.
    fn eta(&self, step: u64) -> Option<Duration> {
        let done = step.checked_sub(self.first).filter(|done| *done > 0)?;
        let left = self.total.saturating_sub(step) as f64;
        Duration::try_from_secs_f64(self.started.elapsed().as_secs_f64() * left / done as f64).ok()
    }
}

impl Drop for Progress {
    /// Leaves the last state of the bar standing.
    fn drop(&mut self) {
        if self.bar.is_some() {
            self.screen.leave_bar();
        }
    }
}

/// Loss, speed, time left and the share of time spent waiting for data, in one line.
fn status(fields: &Fields, eta: Option<Duration>) -> String {
    let number = |name| fields.number(name).unwrap_or(f64::NAN);
    let mut status = format!("loss {:.4}  {:.0} images/s", number("loss"), number("images_per_s"));
    if let Some(eta) = eta {
        let _ = write!(status, "  {} left", format_duration(eta));
    }
    let _ = write!(status, "  data wait {:.0}%", 100.0 * number("data_wait"));
    if let Some(what) = fields.text("waits_for") {
        let _ = write!(status, ", waiting for {what}");
    }
    status
}

/// The two largest units: `2h05m`, `3m20s`, `12s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, _, _) => format!("{d}d{h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::screen::testing::Page;
    use super::*;

    fn logged(step: u64) -> String {
        let page = Page::default();
        let mut progress = Progress::new(&page.screen(), 100, 200);
        progress.started = Instant::now() - Duration::from_secs(50);
        let fields = json!({"step": step, "loss": 50.1, "images_per_s": 812.5, "data_wait": 0.013});
        progress.logged(&Fields { message: String::new(), values: fields.as_object().unwrap().clone() });
        page.text()
    }

    #[test]
    fn a_logged_step_is_one_plain_line_with_all_that_matters() {
        assert_eq!(logged(150), "step 150/200  loss 50.1000  812 images/s  50s left  data wait 1%\n");
    }

    #[test]
    fn a_step_that_waited_says_for_what() {
        let fields = json!({"step": 1, "loss": 0.5, "images_per_s": 7.0, "data_wait": 0.413, "waits_for": "reads"});
        let fields = Fields { message: String::new(), values: fields.as_object().unwrap().clone() };
        assert!(status(&fields, None).ends_with("data wait 41%, waiting for reads"));
    }

    #[test]
    fn no_time_left_is_promised_before_the_first_step() {
        assert!(!logged(100).contains("left"));
    }

    #[test]
    fn durations_have_two_units() {
        let words = [12, 200, 7500, 93_600].map(|seconds| format_duration(Duration::from_secs(seconds)));
        assert_eq!(words, ["12s", "3m20s", "2h05m", "1d02h"]);
    }
}
