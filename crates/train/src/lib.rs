//! Trains diffusion models: the library behind the binary `ddpm`.
//!
//! | module | what |
//! | --- | --- |
//! | [`config`] | from a TOML file to a plan that cannot be wrong |
//! | [`training`] | the step, and the life of a run |
//! | [`drawing`] | images from a model |
//! | `engine` | runs repeated work on a CPU, or on a GPU, which records and replays it |
//! | [`measuring`] | time and memory of training and drawing |
//! | [`eval`] | how good a model is |
//! | [`exchange`] | models from and to files: a run's, diffusers', the hub's |
//! | [`publish`] | a model on its way to the hub |
//! | [`report`] | progress, pictures, plots, TensorBoard |
//! | [`weights`], [`known_data`] | weights in a checkpoint's files; what its state remembers of the data |
//! | [`noise`], [`pixels`] | standard normals, by Philox; bytes to a network's numbers and back |
//! | [`memory`] | a device's memory: total and used |
//! | [`sensors`] | what GPUs say of themselves: use, memory, temperature, power |
//! | [`error`] | the errors and their kinds |

pub mod config;
pub mod drawing;
mod engine;
pub mod error;
pub mod eval;
pub mod exchange;
pub mod known_data;
pub mod measuring;
pub mod memory;
pub mod noise;
pub mod pixels;
pub mod publish;
pub mod report;
#[cfg_attr(not(feature = "nvml"), path = "without_sensors.rs")]
pub mod sensors;
pub mod training;
pub mod weights;

pub use error::{Error, Kind};
