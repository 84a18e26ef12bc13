//! `ddpm eval`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ddpm_model::diffusion::{Spacing, VarianceType};
use ddpm_train::config::DeviceChoice;

use super::sample::fixed_variance;
use super::{count, path, source};

/// The commands of `ddpm eval`.
#[derive(Clone, Debug, Subcommand)]
pub enum EvalCommand {
    /// Bits per dimension: a bound on how well the model compresses images
    Nll(NllArgs),
}

/// The options of `ddpm eval nll`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm eval nll runs/quickstart --data builtin:fashion10k --num 64
  ddpm eval nll runs/mine --data photos --split '[9000:]' --plot terms.png    # images that were held out of the training
  ddpm eval nll runs/mine --data photos --steps 50 --json                   # on 50 of the timesteps")]
pub struct NllArgs {
    /// A run directory, a checkpoint, a diffusers folder or hf://owner/name
    #[arg(value_parser = path())]
    pub model: PathBuf,
    /// The images: a folder, a .parquet file or folder, or builtin:fashion10k
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    pub data: String,
    /// The part of the data, or a slice of it: `train`, `train[:90%]`, `[9000:]`
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// How many images, drawn from all of them by the seed [default: all]
    #[arg(long, value_parser = count, allow_negative_numbers = true)]
    pub num: Option<usize>,
    /// Evaluate the bound of fewer timesteps [default: all]
    #[arg(long, value_parser = count, allow_negative_numbers = true)]
    pub steps: Option<usize>,
    /// Which steps: leading, trailing, linspace, or a respacing (250; 10,15,20; ddim50) [default: leading]
    #[arg(long, value_name = "NAME")]
    pub spacing: Option<Spacing>,
    /// The variance of a model that does not learn it: fixed_small or fixed_large [default: that of its training]
    #[arg(long, value_name = "NAME", value_parser = fixed_variance)]
    pub variance: Option<VarianceType>,
    /// The choice of images, and the noise that is added to them
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images computed at once; it changes speed and memory, and the result by no more than rounding
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count)]
    pub batch_size: usize,
    /// Draw the terms of the bound over t
    #[arg(long, value_name = "PNG", value_parser = path())]
    pub plot: Option<PathBuf>,
    /// Use the weights of the last step instead of their moving average
    #[arg(long)]
    pub raw: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Write where the time goes: a trace that ui.perfetto.dev opens
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub trace: Option<PathBuf>,
}
