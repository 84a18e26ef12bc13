//! A run on disk: everything that is written about it, and read again. Nothing here computes, so that a program that only shows
//! runs can stand on it.
//!
//! | module | what |
//! | --- | --- |
//! | [`paths`] | where each file is |
//! | [`lock`], [`run_dir`] | one process per run: the holder of the lock may write |
//! | [`record`] | `run.json`: who started it when and how |
//! | [`checkpoint`] | saving and reading back, all or nothing |
//! | [`metrics`], [`jsonl`] | what is logged about a step; files of lines |
//! | [`history`] | all that was logged, for plots and comparisons |
//! | [`status`] | `status.json`: what it is doing now |
//! | [`view`] | a run as seen from its files, without holding it |
//! | [`disk`] | every call that changes a disk, and what weak file systems get instead |
//! | [`durable`] | files that are the old ones or the new ones |
//! | [`memory`], [`limits`], [`clock`], [`shell`] | this machine: memory and disk, what of it may be used, the time, commands as a user would type them |
//! | [`secrets`] | what is neither shown nor kept |
//! | [`error`], [`kind`] | errors of a run directory, and the kinds of errors of all crates above |

pub mod checkpoint;
pub mod clock;
pub mod disk;
pub mod durable;
pub mod error;
pub mod history;
pub mod jsonl;
pub mod kind;
pub mod limits;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod paths;
pub mod record;
pub mod run_dir;
pub mod secrets;
pub mod shell;
pub mod status;
#[cfg(test)]
mod testing;
pub mod view;

pub use error::RunError;
pub use kind::Kind;
pub use lock::RunLock;
pub use paths::RunPaths;
pub use record::{ChangedData, Restart, RunRecord, StartFacts, Turn, TurnKind};
pub use run_dir::RunDir;
pub use status::{RunPhase, Status, StatusFile};
pub use view::{RunState, RunView};
