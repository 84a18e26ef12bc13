//! What a run tells: metrics for programs, pictures and a progress bar for people, events for TensorBoard.
//!
//! [`Reporter`] is what the loop talks to; it never fails a run, because a log that cannot be written is no reason to
//! stop training: the trouble is said once, and lines not yet written are tried again.
//!
//! | module | writes |
//! | --- | --- |
//! | [`tensorboard`] | `events/` |
//! | [`pictures`] | sample grids as PNG |
//! | [`plot`] | curves as PNG |
//! | [`progress`] | the bar or the lines of a run on stderr |
//! | [`counter`] | those of any other long work |
//! | [`terminal`] | nothing: what stderr can show |

pub mod counter;
mod error;
pub mod pictures;
pub mod plot;
pub mod progress;
mod reporter;
pub mod tensorboard;
pub mod terminal;
#[cfg(test)]
mod testing;

pub use error::ReportError;
pub use reporter::{Reporter, ReporterOptions};
