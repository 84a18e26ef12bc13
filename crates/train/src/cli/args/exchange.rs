//! `ddpm export`, `ddpm import`

use std::path::PathBuf;

use clap::Args;

use crate::config::DeviceChoice;

/// The options of `ddpm export`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm export runs/quickstart --to clothes
  ddpm export runs/hybrid --to clothes --epsilon-only    # for samplers of diffusers that cannot take 2C channels

From Python: DDPMPipeline.from_pretrained(\"clothes\")")]
pub struct ExportArgs {
    /// A run directory, a checkpoint or a diffusers folder
    pub model: PathBuf,
    /// The folder to make; an existing one is left alone
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Leave a learned variance out: a model of C output channels, with variance_type = fixed_small
    #[arg(long)]
    pub epsilon_only: bool,
    /// Images drawn for the model card; 0: none
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub samples: usize,
    /// Use the weights of the last step instead of their moving average
    #[arg(long)]
    pub raw: bool,
    /// Where to draw them: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// The options of `ddpm import`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example: a fine-tuning
  ddpm import downloads/ddpm-cifar10-32 --to runs/mine
  ddpm train runs/mine/config.toml --set data.source=photos --set train.lr=1e-5")]
pub struct ImportArgs {
    /// A diffusers folder: unet/config.json and unet/diffusion_pytorch_model.safetensors
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The run directory to make; an existing one is left alone
    #[arg(long, value_name = "RUN_DIR")]
    pub to: PathBuf,
}
