//! Times a training step on this machine, with real data and by phase.
//!
//! On a GPU a step is queued and replayed as a whole, so the host's time for one step means nothing. There, blocks of steps are
//! timed until the results of the last step arrive; the GPU times phases, in separate steps that are queued operation by
//! operation.

use std::time::{Duration, Instant};

use candle_core::Device;
use ddpm_data::{Batch, DataError, Loader};
use ddpm_model::ModelError;
use ddpm_model::diffusion::SamplerConfig;
use serde::Serialize;

use crate::config::TrainPlan;
use crate::drawing::Painter;
use crate::error::Error;
use crate::memory;
use crate::training::gpu_memory::GpuEstimate;
use crate::training::outcome::Phases;
use crate::training::setup::{device_name, loader_config, picture_request, sampler_config};
use crate::training::trainer::Trainer;

/// Steps before counting: memory is allocated, caches and clocks warm up; on a GPU the step is also recorded.
const WARM_UP: usize = 3;
/// A GPU divides `repeat` steps into so many blocks and takes their median; into more blocks if they would be longer than this.
const BLOCKS: usize = 3;
const LONGEST_BLOCK: usize = 10;
/// Steps whose phases are timed on a GPU, after one that is not counted.
const TIMED_STEPS: usize = 3;
/// Sampler steps of a picture: one to find algorithms, one to record, and some to replay.
const PICTURE_STEPS: usize = 5;

/// Time by phase, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PhasesMs {
    /// Waiting for the loader.
    pub data: f64,
    /// Noise, network and loss.
    pub forward: f64,
    /// The backward pass.
    pub backward: f64,
    /// Clipping, AdamW and the averages.
    pub optimizer: f64,
}

/// The time of a single step that the host waits for, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SingleStepMs {
    /// Before a picture is drawn.
    pub before: f64,
    /// The first one after it.
    pub after: f64,
}

/// A measurement.
#[derive(Clone, Debug, Serialize)]
pub struct StepMeasurement {
    /// Number of the network's parameters.
    pub parameters: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Number format the network computes in, named as `train.precision` is.
    pub precision: String,
    /// The device.
    pub device: String,
    /// Threads the kernels use.
    pub threads: usize,
    /// Median time per step; on a GPU, of blocks of steps. The next two likewise.
    pub median_ms: f64,
    /// The fastest.
    pub min_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// At the median time.
    pub images_per_s: f64,
    /// Peak memory so far: resident memory of the process, or on a GPU that of tensors and scratch space.
    pub peak_bytes: Option<u64>,
    /// On a GPU, the estimated peak.
    pub estimated_bytes: Option<u64>,
    /// Medians by phase.
    pub phases_ms: PhasesMs,
    /// On a GPU, the times of a step before and after a picture: they show whether the recorded step survives it. None if there
    /// is no memory for a picture.
    pub around_picture_ms: Option<SingleStepMs>,
}

/// Measures `repeat` training steps of `plan`, after a few to warm up.
///
/// # Errors
/// The data cannot be read, the device cannot be opened, or a step fails.
pub fn measure_step(plan: &TrainPlan, repeat: usize) -> Result<StepMeasurement, Error> {
    let device = plan.device().open()?;
    let source = ddpm_data::open(&plan.config().data.source, &plan.open_options())?;
    let mut loader = Loader::start(source, loader_config(plan), 0)?;
    let mut trainer = Trainer::new(plan, &device)?;
    let mut measurement = measure(plan, &mut trainer, &device, repeat, || loader.next())?;
    if !device.is_cpu() {
        measurement.around_picture_ms = around_picture(plan, &mut trainer, &mut || loader.next())?;
    }
    Ok(measurement)
}

pub(super) fn measure(
    plan: &TrainPlan,
    trainer: &mut Trainer,
    device: &Device,
    repeat: usize,
    mut next_batch: impl FnMut() -> Result<Batch, DataError>,
) -> Result<StepMeasurement, Error> {
    let mut times = Times::default();
    for _ in 0..WARM_UP {
        times.block(trainer, 1, &mut next_batch)?;
    }
    times = Times::default();
    let steps = if device.is_cpu() { 1 } else { repeat.div_ceil(BLOCKS).clamp(1, LONGEST_BLOCK) };
    for _ in 0..repeat.div_ceil(steps) {
        times.block(trainer, steps, &mut next_batch)?;
    }
    let peak_bytes = memory::peak_on(device)?;
    let estimate = |images| Ok::<_, ModelError>(GpuEstimate::new(plan.config())?.of(images).total_bytes);
    let estimated_bytes = (!device.is_cpu()).then(|| estimate(trainer.images_at_once())).transpose()?;
    if !device.is_cpu() {
        times.phases_of_gpu(trainer, &mut next_batch)?;
    }
    let Times { mut steps, waits, phases, batch_size } = times;
    let median_ms = median(&mut steps);
    let phase =
        |part: fn(&Phases) -> Duration| median(&mut phases.iter().map(part).map(milliseconds).collect::<Vec<_>>());
    Ok(StepMeasurement {
        parameters: trainer.unet().layout().parameters(),
        batch_size,
        precision: trainer.dtype().as_str().to_owned(),
        device: device_name(device),
        threads: rayon::current_num_threads(),
        median_ms,
        min_ms: steps.first().copied().unwrap_or(f64::NAN),
        max_ms: steps.last().copied().unwrap_or(f64::NAN),
        images_per_s: batch_size as f64 / median_ms * 1e3,
        peak_bytes,
        estimated_bytes,
        phases_ms: PhasesMs {
            data: median(&mut waits.into_iter().map(milliseconds).collect::<Vec<_>>()),
            forward: phase(|phases| phases.forward),
            backward: phase(|phases| phases.backward),
            optimizer: phase(|phases| phases.optimizer),
        },
        around_picture_ms: None,
    })
}

/// Times a single step, and the first one after a picture of few sampler steps, as a run draws them.
fn around_picture(
    plan: &TrainPlan,
    trainer: &mut Trainer,
    next_batch: &mut impl FnMut() -> Result<Batch, DataError>,
) -> Result<Option<SingleStepMs>, Error> {
    // Steps with timed phases were not recorded.
    Times::default().block(trainer, 1, next_batch)?;
    let mut times = Times::default();
    times.block(trainer, 1, next_batch)?;
    match draw_picture(plan, trainer) {
        Err(error) if error.is_full_memory() => return Ok(None),
        drawn => drawn?,
    }
    times.block(trainer, 1, next_batch)?;
    Ok(if let [before, after] = times.steps[..] { Some(SingleStepMs { before, after }) } else { None })
}

fn draw_picture(plan: &TrainPlan, trainer: &Trainer) -> Result<(), Error> {
    let config = plan.config();
    let sampler = sampler_config(config);
    let sampler = SamplerConfig { steps: sampler.steps.map(|steps| steps.min(PICTURE_STEPS)), ..sampler };
    let request = picture_request(config, &sampler);
    let params = trainer.sampling_params()?;
    let painter = Painter { unet: trainer.unet(), params: &params, process: trainer.process() };
    painter.draw_unless(&request, &|| false).map(drop)
}

/// What was measured so far.
#[derive(Debug, Default)]
struct Times {
    /// Milliseconds per step.
    steps: Vec<f64>,
    /// Time spent waiting for a step's data.
    waits: Vec<Duration>,
    phases: Vec<Phases>,
    batch_size: usize,
}

impl Times {
    /// Makes `steps` steps and waits for their results.
    fn block(
        &mut self,
        trainer: &mut Trainer,
        steps: usize,
        next_batch: &mut impl FnMut() -> Result<Batch, DataError>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        for _ in 0..steps {
            let waiting = Instant::now();
            let batch = next_batch()?;
            self.waits.push(waiting.elapsed());
            self.batch_size = batch.shape[0];
            trainer.step(batch)?;
        }
        let outcomes = trainer.outcomes(true)?;
        self.steps.push(milliseconds(start.elapsed()) / steps as f64);
        self.phases.extend(outcomes.into_iter().map(|outcome| outcome.phases));
        Ok(())
    }

    /// Replaces the phases that the host measured by those that the GPU measured.
    fn phases_of_gpu(
        &mut self,
        trainer: &mut Trainer,
        next_batch: &mut impl FnMut() -> Result<Batch, DataError>,
    ) -> Result<(), Error> {
        self.phases.clear();
        for step in 0..=TIMED_STEPS {
            // A profiler sees the last step, when nothing happens for the first time any more.
            let phases = trainer.time_step(next_batch()?, step == TIMED_STEPS)?;
            trainer.outcomes(true)?;
            if step > 0 {
                self.phases.push(phases);
            }
        }
        Ok(())
    }
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The middle value, or the mean of the two in the middle; leaves `values` sorted.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}
