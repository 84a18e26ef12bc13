//! Training: one step as Algorithm 1 of Ho et al. 2020 has it, and the life of a run around it.
//!
//! | module | what |
//! | --- | --- |
//! | `step` | one optimizer step |
//! | [`trainer`] | a step's inputs and its [`outcome`]; `room`: what to give up when memory is full |
//! | [`gpu_memory`] | the GPU memory of a step, estimated without a GPU |
//! | [`run`] | the life of a run; beside it `setup` (what stays fixed), [`resume`] (where it starts), `observe` (metrics, checkpoints, pictures) |
//! | `engines`, `loss_scale` | a GPU's fastest algorithms, and f16's loss scale: both are kept with a run |
//! | [`state`] | a trainer to and from a checkpoint |
//! | [`means`] | the means between two logged steps |
//! | `upload` | pushes to the hub, beside the loop |
//! | [`stop`] | when to stop before the end |
//! | [`events`] | the names of spans and targets |

pub(crate) mod cpu_memory;
pub mod disk_need;
mod engines;
pub mod events;
pub mod gpu_memory;
mod loss_scale;
pub mod means;
mod observe;
pub mod outcome;
pub mod resume;
mod room;
pub mod run;
pub(crate) mod setup;
pub mod state;
mod step;
pub mod stop;
pub mod trainer;
mod upload;
