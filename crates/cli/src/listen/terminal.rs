//! stderr: messages as lines, a run's progress as a bar or lines.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ddpm_train::training::events::{FAILURE, PROGRESS, RUN};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::OURS;
use super::fields::Fields;
use super::progress::Progress;
use super::screen::{Label, Screen};

/// See the module.
pub(super) struct TerminalLayer {
    screen: Arc<Screen>,
    /// Of the run under way.
    progress: Mutex<Option<Progress>>,
}

impl TerminalLayer {
    pub(super) fn new(screen: &Arc<Screen>) -> Self {
        Self { screen: Arc::clone(screen), progress: Mutex::new(None) }
    }

    fn progress(&self) -> MutexGuard<'_, Option<Progress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TerminalLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == RUN {
            let fields = Fields::of_span(attributes);
            let steps = |name| fields.count(name).unwrap_or_default();
            *self.progress() = Some(Progress::new(&self.screen, steps("first"), steps("total")));
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if context.metadata(id).is_some_and(|metadata| metadata.name() == RUN)
            && let Some(step) = Fields::of_record(record).count("step")
            && let Some(progress) = &*self.progress()
        {
            progress.step(step);
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        if context.metadata(id).is_some_and(|metadata| metadata.name() == RUN) {
            *self.progress() = None;
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        match metadata.target() {
            // The end of the command reports it, with what to do about it.
            FAILURE => {}
            PROGRESS => {
                if let Some(progress) = &*self.progress() {
                    progress.logged(&Fields::of_event(event));
                }
            }
            target => {
                let text = text(target, &Fields::of_event(event));
                match *metadata.level() {
                    Level::ERROR => self.screen.labelled(Label::Error, &text),
                    Level::WARN => self.screen.labelled(Label::Warning, &text),
                    _ => self.screen.line(&text),
                }
            }
        }
    }
}

/// The message with what to do about it; for other crates, which put much into fields, all fields too.
fn text(target: &str, fields: &Fields) -> String {
    if !target.starts_with(OURS) {
        let values: String = fields.values.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        return format!("{target}: {}{values}", fields.message);
    }
    let help = fields.help().map(|help| format!("\n  help: {help}")).unwrap_or_default();
    format!("{}{help}", fields.message)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry;

    use super::super::Shown;
    use super::super::screen::testing::Page;
    use super::*;

    /// What a screen shows of the events of `say`.
    fn shown(verbosity: i16, say: impl FnOnce()) -> String {
        let page = Page::default();
        let layer = TerminalLayer::new(&page.screen()).with_filter(Shown::new(verbosity, None).targets);
        tracing::subscriber::with_default(registry().with(layer), say);
        page.text()
    }

    fn everything() {
        let run = tracing::info_span!(RUN, first = 0_u64, total = 20_u64, step = 0_u64).entered();
        tracing::info!(path = "runs/a", "saved");
        tracing::debug!("took 3 ms");
        run.record("step", 10_u64);
        tracing::info!(target: PROGRESS, step = 10_u64, loss = 0.5, images_per_s = 7.0, data_wait = 0.0);
        tracing::warn!(help = "free disk space", "disk full");
        tracing::error!(target: FAILURE, "the end");
        tracing::warn!(target: "hyper", "other people's");
    }

    #[test]
    fn verbosity_chooses_what_is_said() {
        let warning = "warning: disk full\n  help: free disk space\n";
        assert_eq!(shown(-1, everything), warning);
        let normal = shown(0, everything);
        let (head, tail) = normal.split_once("step 10/20  loss 0.5000  7 images/s  ").unwrap_or_default();
        assert_eq!(head, "saved\n", "{normal}");
        assert!(tail.ends_with(&format!("data wait 0%\n{warning}")), "{normal}");
        assert!(shown(1, everything).starts_with("saved\ntook 3 ms\nstep 10/20"));
    }

    #[test]
    fn what_other_peoples_crates_say_is_kept_apart() {
        let page = Page::default();
        let layer = TerminalLayer::new(&page.screen());
        tracing::subscriber::with_default(registry().with(layer), || {
            tracing::warn!(target: "hyper::client", port = 80, "slow");
        });
        assert_eq!(page.text(), "warning: hyper::client: slow port=80\n");
    }
}
