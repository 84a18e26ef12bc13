//! Trains diffusion models: what stands behind the binary `ddpm`.
//!
//! | module | what |
//! | --- | --- |
//! | [`config`] | from a TOML file to a plan that cannot be wrong |
//! | [`training`] | the step, and the life of a run |
//! | [`drawing`] | images from a model |
//! | `engine` | where work is done over and over: a CPU, or a GPU that records and replays it |
//! | [`measuring`] | how fast and how large those are |
//! | [`eval`] | how good a model is |
//! | [`exchange`] | models from and to files: a run's, diffusers', the hub's |
//! | [`publish`] | a model on its way to the hub |
//! | [`report`] | progress, pictures, plots, TensorBoard |
//! | [`weights`] | weights in a checkpoint's files |
//! | [`noise`], [`pixels`] | standard normals, by Philox; bytes to numbers and back |
//! | [`memory`] | memory of a device, there and used |
//! | [`error`] | what can go wrong, and of which kind it is |

pub mod config;
pub mod drawing;
mod engine;
pub mod error;
pub mod eval;
pub mod exchange;
pub mod measuring;
pub mod memory;
pub mod noise;
pub mod pixels;
pub mod publish;
pub mod report;
pub mod training;
pub mod weights;

pub use error::{Error, Kind};
