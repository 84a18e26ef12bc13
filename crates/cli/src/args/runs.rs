//! The options of the commands about runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{count, path};

/// `ddpm runs`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm runs                 # those in runs/
  ddpm runs /scratch/me --json")]
pub struct RunsArgs {
    /// The directory that holds them, or one of them
    #[arg(default_value = "runs", value_parser = path())]
    pub dir: PathBuf,
}

/// `ddpm fork`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example: a run that diverged, from before with a lower learning rate
  ddpm fork runs/mine --at 20000 --to runs/slower
  ddpm train runs/slower --set train.lr=1e-4 --accept train.lr")]
pub struct ForkArgs {
    /// The run directory
    #[arg(value_name = "RUN_DIR", value_parser = path())]
    pub run: PathBuf,
    /// The step of the checkpoint to begin at [default: the newest]
    #[arg(long, value_name = "STEP")]
    pub at: Option<u64>,
    /// The run directory to make; an existing one is left alone
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub to: PathBuf,
}

/// `ddpm watch`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Leave it with q or Ctrl-C.

Examples:
  ddpm watch runs/quickstart
  ddpm watch runs/quickstart --once     # one look, as plain text")]
pub struct WatchArgs {
    /// The run directory
    #[arg(value_name = "RUN_DIR", value_parser = path())]
    pub run: PathBuf,
    /// Print one look and end; so it does where there is no terminal
    #[arg(long)]
    pub once: bool,
}

/// `ddpm compare`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  ddpm compare runs/quickstart runs/slower")]
pub struct CompareArgs {
    /// A run directory
    #[arg(value_name = "RUN_A", value_parser = path())]
    pub a: PathBuf,
    /// Another one
    #[arg(value_name = "RUN_B", value_parser = path())]
    pub b: PathBuf,
}

/// `ddpm plot`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm plot runs/quickstart                                # the loss, into loss.png
  ddpm plot runs/* --key grad_norm --out gradients.svg
  ddpm plot runs/quickstart --key images_per_s --smooth 1")]
pub struct PlotArgs {
    /// The run directories
    #[arg(value_name = "RUN_DIR", required = true, value_parser = path())]
    pub runs: Vec<PathBuf>,
    /// The picture to write, by its name PNG or SVG [default: KEY.png, or another name that is not taken]
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Which number of metrics.jsonl: loss, lr, grad_norm, mse, images_per_s, data_wait, ...
    #[arg(long, value_name = "KEY", default_value = "loss")]
    pub key: String,
    /// How many points the line is smoothed over; 1: not at all [default: a fiftieth of them]
    #[arg(long, value_name = "N", value_parser = count)]
    pub smooth: Option<usize>,
    /// How values are spread: log where they differ widely, unless told otherwise
    #[arg(long, value_name = "SCALE", default_value = "auto")]
    pub scale: PlotScale,
}

/// How values are spread over the height of a plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlotScale {
    /// Log where the largest is many times the smallest
    Auto,
    /// As they are
    Linear,
    /// By their logarithm
    Log,
}
