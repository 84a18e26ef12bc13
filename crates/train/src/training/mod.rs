//! Training: one step as Algorithm 1 of Ho et al. 2020 has it, and the life of a run around it.
//!
//! | module | what |
//! | --- | --- |
//! | `step` | one optimizer step |
//! | [`trainer`] | a step's inputs and its [`outcome`]; `room`: what to give up when memory is full |
//! | [`gpu_memory`] | the GPU memory of a step, estimated without a GPU |
//! | [`run`] | the life of a run; beside it `setup` (what stays fixed), [`resume`] (where it starts), `loop_of_steps`, and `observe`: what the loop tells of its course (metrics, checkpoints, pictures) |
//! | `engines`, `step_state` | a GPU's fastest algorithms, and what goes on from step to step: both are kept with a run |
//! | `accept` | what a run goes on with from a checkpoint: the same, or a change that its user accepts |
//! | `divergence` | what is reported of a run that diverges, and how it goes back |
//! | [`fork`] | a branch of a run, in a directory of its own |
//! | [`state`] | a trainer to and from a checkpoint |
//! | [`means`] | the means between two logged steps |
//! | `quarantine` | the list of samples that could not be read |
//! | `upload` | pushes to the hub, beside the loop |
//! | [`ranks`], `follow` | what several ranks do together; the run of a rank that only follows |
//! | [`stop`] | when to stop before the end |
//! | `watchdog` | reports a run that does not go on; `threads`, `stacks`: what its threads wait for, and where |
//! | `exporter` | serves what it does to Prometheus |
//! | [`events`] | the names of spans and targets |

pub mod accept;
pub(crate) mod cpu_memory;
pub mod disk_need;
mod divergence;
mod engines;
pub mod events;
mod exporter;
mod follow;
pub mod fork;
pub mod gpu_memory;
mod loop_of_steps;
pub mod means;
mod observe;
mod options;
pub mod outcome;
mod quarantine;
pub mod ranks;
pub mod resume;
mod room;
pub mod run;
pub(crate) mod setup;
#[cfg(target_os = "linux")]
mod stacks;
pub mod state;
mod step;
mod step_state;
pub mod stop;
mod threads;
pub mod trainer;
mod upload;
mod watchdog;

pub use exporter::metrics_warning;
