//! What a run writes of itself: metrics for programs, pictures for people, events for TensorBoard. What it says goes
//! elsewhere, as `tracing` events: [`events`](crate::training::events).
//!
//! [`Reporter`] is what the loop talks to; it never fails a run, because metrics that cannot be written are no reason to
//! stop training: the trouble is said once, and lines not yet written are tried again.
//!
//! | module | writes |
//! | --- | --- |
//! | [`tensorboard`] | `events/` |
//! | [`pictures`] | sample grids as PNG |
//! | [`plot`] | curves as PNG |

mod error;
pub mod pictures;
pub mod plot;
mod reporter;
pub mod tensorboard;
#[cfg(test)]
mod testing;

pub use error::ReportError;
pub use reporter::{Reporter, ReporterOptions};
