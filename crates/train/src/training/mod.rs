//! Training: one step as Algorithm 1 of Ho et al. 2020 has it, and the life of a run around it.
//!
//! | module | what |
//! | --- | --- |
//! | [`step`] | one optimizer step ([`outcome`]: what it did); `gpu` (with the feature `cuda`): the same, queued, recorded and replayed |
//! | [`gpu_memory`] | what a step takes of a GPU's memory, told without one |
//! | [`run`] | the life of a run; beside it `context` (what stays the same), [`resume`] (where it starts), `observe` (metrics, checkpoints, pictures) |
//! | `engines`, `loss_scale` | with the feature `cuda`: which algorithms were the fastest, and the loss scale, kept beside a run |
//! | [`state`] | a trainer to and from a checkpoint |
//! | [`window`] | the means between two logged steps |
//! | `upload` | pushes to the hub, beside the loop |
//! | [`stop`] | when to stop before the end |
//! | [`telling`] | the names of what a run tells, and the phases of a step |

pub(crate) mod context;
#[cfg(feature = "cuda")]
mod engines;
#[cfg(feature = "cuda")]
mod gpu;
pub mod gpu_memory;
#[cfg(feature = "cuda")]
mod loss_scale;
mod observe;
pub mod outcome;
pub mod resume;
pub mod run;
pub mod state;
pub mod step;
pub mod stop;
pub mod telling;
mod upload;
pub mod window;
