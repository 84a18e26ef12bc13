//! Times each operation of a network on its own: its operations, how often they run, and their times.
//!
//! The tape lists the operations of one image's pass through the network, with their shapes. Then each distinct operation runs
//! with operands of a whole micro-batch, forward and backward. On the CPU the host's clock times it. On a GPU it is recorded
//! several times and replayed between two marks, so that the host does not affect the time. There the same operands are used
//! repeatedly, so those of small operations stay in the GPU's cache.

use std::time::Instant;

use candle_core::Device;
use ddpm_kernels::cuda::{Gpu, Recording};
use ddpm_model::tape::{Operation, Run, Runs, Work, fuses_on};
use ddpm_model::unet::UNet;
use serde::Serialize;

use super::step::{median, milliseconds};
use crate::config::TrainPlan;
use crate::config::set_arithmetic;
use crate::error::Error;
use crate::training::setup::device_name;

/// How often an operation is recorded.
const RECORDED: usize = 10;

/// All operations of a network.
#[derive(Clone, Debug, Serialize)]
pub struct Operations {
    /// The device.
    pub device: String,
    /// Number format, named as `train.precision` is.
    pub precision: String,
    /// Images at once.
    pub batch_size: usize,
    /// The operations in the order of the forward pass.
    pub ops: Vec<TimedOperation>,
}

/// One operation.
#[derive(Clone, Debug, Serialize)]
pub struct TimedOperation {
    /// The operation and its direction.
    pub name: String,
    /// The shapes of its operands.
    pub shape: String,
    /// How often the network runs it for a batch.
    pub count: usize,
    /// Median time of one run.
    pub ms: f64,
    /// Bytes that must be read and written once.
    pub bytes: u64,
    /// Two for each multiplication and addition of convolutions and matrix products.
    pub flop: u64,
}

/// Progress while operations are timed.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// How many are done, of how many.
    Done(usize, usize),
    /// This operation was just timed.
    Timed(&'a TimedOperation),
}

/// Times the operations of the network of `plan`, each `repeat` times; `report` gets the progress.
///
/// # Errors
/// The device cannot be opened, an operation fails, or `report` returns an error.
pub fn measure_operations<E: From<Error>>(
    plan: &TrainPlan,
    repeat: usize,
    report: &mut dyn FnMut(Progress<'_>) -> Result<(), E>,
) -> Result<Operations, E> {
    let device = plan.device().open().map_err(Error::from)?;
    let config = plan.config();
    let dtype = set_arithmetic(&config.train, &device).map_err(Error::from)?;
    let batch_size = plan.at_once();
    let sketch = UNet::new(&config.model).map_err(Error::from)?.sketch(fuses_on(&device)).map_err(Error::from)?;
    let counted = counted(sketch.operations().cloned());
    let mut ops = Vec::new();
    for (done, (operation, count)) in counted.iter().enumerate() {
        report(Progress::Done(done, counted.len()))?;
        let operation = operation.clone().of_samples(batch_size);
        let Runs { forward, backward } = operation.prepare(dtype, &device).map_err(Error::from)?;
        let mut add = |direction: &str, run: &Run, work: Work| -> Result<(), E> {
            let timed = TimedOperation {
                name: format!("{} {direction}", operation.name()),
                shape: operation.to_string(),
                count: *count,
                ms: time(run, &device, repeat)?,
                bytes: work.bytes,
                flop: work.flop,
            };
            report(Progress::Timed(&timed))?;
            ops.push(timed);
            Ok(())
        };
        add("forward", &forward, operation.forward_work(dtype.size_in_bytes()))?;
        if let Some(backward) = &backward {
            add("backward", backward, operation.backward_work(dtype.size_in_bytes()))?;
        }
    }
    Ok(Operations { device: device_name(&device), precision: dtype.as_str().to_owned(), batch_size, ops })
}

/// Each distinct operation, with its count.
fn counted(operations: impl Iterator<Item = Operation>) -> Vec<(Operation, usize)> {
    let mut counted: Vec<(Operation, usize)> = Vec::new();
    for operation in operations {
        match counted.iter_mut().find(|(known, _)| *known == operation) {
            Some((_, count)) => *count += 1,
            None => counted.push((operation, 1)),
        }
    }
    counted
}

/// Milliseconds of one run.
fn time(run: &Run, device: &Device, repeat: usize) -> Result<f64, Error> {
    // The first run finds the fastest algorithm.
    run()?;
    if !device.is_cpu() {
        return time_on_gpu(run, &*Gpu::of(device)?, repeat);
    }
    let mut times = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let start = Instant::now();
        run()?;
        times.push(milliseconds(start.elapsed()));
    }
    Ok(median(&mut times))
}

fn time_on_gpu(run: &Run, gpu: &Gpu, repeat: usize) -> Result<f64, Error> {
    let all = || (0..RECORDED).try_for_each(|_| run());
    let mut recording = if gpu.records() {
        gpu.make_room_to_record()?;
        Some(gpu.record(all)?)
    } else {
        None
    };
    let mut queue = || recording.as_mut().map_or_else(all, Recording::replay);
    queue()?;
    let mut times = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let start = gpu.mark()?;
        queue()?;
        times.push(f64::from(gpu.mark()?.milliseconds_since(&start)?) / RECORDED as f64);
    }
    Ok(median(&mut times))
}
