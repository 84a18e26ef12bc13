//! What stays fixed for the whole run, and the settings that follow from its plan: loader, sampler, pictures.

use std::sync::Arc;

use candle_core::Device;
use ddpm_data::{DataError, LoaderConfig, Source};
use ddpm_model::diffusion::SamplerConfig;
use ddpm_run::RunDir;

use super::exporter::Exporter;
use super::stop::Requests;
use super::watchdog::Watchdog;
use crate::config::{TrainConfig, TrainPlan};
use crate::drawing::{BATCH, Request, Start};
use crate::known_data::KnownData;
use crate::sensors::Sensors;

/// What stays fixed for the whole run.
pub(super) struct RunSetup<'a> {
    pub(super) plan: &'a TrainPlan,
    pub(super) run_dir: &'a RunDir,
    pub(super) source: Arc<dyn Source>,
    pub(super) data: &'a KnownData,
    pub(super) device: &'a Device,
    /// How often the run has gone back after a divergence.
    pub(super) rollbacks: u64,
    /// To be told what the run does.
    pub(super) watchdog: Watchdog,
    /// Likewise.
    pub(super) exporter: Exporter,
    /// Of the GPUs, for a run on one.
    pub(super) sensors: Option<Arc<Sensors>>,
}

/// Opens the images of a plan. A request to stop ends the waiting for a store.
///
/// # Errors
/// They cannot be opened.
pub(super) fn open_data(plan: &TrainPlan, requests: &Requests) -> Result<Arc<dyn Source>, DataError> {
    let mut options = plan.open_options();
    options.stores.stop = Some(Arc::clone(&requests.stop));
    ddpm_data::open(&plan.config().data.source, &options)
}

/// The loader's settings, from a plan.
pub(crate) fn loader_config(plan: &TrainPlan) -> LoaderConfig {
    let config = plan.config();
    let data = &config.data;
    LoaderConfig {
        seed: config.run.seed,
        share: plan.share(),
        origin: plan.origin(),
        shuffle: plan.shuffle(),
        image_size: data.image_size,
        limits: data.limits(),
        channels: data.channels,
        crop: data.crop,
        fitting: data.fitting(),
        flip: data.flip,
        num_classes: config.data_classes(),
        on_corrupt: data.on_corrupt,
        max_corrupt: data.max_corrupt,
        workers: data.workers,
        prefetch: data.prefetch,
    }
}

/// The sampler's settings for the pictures drawn during training.
pub(crate) fn sampler_config(config: &TrainConfig) -> SamplerConfig {
    let sample = &config.sample;
    SamplerConfig {
        sampler: sample.sampler,
        steps: Some(sample.steps),
        eta: 0.0,
        use_clipped_model_output: sample.use_clipped_model_output,
        spacing: sample.sampler.default_spacing(),
    }
}

/// What such a picture is to show.
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

/// A device's name, for a person.
pub(crate) fn device_name(device: &Device) -> String {
    match device {
        Device::Cpu => {
            let level = ddpm_kernels::simd::level().name();
            format!("cpu ({} threads, {level})", rayon::current_num_threads())
        }
        other => format!("{:?}", other.location()).to_lowercase(),
    }
}
