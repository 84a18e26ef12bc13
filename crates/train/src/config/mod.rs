//! From a user's configuration to a checked plan.
//!
//! ```text
//! defaults < file < environment < command line  ->  Resolved { TrainConfig, origins }  ->  TrainPlan
//! ```
//! - [`types`]: plain structs, one per section, with every default.
//! - [`Resolved`]: the layers merged, each value with its [`Origin`]; unknown keys and wrong types are refused here.
//! - [`TrainPlan`]: built once; its values are checked, alone and against each other.
//! - [`config_hash`] and [`diff`]: whether a checkpoint belongs to a configuration.

mod address;
mod arithmetic;
mod checks;
mod device;
mod error;
mod explain;
mod identity;
mod layers;
mod plan;
pub mod presets;
mod schema;
mod toml_source;
pub mod types;
mod write;

pub(crate) use address::host_and_port;
pub(crate) use arithmetic::set_arithmetic;
pub use device::{DeviceChoice, DeviceError};
pub use error::{ConfigError, Origin};
pub use explain::check_key;
pub use identity::{Change, config_hash, describes_weights, diff, may_be_accepted};
pub use layers::{Entry, Resolved, Setting};
pub use plan::{Cadence, MAX_TERMINAL_SIGNAL, TrainPlan, Warning};
pub use toml_source::to_toml;
pub use types::TrainConfig;
