//! The listeners. The crates emit `tracing` events and spans; this module decides where they go:
//!
//! | module | output |
//! | --- | --- |
//! | [`terminal`] | lines and a progress bar on stderr, as `-v`, `-q` and `RUST_LOG` want |
//! | [`log`] | `log.jsonl` of a run |
//! | [`trace`] | with `--trace FILE`, every span, for Perfetto |
//! | [`screen`], [`progress`], [`counter`] | stderr itself; the progress of a run, and of any other long work |
//! | [`fields`] | the fields of an event |
//!
//! Levels: WARN is for problems, INFO for what a person wants to know, DEBUG for what only `-v` shows, TRACE for spans that
//! only `--trace` takes. `log.jsonl` takes all but the last.

pub(crate) mod counter;
mod fields;
mod log;
mod progress;
pub(crate) mod screen;
mod terminal;
mod trace;

use std::path::Path;
use std::sync::Arc;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{Layer, registry};

use self::log::LogLayer;
pub(crate) use self::progress::format_duration;
use self::screen::Screen;
use self::terminal::TerminalLayer;
use self::trace::{TraceFile, TraceLayer};
use crate::failure::{ExitCode, Failure};
use crate::places::{Kind, Place, prepare};

/// The common prefix of the targets of this program's crates.
const OURS: &str = "ddpm";
/// The environment variable that says what the terminal shows.
const VARIABLE: &str = "RUST_LOG";

/// What the terminal shows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    targets: Targets,
    /// Why `RUST_LOG` is ignored, if it is.
    complaint: Option<String>,
}

impl Shown {
    /// `verbosity` counts `-v` up and `-q` down; where neither is given, `rust_log` counts, if it is set.
    pub(crate) fn new(verbosity: i16, rust_log: Option<&str>) -> Self {
        let level = match verbosity {
            ..0 => LevelFilter::WARN,
            0 => LevelFilter::INFO,
            1.. => LevelFilter::DEBUG,
        };
        let asked = rust_log.filter(|text| !text.trim().is_empty()).map(parse);
        let (targets, complaint) = match asked {
            Some(Ok(targets)) if verbosity == 0 => (targets, None),
            Some(Ok(_)) | None => (Targets::new().with_target(OURS, level), None),
            Some(Err(why)) => {
                (Targets::new().with_target(OURS, level), Some(format!("{VARIABLE} is not understood ({why})")))
            }
        };
        Self { targets, complaint }
    }

    /// The settings from the environment.
    pub(crate) fn from_environment(verbosity: i16) -> Self {
        Self::new(verbosity, std::env::var(VARIABLE).ok().as_deref())
    }

    /// Whether progress is shown.
    pub(crate) fn progress(&self) -> bool {
        self.targets.would_enable(module_path!(), &Level::INFO)
    }
}

/// The list of `target=level` in `text`. A word alone is a level: as a target it would silence all others.
fn parse(text: &str) -> Result<Targets, String> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if word.contains(['[', '{']) || !(word.contains('=') || is_level(word)) {
            return Err(format!("`{word}` is neither a level nor target=level"));
        }
    }
    text.parse().map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())
}

/// The opened file of `--trace`: it holds the events so far, whether this was dropped or not.
pub(crate) struct Trace(Option<Arc<TraceFile>>);

impl Trace {
    /// Creates the file, if one is asked for.
    ///
    /// # Errors
    /// It cannot be written, which is better reported now than after hours: as [`prepare`], or exit code 1.
    pub(crate) fn create(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self(None)) };
        prepare(&[Place { option: "--trace", path, kind: Kind::Trace }])?;
        let file = TraceFile::create(path).map_err(|error| {
            let message = format!("--trace {}: cannot be written", path.display());
            let hint = ddpm_run::durable::io_help(&error, path);
            Failure::caused_by(ExitCode::Other, message, &error).hint(hint)
        })?;
        Ok(Self(Some(Arc::new(file))))
    }

    /// Writes buffered events; a failed write causes a warning.
    pub(crate) fn finish(&self) {
        if let Some(error) = self.0.as_ref().and_then(|file| file.finish()) {
            tracing::warn!("the trace is not whole: {error}");
        }
    }
}

/// Installs the listeners.
pub(crate) fn listen(screen: &Arc<Screen>, shown: Shown, trace: &Trace) {
    let ours = |level| Targets::new().with_target(OURS, level);
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![
        TerminalLayer::new(screen).with_filter(shown.targets).boxed(),
        LogLayer::new(screen).with_filter(ours(LevelFilter::DEBUG)).boxed(),
    ];
    if let Some(file) = &trace.0 {
        layers.push(TraceLayer::new(file).with_filter(ours(LevelFilter::TRACE)).boxed());
    }
    // Fails only if there are listeners already, as in a test that runs beside others.
    let _ = tracing::subscriber::set_global_default(registry().with(layers));
    if let Some(complaint) = shown.complaint {
        tracing::warn!("{complaint}: it is left aside");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(verbosity: i16, rust_log: Option<&str>) -> [bool; 4] {
        let shown = Shown::new(verbosity, rust_log);
        [
            shown.targets.would_enable("ddpm_train::training", &Level::WARN),
            shown.progress(),
            shown.targets.would_enable("ddpm_train::training", &Level::DEBUG),
            shown.targets.would_enable("hyper::client", &Level::WARN),
        ]
    }

    #[test]
    fn options_choose_what_is_shown_and_other_peoples_crates_are_silent() {
        assert_eq!(shows(-1, None), [true, false, false, false]);
        assert_eq!(shows(0, None), [true, true, false, false]);
        assert_eq!(shows(1, None), [true, true, true, false]);
    }

    #[test]
    fn rust_log_counts_where_no_option_is_given() {
        assert_eq!(shows(0, Some("")), [true, true, false, false]);
        assert_eq!(shows(0, Some("off")), [false; 4]);
        assert_eq!(shows(0, Some("warn")), [true, false, false, true]);
        assert_eq!(shows(0, Some("ddpm_train=debug,hyper=warn")), [true, false, true, true]);
        assert_eq!(shows(-1, Some("debug,ddpm_train=debug")), [true, false, false, false]);
        assert_eq!(shows(1, Some("off")), [true, true, true, false]);
    }

    #[test]
    fn a_rust_log_that_makes_no_sense_is_reported_and_left_aside() {
        for unsupported in ["[run]=debug", "ddpm_train[{step}]=debug", "verbose"] {
            let shown = Shown::new(0, Some(unsupported));
            assert!(shown.complaint.is_some_and(|why| why.contains(unsupported)), "{unsupported}");
        }
        let shown = Shown::new(0, Some("ddpm=loud"));
        assert!(shown.progress() && shown.complaint.is_some_and(|text| text.starts_with("RUST_LOG")));
    }
}
