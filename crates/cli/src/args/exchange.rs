//! `ddpm export`, `ddpm import`

use std::path::PathBuf;

use clap::Args;
use ddpm_hub::{RepoName, Revision};
use ddpm_train::config::DeviceChoice;
use ddpm_train::exchange::{CARD_SAMPLES, Origin};

use super::path;

/// The options of `ddpm export`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm export runs/quickstart --to clothes
  ddpm export runs/hybrid --to clothes --epsilon-only    # for samplers of diffusers that cannot take 2C channels

From Python: DDPMPipeline.from_pretrained(\"clothes\")")]
pub struct ExportArgs {
    /// A run directory, a checkpoint, a diffusers folder or hf://owner/name
    #[arg(value_parser = path())]
    pub model: PathBuf,
    /// The folder to make; an existing one is left alone
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub to: PathBuf,
    /// Leave a learned variance out: a model of C output channels, with variance_type = fixed_small
    #[arg(long)]
    pub epsilon_only: bool,
    /// Images drawn for the model card; 0: none
    #[arg(long, value_name = "N", default_value_t = CARD_SAMPLES)]
    pub samples: usize,
    /// Use the weights of the last step instead of their moving average
    #[arg(long)]
    pub raw: bool,
    /// Where to draw them: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// The options of `ddpm push`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm push runs/quickstart --repo me/clothes --licence mit
  ddpm push runs/quickstart --repo me/clothes --dry-run    # makes the folder, and sends nothing
  ddpm push runs/quickstart                                # to hub.repo of its configuration

The same command finishes a push that failed. HF_TOKEN is the token, HF_ENDPOINT another hub than huggingface.co.")]
pub struct PushArgs {
    /// A run directory, a checkpoint, a diffusers folder or hf://owner/name
    #[arg(value_parser = path())]
    pub model: PathBuf,
    /// The repository; it is made if it is missing [default: hub.repo of the run]
    #[arg(long, value_name = "owner/name")]
    pub repo: Option<RepoName>,
    /// Make it private, if it has to be made; an existing public one is refused
    #[arg(long)]
    pub private: bool,
    /// The branch; it is made if it is missing
    #[arg(long, value_name = "BRANCH", default_value_t = Revision::default())]
    pub revision: Revision,
    /// The licence that the card states, by the hub's name for it: mit, apache-2.0, cc-by-4.0, ...
    #[arg(long, value_name = "NAME", visible_alias = "license", value_parser = licence)]
    pub licence: Option<String>,
    /// Bits per dimension for the card: what `ddpm eval nll --json` printed
    #[arg(long, value_name = "JSON", value_parser = path())]
    pub metrics: Option<PathBuf>,
    /// Leave a learned variance out, as `ddpm export` does
    #[arg(long)]
    pub epsilon_only: bool,
    /// Images drawn for the model card; 0: none
    #[arg(long, value_name = "N", default_value_t = CARD_SAMPLES)]
    pub samples: usize,
    /// Make everything that would be sent, and send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Use the weights of the last step instead of their moving average
    #[arg(long)]
    pub raw: bool,
    /// Where to draw the images: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// The hub's licence names are words of this form; anything else would not fit on one line of the card's front matter.
fn licence(text: &str) -> Result<String, String> {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
    if !text.is_empty() && text.len() <= 64 && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err("expected a name such as mit, apache-2.0 or cc-by-4.0".to_owned())
}

/// The options of `ddpm import`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example: a fine-tuning
  ddpm import hf://me/clothes --to runs/mine
  ddpm train runs/mine/config.toml --set data.source=photos --set train.lr=1e-5

A checkpoint of improved-diffusion or guided-diffusion, with the flags that it was trained with:
  ddpm import ema_0.9999_500000.pt --from improved-diffusion --to runs/mine \\
    --flags \"--image_size 64 --num_res_blocks 3 --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine\"")]
pub struct ImportArgs {
    /// A diffusers folder (unet/config.json and unet/diffusion_pytorch_model.safetensors) or hf://owner/name, hf://owner/name@revision;
    /// with --from, a file that torch.save wrote
    #[arg(value_name = "MODEL", value_parser = path())]
    pub folder: PathBuf,
    /// The run directory to make; an existing one is left alone
    #[arg(long, value_name = "RUN_DIR", value_parser = path())]
    pub to: PathBuf,
    /// Whose checkpoint it is: improved-diffusion or guided-diffusion
    #[arg(long, value_name = "NAME")]
    pub from: Option<Origin>,
    /// Its MODEL_FLAGS and DIFFUSION_FLAGS, as in their README [default: those of their scripts]
    #[arg(long, value_name = "FLAGS", requires = "from", allow_hyphen_values = true)]
    pub flags: Option<String>,
}
