//! Trains diffusion models: what stands behind the binary `ddpm`.
//!
//! | module | what |
//! | --- | --- |
//! | [`cli`] | the commands and their options |
//! | [`config`] | from a TOML file to a plan that cannot be wrong |
//! | [`run_dir`] | a run's directory and its lock |
//! | [`checkpoint`] | saving and going on, all or nothing |
//! | [`report`] | metrics, progress, pictures |
//! | [`memory`] | memory and disk, there and used |
//! | [`exchange`] | models to and from diffusers |
//! | [`hub`] | the Hugging Face hub, both ways |
//! | [`training`] | the step, and the life of a run |
//! | [`error`] | failures and exit codes |

pub mod checkpoint;
pub mod cli;
pub mod config;
mod durable;
pub mod error;
pub mod eval;
pub mod exchange;
pub mod hub;
pub mod memory;
pub mod report;
pub mod run_dir;
mod shell;
pub mod training;
