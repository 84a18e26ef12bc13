//! Collects warnings.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, registry};

#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Ear {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            event.record(&mut self.clone());
        }
    }
}

impl Visit for Ear {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

/// What `work` returns, and the warnings of this thread meanwhile.
pub(crate) fn hearing<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let ear = Ear::default();
    let result = tracing::subscriber::with_default(registry().with(ear.clone()), work);
    let heard = ear.0.lock().unwrap().clone();
    (result, heard)
}
