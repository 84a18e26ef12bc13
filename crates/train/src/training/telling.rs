//! Under which names a run tells of itself, and the phases of a step as spans: for whoever listens.
//!
//! | span | level | around | fields |
//! | --- | --- | --- | --- |
//! | [`RUN`] | info | everything, while the run's directory is held | `dir`, `log` (the path of `log.jsonl`), `rank`, `first` (steps done before), `total` (the last step), `step` (steps done; recorded after each) |
//! | `step` | trace | one optimizer step | `step` |
//! | `data` | trace | the wait for a batch | |
//! | `forward`, `backward`, `optimizer` | trace | the phases of a step: `Phase` | |
//! | `snapshot`, `save` | debug | copying a checkpoint's content; writing it, on its thread | `step` |
//! | `sample` | debug | a picture | `step` |
//! | `upload` | debug | a push to the hub, on its thread | `repo` |
//!
//! The run has the target [`PROGRESS`], whose events are logged steps: `step`, `loss`, `images_per_s`, `data_wait`. The target
//! [`FAILURE`] has the error that ends the run, which the caller also gets.

use std::time::{Duration, Instant};

use tracing::Span;
use tracing::span::EnteredSpan;

/// The span of a run.
pub const RUN: &str = "run";
/// The target of the run and its logged steps.
pub const PROGRESS: &str = "ddpm_train::progress";
/// The target of the error that ends a run.
pub const FAILURE: &str = "ddpm_train::failure";

/// A phase of a step, from its beginning until [`end`](Self::end): a time for the measurements, and a span for whoever
/// traces.
#[must_use]
#[derive(Debug)]
pub(crate) struct Phase {
    start: Instant,
    _span: EnteredSpan,
}

impl Phase {
    /// Noise, network and loss.
    pub(crate) fn forward() -> Self {
        Self::within(tracing::trace_span!("forward"))
    }

    /// The tape, played back.
    pub(crate) fn backward() -> Self {
        Self::within(tracing::trace_span!("backward"))
    }

    /// Clipping, AdamW and the averages.
    pub(crate) fn optimizer() -> Self {
        Self::within(tracing::trace_span!("optimizer"))
    }

    fn within(span: Span) -> Self {
        let span = span.entered();
        Self { start: Instant::now(), _span: span }
    }

    /// How long it took.
    pub(crate) fn end(self) -> Duration {
        self.start.elapsed()
    }
}
