//! Black-box tests of the binary `ddpm`: what a user types, and what comes back.
//!
//! A test has a fresh directory, a command and an expectation, in about five lines:
//!
//! ```no_run
//! use ddpm_tests::trained_run;
//! let run = trained_run(&["train.steps=20", "checkpoint.every=10"]);
//! run.truncate("runs/tiny/checkpoints/step-000000020/model.safetensors");
//! run.train().set("train.steps=30").succeeds().stderr_has("step-000000020").resumes_at(10);
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `binary` | builds the binary once per test process |
//! | `place` | the fresh directory and what is in it |
//! | `command` | one command, and expectations about its end |
//! | `process` | a command while it runs: signals, kills, time limits |
//! | `diffusers` | a model as diffusers publishes it |
//! | `fixtures` | images, tensors and forged checkpoints |
//! | `hub` | a Hugging Face hub on this machine, and its failures |

// A test that cannot read its own files can only panic.
#![allow(clippy::unwrap_used)]

mod binary;
mod command;
pub mod diffusers;
pub mod fixtures;
pub mod hub;
mod place;
mod process;

pub use binary::{ddpm_binary, repository};
pub use command::{Ddpm, Finished, assert_fields};
pub use place::{Place, TINY, assert_same_run, empty_place, fresh_run, trained_run};
pub use process::Running;
