//! How long a training step takes on this machine, with real data and by phase.

use std::time::{Duration, Instant};

use candle_core::Device;
use ddpm_data::{Batch, DataError, Loader};
use serde::Serialize;

use super::context::{device_name, loader_config};
use super::step::{Phases, Trainer};
use crate::config::TrainPlan;
use crate::error::Failure;
use crate::memory;

/// Steps before counting: memory is allocated, caches and clocks warm up.
const WARM_UP: usize = 2;

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

/// A measurement.
#[derive(Clone, Debug, Serialize)]
pub struct StepMeasurement {
    /// Of the network.
    pub parameters: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Number format.
    pub precision: String,
    /// The device.
    pub device: String,
    /// Threads the kernels use.
    pub threads: usize,
    /// Median of the steps.
    pub median_ms: f64,
    /// The fastest.
    pub min_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// At the median.
    pub images_per_s: f64,
    /// Largest resident memory of the process so far.
    pub peak_bytes: Option<u64>,
    /// Medians by phase.
    pub phases_ms: PhasesMs,
}

/// Measures `repeat` training steps of `plan`, after a few to warm up.
///
/// # Errors
/// Data that cannot be read, a device that cannot be opened, a step that fails.
pub fn measure_step(plan: &TrainPlan, repeat: usize) -> Result<StepMeasurement, Failure> {
    let device = plan.device().open()?;
    let source = ddpm_data::open(&plan.config().data.source, &plan.open_options())?;
    let mut loader = Loader::start(source, loader_config(plan), 0)?;
    let mut trainer = Trainer::new(plan, &device)?;
    measure(&mut trainer, &device, repeat, || loader.next())
}

pub(super) fn measure(
    trainer: &mut Trainer,
    device: &Device,
    repeat: usize,
    mut next_batch: impl FnMut() -> Result<Batch, DataError>,
) -> Result<StepMeasurement, Failure> {
    let (mut totals, mut phases) = (Vec::new(), [const { Vec::new() }; 4]);
    let mut batch_size = 0;
    for repetition in 0..repeat + WARM_UP {
        let start = Instant::now();
        let batch = next_batch()?;
        let data = start.elapsed();
        trainer.step(&batch)?;
        let step = trainer.outcomes(true)?.pop().map_or_else(Phases::default, |outcome| outcome.phases);
        batch_size = batch.shape[0];
        if repetition >= WARM_UP {
            totals.push(milliseconds(start.elapsed()));
            let parts = [data, step.forward, step.backward, step.optimizer];
            for (phase, part) in phases.iter_mut().zip(parts) {
                phase.push(milliseconds(part));
            }
        }
    }
    let median_ms = median(&mut totals);
    let [data, forward, backward, optimizer] = phases.map(|mut phase| median(&mut phase));
    Ok(StepMeasurement {
        parameters: trainer.unet().layout().parameters(),
        batch_size,
        precision: "f32".to_owned(),
        device: device_name(device),
        threads: rayon::current_num_threads(),
        median_ms,
        min_ms: totals.first().copied().unwrap_or(f64::NAN),
        max_ms: totals.last().copied().unwrap_or(f64::NAN),
        images_per_s: batch_size as f64 / median_ms * 1e3,
        peak_bytes: memory::peak_resident(),
        phases_ms: PhasesMs { data, forward, backward, optimizer },
    })
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The middle value, or the mean of the two in the middle; leaves `values` sorted.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}
