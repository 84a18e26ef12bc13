//! `ddpm bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ddpm_train::config::{DeviceChoice, Setting};

use super::{count, path, settings};

/// `ddpm bench`
#[derive(Clone, Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  ddpm bench step configs/quickstart.toml
  ddpm bench ops configs/quickstart.toml --device cpu")]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_value = "step")]
    pub what: BenchKind,
    /// The configuration (TOML)
    #[arg(required = true, value_parser = path())]
    pub config: PathBuf,
    /// Set a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: run.device, auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Measured repetitions
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = count)]
    pub repeat: usize,
}

impl BenchArgs {
    /// The settings from `--set` and from the option that stands for a key.
    pub fn settings(&self) -> Vec<Setting> {
        settings(&self.set, self.device, None)
    }
}

/// What `bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// Whole training steps, with the time of their phases
    Step,
    /// The images that sampling draws, from noise to bytes
    Sample,
    /// Reading and decoding, as fast as the loader can
    Data,
    /// Each operation of the network on its own, forward and backward
    Ops,
}
