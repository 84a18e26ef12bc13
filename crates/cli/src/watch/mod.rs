//! `ddpm watch`: follows a run in the terminal. Everything comes from the run's files, so it works over ssh, over a shared disk, and
//! after a crash; nothing is written and nothing is locked.

mod frame;
mod picture;
mod seen;
mod terminal;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ddpm_run::RunState;
use ddpm_run::metrics::waits_for;
use serde::Serialize;

use crate::args::WatchArgs;
use crate::failure::{ExitCode, Failure};
use crate::output::Output;
use picture::Ink;
use seen::{Seen, Warning};
use terminal::{Terminal, blank, size};

/// The time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Columns and rows where there is no terminal.
const PAGE: (u16, u16) = (100, 30);

/// One look, for a program.
#[derive(Serialize)]
struct Document<'a> {
    name: &'a str,
    state: RunState,
    step: u64,
    steps: Option<u64>,
    loss: Option<f64>,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    images_per_s: Option<f64>,
    data_wait: Option<f64>,
    /// What the steps wait for: reads or decoding.
    waits_for: Option<&'static str>,
    queue: Option<f64>,
    file_bytes_per_s: Option<f64>,
    decoded_per_s: Option<f64>,
    memory_bytes: Option<f64>,
    seconds_left: Option<f64>,
    /// How long ago its process last said what it does.
    seconds_silent: Option<f64>,
    error: Option<&'a str>,
    sample: Option<&'a std::path::Path>,
    warnings: &'a [Warning],
}

/// Watches the run until it is left, or looks once.
pub(super) fn run(args: &WatchArgs, output: &Output) -> Result<(), Failure> {
    let mut seen = Seen::of(&args.run)?;
    if args.once || output.is_json() || !is_interactive() {
        return output.result(&Document::of(&seen), || once(&seen));
    }
    let ink = Ink::from_environment();
    let mut terminal = Terminal::take().map_err(|error| {
        Failure::caused_by(ExitCode::Other, "the terminal cannot be used", &error)
            .hint("--once prints one look as text")
    })?;
    loop {
        let mut next = blank(size().unwrap_or(PAGE));
        frame::draw(&seen, ink, &mut next);
        // A terminal that was closed is a way to leave.
        if terminal.show(next).is_err() || terminal.is_left_within(EVERY) {
            return Ok(());
        }
        seen.look();
    }
}

/// Whether there is somebody who sees frames and can end them.
fn is_interactive() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
}

/// One look as plain text, as wide as the terminal.
fn once(seen: &Seen) -> String {
    let (columns, _) = size().unwrap_or(PAGE);
    let mut page = blank((columns, PAGE.1));
    frame::draw(seen, Ink::Plain, &mut page);
    frame::text_of(&page)
}

impl<'a> Document<'a> {
    fn of(seen: &'a Seen) -> Self {
        let status = seen.view.status.as_ref();
        let running = status.filter(|_| seen.is_running());
        Self {
            name: &seen.name,
            state: seen.view.state,
            step: seen.view.step(),
            steps: status.map(|status| status.steps),
            loss: seen.number("loss"),
            lr: seen.number("lr"),
            grad_norm: seen.number("grad_norm"),
            images_per_s: seen.number("images_per_s"),
            data_wait: seen.number("data_wait"),
            waits_for: seen.number("data_wait").and_then(|share| waits_for(share, seen.number("reading"))),
            queue: seen.number("queue"),
            file_bytes_per_s: seen.number("file_bytes_per_s"),
            decoded_per_s: seen.number("decoded_per_s"),
            memory_bytes: seen.number("memory_bytes"),
            seconds_left: running.and_then(|status| status.seconds_left),
            seconds_silent: seen.age.filter(|_| seen.is_running()).map(|age| age.as_secs_f64()),
            error: status.filter(|_| !seen.is_running()).and_then(|status| status.error.as_deref()),
            sample: seen.sample.as_ref().map(|sample| sample.path.as_path()),
            warnings: &seen.warnings,
        }
    }
}
