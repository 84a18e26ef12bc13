//! Throughput: how many images a model draws, and how many a data set delivers, per second.

use std::sync::Arc;
use std::time::Instant;

use ddpm_data::{Loader, decoder_limit};
use ddpm_model::diffusion::DiffusionProcess;
use ddpm_model::params::Params;
use ddpm_model::unet::UNet;
use serde::Serialize;

use super::step::{median, milliseconds};
use crate::config::TrainPlan;
use crate::config::set_arithmetic;
use crate::drawing::{Glimpse, Onlooker, Painter, Request, Start};
use crate::error::Error;
use crate::memory;
use crate::training::setup::{device_name, loader_config, sampler_config};

/// The measured cost of drawing images.
#[derive(Clone, Debug, Serialize)]
pub struct SampleMeasurement {
    /// At the median time.
    pub images_per_s: f64,
    /// Median time of all images from noise to bytes.
    pub median_ms: f64,
    /// The fastest.
    pub min_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Passes through the network.
    pub steps: usize,
    /// Images, all at once.
    pub batch_size: usize,
    /// The sampler.
    pub sampler: String,
    /// Number format, named as `train.precision` is.
    pub precision: String,
    /// The device.
    pub device: String,
    /// Peak memory so far: resident memory of the process, or on a GPU that of tensors and scratch space.
    pub peak_bytes: Option<u64>,
}

/// Draws the pictures of `[sample]` `repeat` times, after once to warm up, all at once and with the weights that a run of
/// `plan` begins with: they do not affect the time of a pass.
///
/// # Errors
/// The device cannot be opened, or a pass fails.
pub fn measure_sample(plan: &TrainPlan, repeat: usize) -> Result<SampleMeasurement, Error> {
    let (config, device) = (plan.config(), plan.device().open()?);
    let unet = UNet::new(&config.model)?;
    let dtype = set_arithmetic(&config.train, &device)?;
    let params = Params::initialise(unet.layout(), config.run.seed, &device)?.computing_in(dtype)?;
    let process = DiffusionProcess::new(&config.diffusion)?;
    let painter = Painter { unet: &unet, params: &params, process: &process };
    let (sampler, num) = (sampler_config(config), config.sample.num);
    let request = Request {
        num,
        sampler: &sampler,
        start: Start::Seed(config.run.seed),
        classes: config.all_classes(),
        guidance: None,
        batch_size: num,
    };
    let mut times = Vec::with_capacity(repeat);
    let mut drawing = painter.prepare(&request)?;
    let onlooker = &mut Onlooker { progress: &mut |_| (), proceed: &|| true, glimpse: &mut |_: Glimpse<'_>| Ok(()) };
    for repetition in 0..=repeat {
        let start = Instant::now();
        drawing.draw(onlooker)?;
        if repetition > 0 {
            times.push(milliseconds(start.elapsed()));
        }
    }
    let median_ms = median(&mut times);
    Ok(SampleMeasurement {
        images_per_s: num as f64 / median_ms * 1e3,
        median_ms,
        min_ms: times.first().copied().unwrap_or(f64::NAN),
        max_ms: times.last().copied().unwrap_or(f64::NAN),
        steps: sampler.kept_timesteps(process.schedule().len())?.len(),
        batch_size: num,
        sampler: sampler.sampler.to_string(),
        precision: dtype.as_str().to_owned(),
        device: device_name(&device),
        peak_bytes: memory::peak_on(&device)?,
    })
}

/// The measured cost of reading and decoding.
#[derive(Clone, Debug, Serialize)]
pub struct DataMeasurement {
    /// Over all batches.
    pub images_per_s: f64,
    /// Bytes of pixels.
    pub bytes_per_s: f64,
    /// Threads that read and decode.
    pub workers: usize,
    /// Images per batch.
    pub batch_size: usize,
    /// From batch to batch.
    pub median_batch_ms: f64,
    /// From before the source was opened to the last batch.
    pub images_per_s_from_start: f64,
    /// Bytes of images' files.
    pub file_bytes_per_s: f64,
    /// Share of the threads' work, 0 to 1, that was waiting for bytes.
    pub reading: f64,
    /// Likewise, decoding.
    pub decoding: f64,
    /// Likewise, cutting and resizing.
    pub fitting: f64,
    /// What as many threads decode that do nothing else, of bytes in memory: the decoder's own limit.
    pub decoder_images_per_s: f64,
}

/// Takes `repeat` batches from the loader of `plan` as fast as it delivers them, after those that it may have read ahead.
///
/// # Errors
/// The data cannot be read.
pub fn measure_data(plan: &TrainPlan, repeat: usize) -> Result<DataMeasurement, Error> {
    let started = Instant::now();
    let source = ddpm_data::open(&plan.config().data.source, &plan.open_options())?;
    let config = loader_config(plan);
    let (prefetch, batch_size) = (config.prefetch, config.share.count());
    let mut loader = Loader::start(Arc::clone(&source), config, 0)?;
    let early = prefetch + loader.workers();
    for _ in 0..early {
        loader.next()?;
    }
    let (mut times, mut bytes, before, begun) = (Vec::with_capacity(repeat), 0, loader.flow(), Instant::now());
    for _ in 0..repeat {
        let start = Instant::now();
        bytes += loader.next()?.images.len();
        times.push(milliseconds(start.elapsed()));
    }
    let (seconds, from_start) = (begun.elapsed().as_secs_f64(), started.elapsed().as_secs_f64());
    let workers = loader.workers();
    let flow = loader.flow().since(&before);
    // Its threads would take the time of those that only decode.
    drop(loader);
    let share = |share: Option<f64>| share.unwrap_or(f64::NAN);
    Ok(DataMeasurement {
        images_per_s: (repeat * batch_size) as f64 / seconds,
        bytes_per_s: bytes as f64 / seconds,
        workers,
        batch_size,
        median_batch_ms: median(&mut times),
        images_per_s_from_start: ((early + repeat) * batch_size) as f64 / from_start,
        file_bytes_per_s: flow.bytes as f64 / seconds,
        reading: share(flow.reading()),
        decoding: share(flow.decoding()),
        fitting: share(flow.fitting()),
        decoder_images_per_s: decoder_limit(
            source.as_ref(),
            repeat * batch_size,
            workers,
            plan.config().data.limits(),
        )?,
    })
}
