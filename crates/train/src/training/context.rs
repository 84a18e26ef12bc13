//! What stays the same for the whole run, and what follows from its plan.

use std::sync::Arc;

use candle_core::Device;
use ddpm_data::{LoaderConfig, Source};
use ddpm_model::diffusion::SamplerConfig;
use ddpm_run::RunDir;

use crate::config::{TrainConfig, TrainPlan};
use crate::drawing::{BATCH, Request, Start};

/// What stays the same for the whole run.
pub(super) struct RunContext<'a> {
    pub(super) plan: &'a TrainPlan,
    pub(super) run_dir: &'a RunDir,
    pub(super) source: Arc<dyn Source>,
    pub(super) device: &'a Device,
}

/// The loader of a plan's data.
pub(crate) fn loader_config(plan: &TrainPlan) -> LoaderConfig {
    let config = plan.config();
    let data = &config.data;
    LoaderConfig {
        seed: config.run.seed,
        share: plan.share(),
        image_size: data.image_size,
        channels: data.channels,
        crop: data.crop,
        flip: data.flip,
        num_classes: config.data_classes(),
        on_corrupt: data.on_corrupt,
        max_corrupt: data.max_corrupt,
        workers: data.workers,
        prefetch: data.prefetch,
    }
}

/// The sampler of the pictures during training.
pub(crate) fn sampler_config(config: &TrainConfig) -> SamplerConfig {
    let sample = &config.sample;
    SamplerConfig {
        sampler: sample.sampler,
        steps: Some(sample.steps),
        eta: 0.0,
        spacing: sample.sampler.default_spacing(),
    }
}

/// What such a picture shows.
pub(crate) fn picture_request<'a>(config: &TrainConfig, sampler: &'a SamplerConfig) -> Request<'a> {
    let settings = &config.sample;
    Request {
        num: settings.num,
        sampler,
        start: Start::Seed(settings.seed),
        classes: config.all_classes(),
        guidance: None,
        batch_size: BATCH.min(settings.num),
    }
}

/// A device in words.
pub(crate) fn device_name(device: &Device) -> String {
    match device {
        Device::Cpu => {
            let level = ddpm_kernels::simd::level().name();
            format!("cpu ({} threads, {level})", rayon::current_num_threads())
        }
        other => format!("{:?}", other.location()).to_lowercase(),
    }
}
