//! Training: one step as Algorithm 1 of Ho et al. 2020 has it, and the life of a run around it.
//!
//! | module | what |
//! | --- | --- |
//! | `step` | one optimizer step |
//! | [`trainer`] | what a step reads and what became of it ([`outcome`]); `room`: what gives way where memory is full |
//! | [`gpu_memory`] | what a step takes of a GPU's memory, told without one |
//! | [`run`] | the life of a run; beside it `context` (what stays the same), [`resume`] (where it starts), `observe` (metrics, checkpoints, pictures) |
//! | `engines`, `loss_scale` | which of a GPU's algorithms were the fastest, and f16's loss scale, kept beside a run |
//! | [`state`] | a trainer to and from a checkpoint |
//! | [`window`] | the means between two logged steps |
//! | `upload` | pushes to the hub, beside the loop |
//! | [`stop`] | when to stop before the end |
//! | [`events`] | the names of spans and targets |

pub(crate) mod context;
mod engines;
pub mod events;
pub mod gpu_memory;
mod loss_scale;
mod observe;
pub mod outcome;
pub mod resume;
mod room;
pub mod run;
pub mod state;
mod step;
pub mod stop;
pub mod trainer;
mod upload;
pub mod window;
