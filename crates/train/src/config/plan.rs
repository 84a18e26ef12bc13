//! The checked plan of a run: built once from a [`Resolved`] configuration, after every check.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use ddpm_data::{OpenOptions, Origin, Share, Shuffle};
use ddpm_model::diffusion::{BetaSchedule, DiffusionConfig, Schedule, TimestepSamplerKind};
use ddpm_model::unet::ImageShape;
use serde::Serialize;

use super::checks::Checks;
use super::device::DeviceChoice;
use super::error::ConfigError;
use super::identity::config_hash;
use super::layers::Resolved;
use super::types::{Precision, TrainConfig};

/// Above this share of the image left in `x_T`, sampling starts from noise the network has never seen.
pub const MAX_TERMINAL_SIGNAL: f64 = 0.05;

/// How often something happens; `every = 0` in a config means never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence(u64);

impl Cadence {
    /// `every = 0`.
    pub(crate) const NEVER: Self = Self(0);

    /// Every `every` steps; 0: never.
    pub fn new(every: u64) -> Self {
        Self(every)
    }

    /// Whether it happens after `step` steps.
    pub fn is_due(self, step: u64) -> bool {
        self.0 != 0 && step != 0 && step.is_multiple_of(self.0)
    }

    /// How often it happens up to and including step `steps`.
    pub fn count(self, steps: u64) -> u64 {
        steps.checked_div(self.0).unwrap_or(0)
    }
}

/// A setting that works but is probably a mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The key.
    pub key: &'static str,
    /// What is odd about it, and what to do.
    pub message: String,
}

/// A configuration whose values have been checked, alone and against each other.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    resolved: Resolved,
    device: DeviceChoice,
    shape: ImageShape,
    hash: String,
    warnings: Vec<Warning>,
    origin: Origin,
    shuffle: Shuffle,
    share: Share,
}

impl TrainPlan {
    /// Checks a configuration.
    ///
    /// # Errors
    /// The first value that a run cannot use, with a valid one.
    pub fn new(resolved: &Resolved) -> Result<Self, ConfigError> {
        let checks = Checks::new(resolved);
        let device = checks.device()?;
        checks.data()?;
        let shape = checks.model()?;
        let schedule = checks.diffusion()?;
        checks.training(device)?;
        checks.reports()?;
        let hash = config_hash(&resolved.config);
        let warnings = warnings(&resolved.config, &schedule, device);
        let (origin, shuffle) = (Origin::default(), resolved.config.data.shuffle());
        let share = Share::whole(resolved.config.train.batch_size);
        Ok(Self { resolved: resolved.clone(), device, shape, hash, warnings, origin, shuffle, share })
    }

    /// The same plan for steps that follow each other from `origin` on in the order of the images.
    pub(crate) fn starting_at(&self, origin: Origin) -> Self {
        Self { origin, ..self.clone() }
    }

    /// Where in the order of the images its steps begin.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The same plan with this order of the images.
    pub(crate) fn shuffled(&self, shuffle: Shuffle) -> Self {
        Self { shuffle, ..self.clone() }
    }

    /// Which order of the images: as configured, or that of the checkpoint that it goes on from.
    pub fn shuffle(&self) -> Shuffle {
        self.shuffle
    }

    /// The values, each in its valid range.
    pub fn config(&self) -> &TrainConfig {
        &self.resolved.config
    }

    /// The values with their origins.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The config file.
    pub fn path(&self) -> &Path {
        self.resolved.path()
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from(&self.config().run.dir)
    }

    /// The device to open.
    pub fn device(&self) -> DeviceChoice {
        self.device
    }

    /// Shape of the network's input and output.
    pub fn image_shape(&self) -> ImageShape {
        self.shape
    }

    /// How to open `data.source`.
    pub fn open_options(&self) -> OpenOptions {
        let data = &self.config().data;
        let split = Some(data.split.clone()).filter(|split| !split.is_empty());
        OpenOptions { format: data.format, split, stores: data.stores(), limits: data.limits() }
    }

    /// The number of classes that the network is conditioned on, if any.
    pub fn classes(&self) -> Option<usize> {
        self.config().model.num_class_embeds
    }

    /// Images before step `step` (from 0): seen, or passed over after a divergence.
    pub fn images(&self, step: u64) -> u64 {
        self.origin.images_before(step, self.config().train.batch_size)
    }

    /// The part of every global batch that this process learns from: all of it, where it is alone.
    pub fn share(&self) -> Share {
        self.share
    }

    /// The same plan for one of several ranks.
    ///
    /// # Errors
    /// Several ranks cannot train so: there are more of them than images in a batch, or they would need a GPU each.
    pub(crate) fn shared_among(&self, rank: usize, world: usize) -> Result<Self, ConfigError> {
        let checks = Checks::new(&self.resolved);
        let impossible = |key, message, help: &str| Err(checks.impossible(key, message, help));
        if world > 1 && !self.device.is_cpu() {
            let device = &self.config().run.device;
            let message = format!("run.device = \"{device}\" with {world} ranks: several GPUs are not supported yet");
            return impossible(
                "run.device",
                message,
                "run.device = \"cpu\" trains with several ranks; WORLD_SIZE=1 RANK=0 on one GPU",
            );
        }
        let of = self.config().train.batch_size;
        match Share::of_rank(rank, world, of) {
            Some(share) => Ok(Self { share, ..self.clone() }),
            None => {
                let message = format!("train.batch_size = {of} with {world} ranks: a rank would have no image");
                impossible("train.batch_size", message, "train.batch_size is that of all ranks together")
            }
        }
    }

    /// Images computed at once, if the config sets them.
    pub fn micro_batch(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.config().train.micro_batch)
    }

    /// Images computed at once: as the config sets, or all that this process learns from.
    pub fn at_once(&self) -> usize {
        self.micro_batch().map_or(self.share.count(), usize::from)
    }

    /// Largest gradient norm; `None`: no clipping.
    pub fn clip_grad_norm(&self) -> Option<f64> {
        Some(self.config().train.clip_grad_norm).filter(|&norm| norm > 0.0)
    }

    /// When checkpoints are written, apart from the last one.
    pub fn checkpoint_cadence(&self) -> Cadence {
        Cadence::new(self.config().checkpoint.every)
    }

    /// When pictures are drawn, apart from the last one.
    pub fn sample_cadence(&self) -> Cadence {
        Cadence::new(self.config().sample.every)
    }

    /// When a line of metrics is written.
    pub fn log_cadence(&self) -> Cadence {
        Cadence::new(self.config().log.every)
    }

    /// The hash of all keys that can change past results; see [`config_hash`].
    pub fn config_hash(&self) -> &str {
        &self.hash
    }

    /// Settings that work but are probably mistakes.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

fn warnings(config: &TrainConfig, schedule: &Schedule, device: DeviceChoice) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |key, message| warnings.push(Warning { key, message });
    let signal = schedule.terminal_signal();
    if signal > MAX_TERMINAL_SIGNAL {
        let message = format!(
            "sqrt(alpha_bar_T) = {signal:.3}: that share of the image is left in x_T, but sampling starts from pure \
             noise; at most {MAX_TERMINAL_SIGNAL} is usual: raise num_train_timesteps or beta_end"
        );
        warn("diffusion.num_train_timesteps", message);
    }
    if let Some(message) = unscaled_linear(&config.diffusion) {
        warn("diffusion.beta_end", message);
    }
    let train = &config.train;
    if train.warmup_steps >= train.steps {
        let message =
            format!("{} steps of warm-up, but only {} in all: lr is never reached", train.warmup_steps, train.steps);
        warn("train.warmup_steps", message);
    }
    if train.precision != Precision::F32 && device.is_cpu() {
        let message = format!(
            "\"{}\" is for GPUs; the CPU computes in f32. Leave it in a run that has begun: its precision is fixed",
            train.precision
        );
        warn("train.precision", message);
    }
    if train.allow_tf32 && (train.precision != Precision::F32 || device.is_cpu()) {
        warn("train.allow_tf32", "has no effect: it is for GPUs with train.precision = \"f32\"".to_owned());
    }
    if let Some(message) = late_importance_sampling(config) {
        warn("loss.timestep_sampler", message);
    }
    if config.checkpoint.every == 0 || config.checkpoint.every > train.steps {
        warn("checkpoint.every", "only the end is saved: a crash loses the whole run".to_owned());
    }
    if config.hub.push_every > 0 && config.hub.repo.is_empty() {
        warn("hub.push_every", "hub.repo is not set: nothing is pushed".to_owned());
    }
    if train.ema_decays.is_empty() {
        warn("train.ema_decays", "samples are taken from the raw weights, which gives noisier images".to_owned());
    }
    warnings
}

/// The linear schedule of improved-diffusion and guided-diffusion for T steps has its ends multiplied by 1000 / T
/// (`get_named_beta_schedule`), so that it ends in as much noise; here, as in diffusers, the ends are as configured.
fn unscaled_linear(diffusion: &DiffusionConfig) -> Option<String> {
    const PUBLISHED: usize = 1000;
    let DiffusionConfig { num_train_timesteps: steps, beta_schedule, beta_start, beta_end, .. } = *diffusion;
    let usual = DiffusionConfig::default();
    let as_published =
        beta_schedule == BetaSchedule::Linear && (beta_start, beta_end) == (usual.beta_start, usual.beta_end);
    (as_published && steps != PUBLISHED).then(|| {
        let scale = PUBLISHED as f64 / steps as f64;
        let (start, end) = (beta_start * scale, beta_end * scale);
        format!(
            "the ends are those for {PUBLISHED} steps, and there are {steps}: the linear schedule of improved-diffusion would have \
             beta_start = {start}, beta_end = {end}"
        )
    })
}

/// `loss_second_moment` needs ten losses at every t; uniform draws fill them after about `T (ln T + 9 ln ln T)` images
/// (Newman & Shepp 1960, "The double dixie cup problem").
fn late_importance_sampling(config: &TrainConfig) -> Option<String> {
    if config.loss.timestep_sampler == TimestepSamplerKind::Uniform {
        return None;
    }
    let (timesteps, batch) = (config.diffusion.num_train_timesteps as f64, config.train.batch_size as f64);
    let images = timesteps * (timesteps.ln() + 9.0 * timesteps.ln().max(1.0).ln());
    let (needed, steps) = ((images / batch).ceil(), config.train.steps);
    (needed >= steps as f64).then(|| {
        format!(
            "\"loss_second_moment\" draws t uniformly until every timestep has ten losses, about {needed:.0} steps, but \
             the run has {steps}: train longer, or choose \"uniform\""
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan(text: &str) -> TrainPlan {
        let text = format!("{text}\n[data]\nsource = \"builtin:fashion10k\"\n");
        let resolved = Resolved::from_layers(Path::new("configs/my.toml"), &text, [], &[]).unwrap();
        TrainPlan::new(&resolved).unwrap()
    }

    #[test]
    fn zero_means_never() {
        assert!(!Cadence::new(0).is_due(10));
        assert!(Cadence::new(5).is_due(10) && !Cadence::new(5).is_due(11) && !Cadence::new(5).is_due(0));
        assert_eq!((Cadence::new(0).count(10), Cadence::new(4).count(10)), (0, 2));
        assert_eq!(plan("[train]\nclip_grad_norm = 0").clip_grad_norm(), None);
        assert_eq!(plan("").micro_batch(), None);
    }

    #[test]
    fn a_schedule_that_leaves_the_image_visible_is_warned_about() {
        let plan = plan("[diffusion]\nnum_train_timesteps = 100");
        assert_eq!(plan.warnings().len(), 2);
        assert_eq!(plan.warnings()[0].key, "diffusion.num_train_timesteps");
        assert!(plan.warnings()[0].message.starts_with("sqrt(alpha_bar_T) = 0.603:"), "{}", plan.warnings()[0].message);
    }

    #[test]
    fn a_linear_schedule_of_other_lengths_is_compared_with_the_reference() {
        let warned = |text: &str| {
            let plan = plan(&format!("[diffusion]\n{text}"));
            plan.warnings().iter().find(|warning| warning.key == "diffusion.beta_end").map(|w| w.message.clone())
        };
        let message = warned("num_train_timesteps = 4000").unwrap_or_default();
        assert!(message.ends_with("would have beta_start = 0.000025, beta_end = 0.005"), "{message}");
        assert_eq!(warned("num_train_timesteps = 1000"), None);
        assert_eq!(warned("num_train_timesteps = 4000\nbeta_schedule = \"squaredcos_cap_v2\""), None);
        assert_eq!(warned("num_train_timesteps = 4000\nbeta_start = 0.000025\nbeta_end = 0.005"), None);
    }

    #[test]
    fn sixteen_bits_are_for_gpus() {
        let keys = |device: &str| {
            let plan = plan(&format!("[run]\ndevice = \"{device}\"\n[train]\nprecision = \"bf16\""));
            plan.warnings().iter().map(|warning| warning.key).collect::<Vec<_>>()
        };
        assert_eq!((keys("cpu"), keys("cuda")), (vec!["train.precision"], vec![]));
    }

    #[test]
    fn settings_that_are_probably_not_meant_are_warned_about() {
        let plan = plan(
            "[train]\nsteps = 100\nema_decays = []\n[checkpoint]\nevery = 0\n[loss]\ntimestep_sampler = \"loss_second_moment\"\n[hub]\npush_every = 5",
        );
        let keys: Vec<&str> = plan.warnings().iter().map(|warning| warning.key).collect();
        assert_eq!(
            keys,
            ["train.warmup_steps", "loss.timestep_sampler", "checkpoint.every", "hub.push_every", "train.ema_decays"]
        );
    }
}
