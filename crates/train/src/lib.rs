//! Trains diffusion models: what stands behind the binary `ddpm`.
//!
//! | module | what |
//! | --- | --- |
//! | [`cli`] | the commands and their options |
//! | [`config`] | from a TOML file to a plan that cannot be wrong |
//! | [`report`] | metrics, progress, pictures |
//! | [`memory`] | memory and disk, there and used |
//! | [`exchange`] | models to and from diffusers |
//! | [`hub`] | the Hugging Face hub, both ways |
//! | [`training`] | the step, and the life of a run |
//! | [`error`] | failures and exit codes |

pub mod cli;
pub mod config;
pub mod error;
pub mod eval;
pub mod exchange;
pub mod hub;
pub mod memory;
pub mod report;
pub mod training;
