//! The optimizer: AdamW with clipping, and moving averages of the weights.

mod adamw;
mod lr;

pub(crate) use adamw::ema_warm_up;
pub use adamw::{AdamWConfig, Average, Optimizer};
pub use lr::{LrConfig, LrSchedule};
