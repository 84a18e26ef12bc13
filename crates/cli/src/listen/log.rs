//! `log.jsonl` of a run: a line for each event within the run's span. Warnings from before, while the run had no directory yet,
//! come first.
//!
//! A log that cannot be written does not end the run: there is one warning, and missing lines are tried again.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ddpm_run::RunError;
use ddpm_run::jsonl::{JsonLines, Level, LogRecord, Rotation};
use ddpm_train::training::events::{PROGRESS, RUN};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;
use super::screen::{Label, Screen};

/// See the module.
pub(super) struct LogLayer {
    screen: Arc<Screen>,
    state: Mutex<State>,
    /// Number of finished steps.
    step: AtomicU64,
}

/// A run of weeks logs more than anybody reads: 64 MiB of it are kept.
const ROTATION: Rotation = Rotation { bytes: 16 << 20, files: 4 };

/// The most warnings that are kept for a run that has not begun.
const EARLY: usize = 100;

enum State {
    /// The lines so far.
    Before(Vec<Value>),
    During(Log),
    /// The log has ended, or will never begin.
    Closed,
}

struct Log {
    lines: JsonLines,
    rank: u64,
    complained: bool,
}

impl LogLayer {
    pub(super) fn new(screen: &Arc<Screen>) -> Self {
        Self { screen: Arc::clone(screen), state: Mutex::new(State::Before(Vec::new())), step: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_step(&self, fields: &Fields) {
        if let Some(step) = fields.count("step") {
            self.step.store(step, Ordering::Relaxed);
        }
    }

    fn write(&self, state: &mut State, record: &impl Serialize) {
        if let State::During(Log { lines, complained, .. }) = state
            && let Err(error) = lines.write(record)
            && !std::mem::replace(complained, true)
        {
            self.complain(&error);
        }
    }

    /// Only on the screen, because the log cannot be written.
    fn complain(&self, error: &RunError) {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = format!("{error}{cause}; training goes on\n  help: {}", error.help());
        self.screen.labelled(Label::Warning, &text);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() != RUN {
            return;
        }
        let fields = Fields::of_span(attributes);
        self.note_step(&fields);
        let Some(path) = fields.text("log") else { return };
        let mut state = self.state();
        let opened = match JsonLines::rotating(Path::new(path), ROTATION) {
            Ok(lines) => {
                let rank = fields.count("rank").unwrap_or_default();
                State::During(Log { lines, rank, complained: false })
            }
            Err(error) => {
                self.complain(&error);
                State::Closed
            }
        };
        if let State::Before(early) = std::mem::replace(&mut *state, opened) {
            for mut record in early {
                record["step"] = self.step.load(Ordering::Relaxed).into();
                self.write(&mut state, &record);
            }
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if context.metadata(id).is_some_and(|metadata| metadata.name() == RUN) {
            self.note_step(&Fields::of_record(record));
        }
    }

    /// Others may still hold the span, but the run's directory is released when the span is left.
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        if context.metadata(id).is_some_and(|metadata| metadata.name() == RUN) {
            *self.state() = State::Closed;
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let target = event.metadata().target();
        // Progress is in metrics.jsonl.
        if target == PROGRESS {
            return;
        }
        let mut state = self.state();
        let level = *event.metadata().level();
        let rank = match &*state {
            State::During(log) => log.rank,
            State::Before(early) if level <= tracing::Level::WARN && early.len() < EARLY => 0,
            State::Before(_) | State::Closed => return,
        };
        let fields = Fields::of_event(event);
        let scope = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        let record = LogRecord {
            target,
            span: scope.map(|span| span.name()).collect::<Vec<_>>().join(":"),
            rank,
            fields: fields.values,
            ..LogRecord::now(level_of(level), self.step.load(Ordering::Relaxed), &fields.message)
        };
        match &mut *state {
            State::Before(early) => early.push(json!(record)),
            _ => self.write(&mut state, &record),
        }
    }
}

fn level_of(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry;

    use super::super::screen::testing::Page;
    use super::*;

    fn logging(page: &Page, say: impl FnOnce()) {
        tracing::subscriber::with_default(registry().with(LogLayer::new(&page.screen())), say);
    }

    #[test]
    fn a_line_has_time_level_step_message_fields_target_span_and_rank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        logging(&Page::default(), || {
            tracing::info!("forgotten");
            tracing::warn!("before the run");
            let run = tracing::info_span!(RUN, log = %path.display(), rank = 0_u64, step = 7_u64).entered();
            tracing::debug!("resumed");
            run.record("step", 8_u64);
            tracing::info!(target: PROGRESS, step = 8_u64);
            tracing::debug_span!("save").in_scope(|| tracing::warn!(took_s = 2.5, "slow disk"));
            run.exit();
            tracing::warn!("after the run");
        });
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter_mut().all(|line| line.as_object_mut().unwrap().remove("time").unwrap().is_string()));
        let target = module_path!();
        let [early, first, second] = &lines[..] else { panic!("{text}") };
        let want = json!({
            "level": "warning", "step": 7, "message": "before the run", "target": target, "span": "", "rank": 0,
        });
        assert_eq!(*early, want);
        let (level, span) = ("debug", "run");
        let want = json!({"level": level, "step": 7, "message": "resumed", "target": target, "span": span, "rank": 0});
        assert_eq!(*first, want);
        let want = json!({
            "level": "warning", "step": 8, "message": "slow disk", "target": target, "span": "run:save", "rank": 0,
            "fields": {"took_s": 2.5},
        });
        assert_eq!(*second, want);
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_reported_and_no_more() {
        let page = Page::default();
        logging(&page, || {
            let _run = tracing::info_span!(RUN, log = "/nowhere/log.jsonl", step = 0_u64).entered();
            tracing::warn!("lost");
        });
        assert!(page.text().starts_with("warning: /nowhere/log.jsonl: cannot open the file"), "{}", page.text());
        assert!(!page.text().contains("lost"));
    }
}
