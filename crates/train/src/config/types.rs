//! The configuration as a user writes it: one plain struct per section. Defaults are set only here.
//!
//! Only types are checked here; [`TrainPlan`](super::TrainPlan) checks the values. `every = 0` means never, everywhere.
//! `[model]`, `[diffusion]` and `[loss]` are defined beside the code they set up.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Duration;

pub use ddpm_data::{Background, Crop, Fit, Format, ImageSize, OnCorrupt};
use ddpm_data::{Fitting, ImageLimits, Shuffle, StoreOptions};
pub use ddpm_model::diffusion::{DiffusionConfig, LossConfig, SamplerKind};
use ddpm_model::optim::AdamWConfig;
pub use ddpm_model::optim::LrSchedule;
pub use ddpm_model::unet::UNetConfig;
use serde::{Deserialize, Serialize, Serializer};

/// A whole configuration; the sections of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Name, place, seed and device.
    pub run: RunConfig,
    /// Images, and how they become batches.
    pub data: DataConfig,
    /// The network, under the names of diffusers' `UNet2DModel`.
    pub model: UNetConfig,
    /// The noise schedule, and what the network predicts.
    pub diffusion: DiffusionConfig,
    /// What is minimised.
    pub loss: LossConfig,
    /// The optimizer, its schedule, and how a batch is computed.
    pub train: OptimConfig,
    /// When to save and what to keep.
    pub checkpoint: CheckpointConfig,
    /// Pictures during training.
    pub sample: SampleConfig,
    /// What is reported, and how often.
    pub log: LogConfig,
    /// Uploads to the Hugging Face hub.
    pub hub: HubConfig,
}

impl TrainConfig {
    /// The number of image classes that the model knows, 0 for an unconditional model: its embeddings, less the one for "no
    /// class" that `loss.label_dropout` needs.
    pub fn model_classes(&self) -> usize {
        let none = usize::from(self.loss.label_dropout > 0.0);
        self.model.num_class_embeds.map_or(0, |embeds| embeds.saturating_sub(none))
    }

    /// Classes of the data; none for an unconditional model.
    pub fn data_classes(&self) -> Option<usize> {
        Some(self.model_classes()).filter(|&classes| classes > 0)
    }

    /// The classes pictures are drawn of: all that the data has, in turn; none for an unconditional model.
    pub fn all_classes(&self) -> Option<Vec<u32>> {
        self.data_classes().map(|classes| (0..classes as u32).collect())
    }
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run; left out, that of the config file.
    pub name: String,
    /// The run directory; left out, `runs/<name>`.
    pub dir: String,
    /// Every random number of the run is a function of this and of its place.
    pub seed: u64,
    /// `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Seconds without any progress after which a run is reported as stalled; 0: never.
    pub stall_after: u64,
    /// End a stalled run's process with 76, for a supervisor to start it again.
    pub exit_on_stall: bool,
    /// Seconds without a sign of life after which another rank counts as lost, which ends all of them with 76.
    pub rank_timeout: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        let device = "auto".to_owned();
        Self {
            name: String::new(),
            dir: String::new(),
            seed: 0,
            device,
            stall_after: 1800,
            exit_on_stall: false,
            rank_timeout: 30,
        }
    }
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Where the images are: `builtin:fashion10k`, a folder, a file with many of them, or an address of a store
    /// (`s3://`, `gs://`, `az://`, `https://`, `hf://datasets/`). What is written anywhere has no query, which may be a signature.
    #[serde(serialize_with = "without_query")]
    pub source: String,
    /// How the images are stored; `auto` sees it from the source.
    pub format: Format,
    /// The part of a data set that has several; left out, `train` where there are splits, and else all of it.
    pub split: String,
    /// Height and width of the images that the network sees, in pixels: one number, or `[height, width]`.
    pub image_size: ImageSize,
    /// 1 for grey, 3 for RGB; images are converted.
    pub channels: usize,
    /// How an image that is larger, or of another shape, is made to fit.
    pub fit: Fit,
    /// Where it is cut, with `fit = "crop"`.
    pub crop: Crop,
    /// Enlarge images that are smaller than the network's in both directions, instead of centring them on the background.
    pub upscale: bool,
    /// The colour under transparent pixels and around images; left out, white under and black around.
    pub background: Background,
    /// Mirror half of the images, left to right.
    pub flip: bool,
    /// Images that are shuffled among each other; 0: all of them, and 16384 where they come over a network in large files.
    pub shuffle_window: u64,
    /// Number of classes of the labels; 0: that of the model, see [`TrainConfig::model_classes`].
    pub num_classes: usize,
    /// What to do with an image that cannot be decoded.
    pub on_corrupt: OnCorrupt,
    /// Share of the images, in [0, 1], that may be skipped before the run fails.
    pub max_corrupt: f64,
    /// Pixels of an image; one with more is as one that cannot be decoded.
    pub max_pixels: u64,
    /// Bytes of an image, in its file and decoded; likewise.
    pub max_bytes: u64,
    /// Where indices of shards, and copies of what came over a network, are kept; left out, `ddpm` in the user's cache directory.
    pub cache_dir: String,
    /// Bytes that these copies may take; 0: none are kept.
    pub cache_bytes: u64,
    /// Seconds for which a read over a network is tried again before the run ends.
    pub retry_for: u64,
    /// Threads that read and decode; 0: as many as are useful.
    pub workers: usize,
    /// Batches that are made ahead.
    pub prefetch: usize,
}

/// Writes a source as it may be kept.
fn without_query<S: Serializer>(source: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(ddpm_data::without_query(source))
}

impl DataConfig {
    /// How images are made to fit.
    pub fn fitting(&self) -> Fitting {
        Fitting { fit: self.fit, upscale: self.upscale, background: self.background }
    }

    /// How large an image may be.
    pub fn limits(&self) -> ImageLimits {
        ImageLimits { max_pixels: self.max_pixels, max_bytes: self.max_bytes }
    }

    /// Which order of the images is asked for.
    pub fn shuffle(&self) -> Shuffle {
        match self.shuffle_window {
            0 => Shuffle::Auto,
            window => Shuffle::Windows(window),
        }
    }

    /// How the source is reached.
    pub fn stores(&self) -> StoreOptions {
        StoreOptions {
            cache_dir: Some(PathBuf::from(&self.cache_dir)).filter(|dir| !dir.as_os_str().is_empty()),
            cache_bytes: self.cache_bytes,
            retry_for: Duration::from_secs(self.retry_for),
            stop: None,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: String::new(),
            format: Format::Auto,
            split: String::new(),
            image_size: ImageSize::square(32),
            channels: 3,
            fit: Fit::Crop,
            crop: Crop::Center,
            upscale: true,
            background: Background::default(),
            flip: false,
            shuffle_window: 0,
            num_classes: 0,
            on_corrupt: OnCorrupt::Skip,
            max_corrupt: 0.01,
            max_pixels: ImageLimits::default().max_pixels,
            max_bytes: ImageLimits::default().max_bytes,
            cache_dir: String::new(),
            cache_bytes: StoreOptions::default().cache_bytes,
            retry_for: StoreOptions::default().retry_for.as_secs(),
            workers: 0,
            prefetch: 4,
        }
    }
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Optimizer steps in all.
    pub steps: u64,
    /// Images per step, over all devices.
    pub batch_size: usize,
    /// Images computed at once; a batch is the mean of several. 0: the whole batch.
    pub micro_batch: usize,
    /// The learning rate after warm-up.
    pub lr: f64,
    /// AdamW's decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// The course of the learning rate after warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps over which the learning rate grows from 0.
    pub warmup_steps: u64,
    /// Largest norm of the whole gradient; 0: no clipping.
    pub clip_grad_norm: f64,
    /// How many steps in a row may have a loss or gradient that is not finite: these are skipped.
    pub max_bad_steps: u64,
    /// Skip a step whose gradient's norm is more than so many times the usual one; 0: none.
    pub spike_factor: f64,
    /// How often a run that diverges goes back to its newest checkpoint and on with other images; 0: never.
    pub max_rollbacks: u64,
    /// Number format of activations and products; weights are always f32.
    pub precision: Precision,
    /// On a GPU, f32 products in TensorFloat-32, whose factors have 10 bits of mantissa.
    pub allow_tf32: bool,
    /// Recompute activations in the backward pass instead of keeping them: less memory, more time.
    pub gradient_checkpointing: bool,
    /// Equal bits from equal runs, also on a GPU, where that costs time.
    pub deterministic: bool,
    /// Decay rates of the moving averages of the weights; samples use the first.
    pub ema_decays: Vec<f64>,
    /// Let the averages forget their start: a decay of at most `(1 + n) / (10 + n)` after n steps.
    pub ema_warmup: bool,
}

impl OptimConfig {
    /// The optimizer's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            betas: self.betas,
            eps: self.eps,
            weight_decay: self.weight_decay,
            clip_grad_norm: self.clip_grad_norm,
            ema_decays: self.ema_decays.clone(),
            ema_warmup: self.ema_warmup,
            max_bad_steps: self.max_bad_steps,
            spike_factor: self.spike_factor,
        }
    }
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            steps: 100_000,
            batch_size: 128,
            micro_batch: 0,
            lr: 2e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            lr_schedule: LrSchedule::Constant,
            warmup_steps: 500,
            clip_grad_norm: 1.0,
            max_bad_steps: 10,
            spike_factor: 0.0,
            max_rollbacks: 2,
            precision: Precision::F32,
            allow_tf32: false,
            gradient_checkpointing: false,
            deterministic: false,
            ema_decays: vec![0.9999],
            ema_warmup: true,
        }
    }
}

/// Number format of activations and products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with f32's range; the CPU computes in f32 all the same.
    Bf16,
    /// 16 bits with a scaled loss; likewise.
    F16,
}

impl Display for Precision {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps from one checkpoint to the next; 0: only at the end.
    pub every: u64,
    /// How many of the newest are kept.
    pub keep_last: usize,
    /// Checkpoints at multiples of this many steps are kept for good; 0: none.
    pub keep_every: u64,
    /// Write beside the training instead of pausing it.
    pub r#async: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 5000, keep_last: 3, keep_every: 0, r#async: true }
    }
}

/// `[sample]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Training steps from one picture to the next, and one at the end; 0: never.
    pub every: u64,
    /// Images in a picture.
    pub num: usize,
    /// How images are drawn.
    pub sampler: SamplerKind,
    /// Steps of the sampler, at most `diffusion.num_train_timesteps`.
    pub steps: usize,
    /// Take the eps of `ddim` from the clamped x_0 instead of the network.
    pub use_clipped_model_output: bool,
    /// Seed of the noise; the same every time, so that pictures can be compared.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { every: 5000, num: 16, sampler: SamplerKind::Ddim, steps: 50, use_clipped_model_output: false, seed: 0 }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Steps from one line of metrics to the next; 0: never.
    pub every: u64,
    /// Write TensorBoard event files.
    pub tensorboard: bool,
    /// Write `metrics.jsonl`.
    pub jsonl: bool,
    /// Where to serve metrics over HTTP: `host:port`, or a port of this machine alone; left out: nowhere.
    pub metrics_addr: String,
    /// Write a hash of the weights with each line of metrics; several ranks compare theirs.
    pub params_hash: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every: 50, tensorboard: true, jsonl: true, metrics_addr: String::new(), params_hash: false }
    }
}

/// `[hub]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// `owner/name` on the hub; left out: nothing is uploaded.
    pub repo: String,
    /// Steps from one upload to the next; 0: only at the end.
    pub push_every: u64,
    /// Make the repository private.
    pub private: bool,
}
