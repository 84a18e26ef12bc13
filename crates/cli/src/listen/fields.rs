//! The contents of an event or a span: a message for a person, values by name for a program.

use std::error::Error;
use std::fmt::Debug;

use ddpm_run::secrets::masked;
use serde_json::{Map, Value};
use tracing::Event;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Record};

use crate::hints;

/// Names a hint of [`hints::of_event`], whose text replaces it as [`HELP`].
const HINT: &str = "hint";
/// What to do about it.
const HELP: &str = "help";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) message: String,
    pub(super) values: Map<String, Value>,
}

impl Fields {
    /// Of an event.
    pub(super) fn of_event(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        if let Some(hint) = fields.values.remove(HINT)
            && let Some(help) = hint.as_str().and_then(|hint| hints::of_event(hint, &fields.values))
        {
            fields.values.insert(HELP.to_owned(), help.into());
        }
        fields
    }

    /// Of a span, as it begins.
    pub(super) fn of_span(attributes: &Attributes<'_>) -> Self {
        let mut fields = Self::default();
        attributes.record(&mut fields);
        fields
    }

    /// Of a span, as it goes on.
    pub(super) fn of_record(record: &Record<'_>) -> Self {
        let mut fields = Self::default();
        record.record(&mut fields);
        fields
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        self.values.get(name)?.as_u64()
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.as_str()
    }

    /// What to do about it.
    pub(super) fn help(&self) -> Option<&str> {
        self.text(HELP)
    }

    /// Every listener gets its texts from here, so this is where secrets are masked.
    fn insert(&mut self, field: &Field, value: Value) {
        let value = match value {
            Value::String(text) => Value::String(masked(&text).into_owned()),
            other => other,
        };
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => {
                self.values.insert(name.to_owned(), value);
            }
        }
    }
}

/// Numbers that are not finite become null, because JSON cannot represent them.
impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.insert(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.insert(field, format!("{value:?}").into());
    }
}
