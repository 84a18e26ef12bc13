//! `ddpm schedule`

use std::path::PathBuf;

use clap::Args;
use ddpm_model::diffusion::Spacing;
use ddpm_train::config::Setting;

use super::{count, path, source};

/// The options of `ddpm schedule`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm schedule configs/quickstart.toml
  ddpm schedule configs/quickstart.toml --steps 50 --spacing trailing
  ddpm schedule configs/quickstart.toml --spacing ddim50 --plot schedule.png
  ddpm schedule configs/quickstart.toml --data builtin:fashion10k    # is T large enough for these images?
  ddpm schedule configs/quickstart.toml --json | jq .alphas_cumprod[999]")]
pub struct ScheduleArgs {
    /// A configuration (TOML), a run directory, a checkpoint, a diffusers folder or hf://owner/name
    #[arg(value_name = "CONFIG_OR_MODEL", value_parser = path())]
    pub config: PathBuf,
    /// Set a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
    /// How many steps a sampler takes [default: all]
    #[arg(long, value_parser = count)]
    pub steps: Option<usize>,
    /// Which steps: leading, trailing, linspace, or a respacing (250; 10,15,20; ddim50) [default: leading]
    #[arg(long, value_name = "NAME")]
    pub spacing: Option<Spacing>,
    /// Draw the curves, and a Fashion image being noised
    #[arg(long, value_name = "PNG", value_parser = path())]
    pub plot: Option<PathBuf>,
    /// Noise these images and say whether T is large enough: a folder, a .parquet file or folder, or builtin:fashion10k
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    pub data: Option<String>,
    /// The part of the data, or a slice of it: `train`, `train[:90%]`, `[9000:]`
    #[arg(long, value_name = "NAME", requires = "data")]
    pub split: Option<String>,
    /// How many images, drawn from all of them by the seed [default: 1000, or all if there are fewer]
    #[arg(long, value_parser = count, requires = "data")]
    pub num: Option<usize>,
    /// The timesteps to look at, beside the last [default: nine from 0 to T - 1]
    #[arg(long, value_name = "T,T,...", value_delimiter = ',', requires = "data")]
    pub at: Vec<usize>,
    /// The choice of images, and the noise that is added to them
    #[arg(long, default_value_t = 0, requires = "data")]
    pub seed: u64,
}
