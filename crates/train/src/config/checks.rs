//! Refuses values that a run cannot use. Each message has one sentence: the place, the key, what was found, what was expected,
//! what to do.

use std::fmt::Display;

use ddpm_data::MAX_IMAGE_SIZE;
use ddpm_hub::RepoName;
use ddpm_kernels::optim::MAX_AVERAGES;
use ddpm_model::diffusion::{DiffusionError, SamplerKind, Schedule};
use ddpm_model::unet::{ImageShape, UNetConfigError};

use super::address::host_and_port;
use super::device::DeviceChoice;
use super::error::{ConfigError, Origin};
use super::layers::Resolved;
use super::types::TrainConfig;

/// The checks, section by section.
pub(super) struct Checks<'a> {
    resolved: &'a Resolved,
    config: &'a TrainConfig,
}

impl<'a> Checks<'a> {
    pub(super) fn new(resolved: &'a Resolved) -> Self {
        Self { resolved, config: &resolved.config }
    }

    pub(super) fn device(&self) -> Result<DeviceChoice, ConfigError> {
        let device = &self.config.run.device;
        device.parse().map_err(|expected: String| {
            let help = "auto takes a GPU if there is one";
            self.impossible("run.device", format!("run.device = \"{device}\": {expected}"), help)
        })
    }

    pub(super) fn data(&self) -> Result<(), ConfigError> {
        let data = &self.config.data;
        if data.source.is_empty() {
            let help = "write the path of a folder of images or of a .parquet file, or \"builtin:fashion10k\"";
            return Err(self.impossible("data.source", "data.source is not set".to_owned(), help));
        }
        let size = data.image_size;
        let sides = size.sides();
        let (most, help) = (MAX_IMAGE_SIZE, "is there a digit too many?");
        let fits = sides.iter().all(|&side| side <= most);
        self.require("data.image_size", size, fits, &format!("at most {most}"), help)?;
        self.at_most("data.prefetch", data.prefetch, 1024)?;
        let help = "300 outlasts most failures of a network";
        self.require(
            "data.retry_for",
            data.retry_for,
            (1..=86_400).contains(&data.retry_for),
            "1 to 86400 seconds",
            help,
        )?;
        let help = "32 trains fast; 64 and more want a GPU";
        self.require("data.image_size", size, !sides.contains(&0), "at least 1", help)?;
        let channels = data.channels;
        self.require("data.channels", channels, matches!(channels, 1 | 3), "1 (grey) or 3 (RGB)", "use 1 or 3")?;
        let share = data.max_corrupt;
        let help = "0.01 lets one image in a hundred be skipped";
        self.require("data.max_corrupt", share, (0.0..=1.0).contains(&share), "a share in [0, 1]", help)?;
        for (key, most) in [("data.max_pixels", data.max_pixels), ("data.max_bytes", data.max_bytes)] {
            self.require(key, most, most > 0, "at least 1", "268435456 is the default")?;
        }
        let help = "4 batches ahead hide an uneven disk";
        self.require("data.prefetch", data.prefetch, data.prefetch > 0, "at least 1", help)?;
        self.classes()
    }

    fn classes(&self) -> Result<(), ConfigError> {
        let (classes, embeds) = (self.config.data.num_classes, self.config.model.num_class_embeds);
        let dropout = self.config.loss.label_dropout;
        let Some(embeds) = embeds else {
            if classes > 0 {
                let message = format!("data.num_classes = {classes}, but model.num_class_embeds is not set");
                let help = "set model.num_class_embeds, or leave data.num_classes out to ignore labels";
                return Err(self.impossible("data.num_classes", message, help));
            }
            if dropout > 0.0 {
                let message = format!("loss.label_dropout = {dropout}, but model.num_class_embeds is not set");
                let help = "set model.num_class_embeds, or leave loss.label_dropout out";
                return Err(self.impossible("loss.label_dropout", message, help));
            }
            if self.config.model.class_embed_type.is_some() {
                let key = "model.class_embed_type";
                let message = format!("{key} is set, but model.num_class_embeds is not");
                let help = "set model.num_class_embeds too: training must know how many classes there are";
                return Err(self.impossible(key, message, help));
            }
            return Ok(());
        };
        let expected = if dropout > 0.0 { classes + 1 } else { classes };
        if embeds == expected && classes > 0 {
            return Ok(());
        }
        let key = "model.num_class_embeds";
        let (why, help) = if dropout > 0.0 {
            (" and one more for a hidden label (loss.label_dropout)", "count the classes of the data and one more")
        } else {
            ("", "count the classes of the data")
        };
        let message = format!("{key} = {embeds}: expected data.num_classes = {classes}{why}");
        Err(self.impossible(key, message, help))
    }

    pub(super) fn model(&self) -> Result<ImageShape, ConfigError> {
        let TrainConfig { model, data, diffusion, .. } = self.config;
        let (size, channels) = (data.image_size, data.channels);
        let out = diffusion.variance_type.out_channels(channels);
        self.follows("model.sample_size", model.sample_size, size, &format!("data.image_size = {size}"))?;
        self.follows("model.in_channels", model.in_channels, channels, &format!("data.channels = {channels}"))?;
        let because = format!("data.channels and diffusion.variance_type make {out}");
        self.follows("model.out_channels", model.out_channels, out, &because)?;
        for &channels in &model.block_out_channels {
            self.at_most("model.block_out_channels", channels, 65_536)?;
        }
        self.at_most("model.layers_per_block", model.layers_per_block, 128)?;
        self.at_most("model.time_embedding_dim", model.time_embedding_dim.unwrap_or(0), 1 << 20)?;
        self.at_most("model.num_class_embeds", model.num_class_embeds.unwrap_or(0), 1 << 20)?;
        model.validate().and_then(|()| model.image_shape()).map_err(|error| self.model_error(&error))
    }

    pub(super) fn diffusion(&self) -> Result<Schedule, ConfigError> {
        let TrainConfig { diffusion, loss, .. } = self.config;
        loss.validate(diffusion).and_then(|()| Schedule::new(diffusion)).map_err(|error| self.diffusion_error(&error))
    }

    pub(super) fn training(&self, device: DeviceChoice) -> Result<(), ConfigError> {
        let train = &self.config.train;
        self.require("train.steps", train.steps, train.steps > 0, "at least 1", "a first try takes some thousands")?;
        self.require("train.batch_size", train.batch_size, train.batch_size > 0, "at least 1", "32 to 128 are usual")?;
        self.at_most("train.batch_size", train.batch_size, 1 << 20)?;
        if train.micro_batch > train.batch_size {
            let (micro, batch) = (train.micro_batch, train.batch_size);
            let message = format!("train.micro_batch = {micro} is larger than train.batch_size = {batch}");
            return Err(self.impossible("train.micro_batch", message, "leave it out, or use a part of the batch"));
        }
        let positive =
            |key, value: f64, help| self.require(key, value, value > 0.0 && value.is_finite(), "above 0", help);
        positive("train.lr", train.lr, "2e-4 is usual")?;
        positive("train.eps", train.eps, "1e-8 is usual")?;
        let not_negative = |key, value: f64, help| self.require(key, value, value >= 0.0, "0 or more", help);
        not_negative("train.weight_decay", train.weight_decay, "0 is usual for diffusion models")?;
        let spike = train.spike_factor;
        self.require(
            "train.spike_factor",
            spike,
            spike == 0.0 || spike > 1.0,
            "0, or more than 1",
            "10 is a spike; 0 skips none",
        )?;
        not_negative("train.clip_grad_norm", train.clip_grad_norm, "1 is usual; 0 turns clipping off")?;
        for beta in train.betas {
            let expected = "two numbers in [0, 1)";
            self.require_list(
                "train.betas",
                &train.betas,
                (0.0..1.0).contains(&beta),
                expected,
                "[0.9, 0.999] is usual",
            )?;
        }
        self.ema_decays(device)
    }

    fn ema_decays(&self, device: DeviceChoice) -> Result<(), ConfigError> {
        let decays = &self.config.train.ema_decays;
        let check = |ok, expected| self.require_list("train.ema_decays", decays, ok, expected, "[0.9999] is usual");
        for (at, decay) in decays.iter().enumerate() {
            check((0.0..1.0).contains(decay), "numbers in [0, 1)")?;
            check(!decays[..at].contains(decay), "different numbers")?;
        }
        if decays.len() > MAX_AVERAGES && !device.is_cpu() {
            let (found, most) = (decays.len(), MAX_AVERAGES);
            let message = format!("train.ema_decays has {found} entries: a GPU keeps {most} averages at most");
            return Err(self.impossible("train.ema_decays", message, "leave some out; samples use the first"));
        }
        Ok(())
    }

    /// `[checkpoint]`, `[sample]`, `[log]`, `[hub]`, and when a rank is lost.
    pub(super) fn reports(&self) -> Result<(), ConfigError> {
        let TrainConfig { checkpoint, sample, diffusion, log, hub, .. } = self.config;
        let help = "2 or more survive a damaged newest one";
        self.require("checkpoint.keep_last", checkpoint.keep_last, checkpoint.keep_last > 0, "at least 1", help)?;
        self.require("sample.num", sample.num, sample.num > 0, "at least 1", "16 fill a grid of 4 x 4")?;
        self.at_most("sample.num", sample.num, 4096)?;
        let (steps, timesteps) = (sample.steps, diffusion.num_train_timesteps);
        let expected = format!("1 to diffusion.num_train_timesteps ({timesteps})");
        self.require("sample.steps", steps, (1..=timesteps).contains(&steps), &expected, "50 is usual with ddim")?;
        let clipped = sample.use_clipped_model_output;
        let fits = !clipped || sample.sampler == SamplerKind::Ddim;
        let expected = format!("false with sample.sampler = \"{}\"", sample.sampler);
        self.require("sample.use_clipped_model_output", clipped, fits, &expected, "only ddim's step has an eps")?;
        if !hub.repo.is_empty() {
            self.uploads(&hub.repo)?;
        }
        let silence = self.config.run.rank_timeout;
        self.require("run.rank_timeout", silence, silence > 0, "at least 1", "30 seconds are usual")?;
        let address = &log.metrics_addr;
        if !address.is_empty() && host_and_port(address).is_none() {
            let message =
                format!("log.metrics_addr = \"{address}\": expected host:port, or a port of this machine alone");
            let help = "\"127.0.0.1:9100\" serves this machine, \"0.0.0.0:9100\" everyone who reaches it";
            return Err(self.impossible("log.metrics_addr", message, help));
        }
        Ok(())
    }

    fn uploads(&self, repo: &str) -> Result<(), ConfigError> {
        if !cfg!(feature = "hub") {
            let message = format!("hub.repo = \"{repo}\": this program was built without the feature `hub`");
            return Err(self.impossible("hub.repo", message, "leave hub.repo out; the run directory keeps everything"));
        }
        repo.parse::<RepoName>().map(drop).map_err(|expected| {
            let message = format!("hub.repo = \"{repo}\": {expected}");
            self.impossible("hub.repo", message, "name a repository of yours on the hub, or leave hub.repo out")
        })
    }

    /// Refuses a value that should follow from other keys and does not.
    fn follows<T: Display + PartialEq + Copy>(
        &self,
        key: &str,
        found: Option<T>,
        want: T,
        because: &str,
    ) -> Result<(), ConfigError> {
        match found {
            Some(found) if found != want => {
                let message = format!("{key} = {found}, but {because}");
                Err(self.impossible(key, message, &format!("leave {key} out: it follows the rest of the config")))
            }
            _ => Ok(()),
        }
    }

    fn require(&self, key: &str, found: impl Display, ok: bool, expected: &str, help: &str) -> Result<(), ConfigError> {
        if ok { Ok(()) } else { Err(self.impossible(key, format!("{key} = {found}: expected {expected}"), help)) }
    }

    /// Bounds that no real run exceeds; beyond them a run would run out of memory before it could say why.
    fn at_most(&self, key: &str, found: usize, limit: usize) -> Result<(), ConfigError> {
        self.require(key, found, found <= limit, &format!("at most {limit}"), "is there a digit too many?")
    }

    fn require_list(&self, key: &str, found: &[f64], ok: bool, expected: &str, help: &str) -> Result<(), ConfigError> {
        self.require(key, format_args!("{found:?}"), ok, expected, help)
    }

    fn model_error(&self, error: &UNetConfigError) -> ConfigError {
        let key = match error {
            UNetConfigError::Zero { key }
            | UNetConfigError::Missing { key }
            | UNetConfigError::Length { key, .. }
            | UNetConfigError::DoesNotDivide { key, .. }
            | UNetConfigError::Range { key, .. } => format!("model.{}", key.split('[').next().unwrap_or(key)),
            UNetConfigError::ImageSize { .. } => "data.image_size".to_owned(),
            _ => "model.block_out_channels".to_owned(),
        };
        self.impossible(&key, error.to_string(), &error.help().unwrap_or_default())
    }

    fn diffusion_error(&self, error: &DiffusionError) -> ConfigError {
        let key = if let DiffusionError::Setting { key, .. } = error { key } else { "diffusion.beta_schedule" };
        self.impossible(key, error.to_string(), error.help().unwrap_or_default())
    }

    /// An error about `key`, which begins with the place where its value was set.
    pub(super) fn impossible(&self, key: &str, message: String, help: &str) -> ConfigError {
        let place = match self.resolved.origin(key) {
            Origin::Default => self.resolved.path().display().to_string(),
            origin => origin.to_string(),
        };
        ConfigError::Impossible { place, message, help: help.to_owned() }
    }
}

#[cfg(test)]
mod tests;
