//! The optimizer: AdamW with clipping, and moving averages of the weights.

mod adamw;
mod lr;

pub use adamw::{AdamWConfig, Average, Optimizer};
pub use lr::{LrConfig, LrSchedule};
