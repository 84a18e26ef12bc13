//! The options of the commands about runs.

use std::path::PathBuf;

use clap::Args;

use super::path;

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
