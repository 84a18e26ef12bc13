//! Training: one step as Algorithm 1 of Ho et al. 2020 has it, and the life of a run around it.
//!
//! | module | what |
//! | --- | --- |
//! | [`step`] | one optimizer step ([`outcome`]: what it did); `gpu` (with the feature `cuda`): the same, queued, recorded and replayed |
//! | [`gpu_memory`] | what a step takes of a GPU's memory, told without one |
//! | [`run`] | the life of a run; beside it `context` (what stays the same), `resume` (where it starts), `observe` (metrics, checkpoints, pictures) |
//! | `engines` | with the feature `cuda`: which algorithms were the fastest, kept beside a run |
//! | [`state`] | a trainer to and from a checkpoint |
//! | [`window`] | the means between two logged steps |
//! | `arithmetic` | how numbers are rounded |
//! | `upload` | pushes to the hub, beside the loop |
//! | [`stop`] | signals and time limits |
//! | [`noise`] | standard normals, by Philox |
//! | [`pixels`] | bytes to numbers and back |
//! | [`pictures`] | images drawn from a model, always from the same noise; `gpu_pictures`: a step of it, recorded and replayed |
//! | `replay` | with the feature `cuda`: passes without gradients, recorded and replayed |
//! | [`model`] | a trained model, read back |
//! | [`measure`], [`estimate`] | how long a step takes, or would take |
//! | [`throughput`] | how fast images are drawn and read |
//! | [`operations`] | how long each operation of the network takes |

mod arithmetic;
mod context;
#[cfg(feature = "cuda")]
mod engines;
pub mod estimate;
#[cfg(feature = "cuda")]
mod gpu;
pub mod gpu_memory;
#[cfg(feature = "cuda")]
mod gpu_pictures;
#[cfg(feature = "cuda")]
mod loss_scale;
pub mod measure;
pub mod model;
pub mod noise;
mod observe;
pub mod operations;
pub mod outcome;
pub mod pictures;
pub mod pixels;
#[cfg(feature = "cuda")]
pub(crate) mod replay;
mod resume;
pub mod run;
pub mod state;
pub mod step;
pub mod stop;
pub mod throughput;
#[cfg(feature = "hub")]
mod upload;
pub mod window;
