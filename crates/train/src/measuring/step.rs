//! How long a training step takes on this machine, with real data and by phase.
//!
//! On a GPU a step is queued and replayed as a whole, so one step's time on the host says nothing. There, blocks of steps are
//! timed until the results of the last are here; phases are timed by the GPU, in steps of their own that are queued
//! operation by operation.

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
use crate::training::context::{device_name, loader_config, picture_request, sampler_config};
use crate::training::gpu_memory::GpuEstimate;
use crate::training::outcome::Phases;
use crate::training::trainer::Trainer;

/// Steps before counting: memory is allocated, caches and clocks warm up; on a GPU the step is also recorded.
const WARM_UP: usize = 3;
/// Of `repeat` steps, a GPU makes so many blocks, of which the median is taken; more if they would be longer than this.
const BLOCKS: usize = 3;
const LONGEST_BLOCK: usize = 10;
/// Steps whose phases a GPU times, after one that is not counted.
const TIMED_STEPS: usize = 3;
/// Steps of a picture: one to look for algorithms, one to record, and some to replay.
const PICTURE_STEPS: usize = 5;

/// Time by phase, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PhasesMs {
    /// Waiting for the loader.
    pub data: f64,
    /// Noise, network and loss.
    pub forward: f64,
    /// The tape, played back.
    pub backward: f64,
    /// Clipping, AdamW and the averages.
    pub optimizer: f64,
}

/// How long a step takes that is waited for, in milliseconds.
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
    /// Of the network.
    pub parameters: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Number format the network computes in, named as `train.precision` is.
    pub precision: String,
    /// The device.
    pub device: String,
    /// Threads the kernels use.
    pub threads: usize,
    /// Median of the steps; on a GPU, of the blocks of steps, per step. So are the next two.
    pub median_ms: f64,
    /// The fastest.
    pub min_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// At the median.
    pub images_per_s: f64,
    /// Most memory in use at once so far: resident memory of the process, or on a GPU what tensors and scratch space took.
    pub peak_bytes: Option<u64>,
    /// On a GPU, what the peak was expected to be.
    pub estimated_bytes: Option<u64>,
    /// Medians by phase.
    pub phases_ms: PhasesMs,
    /// On a GPU, whether the memory of the recorded step is still there when a picture was drawn; none without room for one.
    pub around_picture_ms: Option<SingleStepMs>,
}

/// Measures `repeat` training steps of `plan`, after a few to warm up.
///
/// # Errors
/// Data that cannot be read, a device that cannot be opened, a step that fails.
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

/// A step by itself, and the first one after a picture of few steps, as a run draws them.
fn around_picture(
    plan: &TrainPlan,
    trainer: &mut Trainer,
    next_batch: &mut impl FnMut() -> Result<Batch, DataError>,
) -> Result<Option<SingleStepMs>, Error> {
    // Steps that were timed by phases have left none recorded.
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
    /// For the data of a step.
    waits: Vec<Duration>,
    phases: Vec<Phases>,
    batch_size: usize,
}

impl Times {
    /// Makes `steps` steps, until their results are here.
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

    /// Puts phases that the GPU timed in the place of those that the host saw.
    fn phases_of_gpu(
        &mut self,
        trainer: &mut Trainer,
        next_batch: &mut impl FnMut() -> Result<Batch, DataError>,
    ) -> Result<(), Error> {
        self.phases.clear();
        for step in 0..=TIMED_STEPS {
            // The last is the one that a profiler is shown: by then nothing is done for the first time.
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
