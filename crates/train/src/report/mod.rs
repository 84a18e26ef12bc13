//! A run's reports: metrics for programs, pictures for people, events for TensorBoard. Messages are `tracing` events:
//! [`events`](crate::training::events).
//!
//! The loop calls [`Reporter`]. It never fails a run, because metrics that cannot be written are no reason to stop training: it
//! warns once, and tries again to write the missing lines.
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
