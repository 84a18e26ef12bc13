//! `ddpm sample`

use std::path::PathBuf;

use clap::Args;
use ddpm_model::diffusion::{SamplerKind, Spacing, VarianceType};
use ddpm_train::config::DeviceChoice;

use super::{count, path, source};

/// Images of `ddpm sample` where no number is given.
pub const SAMPLE_IMAGES: usize = 16;

/// The options of `ddpm sample`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm sample runs/quickstart
  ddpm sample runs/emoji32 --class 7 --guidance 1 --num 64 --out smileys.png
  ddpm sample runs/quickstart --sampler dpm --steps 15 --trajectory path.png    # how images come out of noise
  ddpm sample runs/quickstart --interpolate 3 8 --num 10                        # from seed 3 to seed 8
  ddpm sample runs/quickstart --invert builtin:fashion10k --num 8               # image -> latent -> image
  ddpm sample runs/quickstart --sampler ddpm --num 500 --out images/            # a folder: single PNGs")]
pub struct SampleArgs {
    /// A run directory, a checkpoint, a diffusers folder or hf://owner/name
    #[arg(value_parser = path())]
    pub model: PathBuf,
    /// How many images [default: 16]
    #[arg(long, value_parser = count, allow_negative_numbers = true)]
    pub num: Option<usize>,
    /// How to sample: ddpm (ancestral), ddim (good in 50 steps) or dpm (DPM-Solver++, good in 15)
    #[arg(long, default_value_t = SamplerKind::Ddim)]
    pub sampler: SamplerKind,
    /// How many steps [default: 50 with ddim, 20 with dpm, all with ddpm]
    #[arg(long, value_parser = count, allow_negative_numbers = true)]
    pub steps: Option<usize>,
    /// Which steps: leading, trailing, linspace, or a respacing (250; 10,15,20; ddim50) [default: leading; trailing with dpm]
    #[arg(long, value_name = "NAME")]
    pub spacing: Option<Spacing>,
    /// Noise of ddim: 0 none, 1 as much as ddpm
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub eta: f64,
    /// Take ddim's eps from the clamped x_0 instead of the network
    #[arg(long)]
    pub use_clipped_model_output: bool,
    /// The variance of a model that does not learn it: fixed_small or fixed_large [default: that of its training]
    #[arg(long, value_name = "NAME", value_parser = fixed_variance)]
    pub variance: Option<VarianceType>,
    /// The class to draw, by its name or its number, of a class-conditional model [default: all in turn]
    #[arg(long, allow_negative_numbers = true)]
    pub class: Option<String>,
    /// Classifier-free guidance W: how much more typical of its class an image is made
    #[arg(long, value_name = "W", default_value_t = 0.0, allow_negative_numbers = true)]
    pub guidance: f64,
    /// The noise; the same seed gives the same images
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images computed at once; it changes speed and memory, not the images
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count)]
    pub batch_size: usize,
    /// A PNG file for a grid, or a folder for single PNGs [default: samples.png, or samples-2.png, ... where that is taken]
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Also draw the images the network saw on the way, of the first eight
    #[arg(long, value_name = "PNG", value_parser = path())]
    pub trajectory: Option<PathBuf>,
    /// Draw the way from the first image of seed A to that of seed B
    #[arg(long, value_names = ["A", "B"], num_args = 2, conflicts_with = "seed")]
    pub interpolate: Option<Vec<u64>>,
    /// Turn the images of SOURCE into latents and back, by ddim; --out shows images, latents and what came back
    #[arg(long, value_name = "SOURCE", value_parser = source, conflicts_with_all = ["interpolate", "trajectory", "class"])]
    pub invert: Option<String>,
    /// The part of SOURCE, or a slice of it: `train`, `train[:90%]`, `[9000:]`
    #[arg(long, value_name = "NAME", requires = "invert")]
    pub split: Option<String>,
    /// Further passes through the network at each step of the way to the latent, to be more exact
    #[arg(long, value_name = "N", default_value_t = 4, requires = "invert")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=1000))]
    pub refine: u64,
    /// Also write the latents, as `latents` [N, C, H, W]
    #[arg(long, value_name = "OUT.safetensors", requires = "invert", value_parser = path())]
    pub latents: Option<PathBuf>,
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

/// The name of a variance that needs no learning.
pub(super) fn fixed_variance(text: &str) -> Result<VarianceType, String> {
    let fixed = [VarianceType::FixedSmall, VarianceType::FixedLarge];
    let found = fixed.into_iter().find(|variance| variance.name() == text);
    found.ok_or_else(|| "expected fixed_small or fixed_large".to_owned())
}
