//! How long each operation of a network takes on its own: which ones there are, how often they run, and their times.
//!
//! The tape writes down what would run on what if an image went through the network. Then each different operation is done again
//! with operands of a whole micro-batch, forward and backward: on the CPU by the clock; on a GPU recorded several times over
//! and replayed, between two marks, so that the host takes no part in it. There the same operands are used again and again,
//! and those of small operations stay in the GPU's cache.

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
use crate::training::context::device_name;

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
    /// In the order of the forward pass.
    pub ops: Vec<TimedOperation>,
}

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct TimedOperation {
    /// The operation and its direction.
    pub name: String,
    /// What it works on.
    pub shape: String,
    /// How often the network runs it in a pass over the batch.
    pub count: usize,
    /// Median time of one run.
    pub ms: f64,
    /// Bytes that must be read and written once.
    pub bytes: u64,
    /// Two for each multiplication and addition of convolutions and matrix products.
    pub flop: u64,
}

/// What is told while operations are timed.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many of so many are done.
    Done(usize, usize),
    /// This one has just been.
    Timed(&'a TimedOperation),
}

/// Times the operations of the network of `plan`, each `repeat` times; `tell` hears how far it is.
///
/// # Errors
/// A device that cannot be opened, an operation that fails, what `tell` returns.
pub fn measure_operations<E: From<Error>>(
    plan: &TrainPlan,
    repeat: usize,
    tell: &mut dyn FnMut(Progress<'_>) -> Result<(), E>,
) -> Result<Operations, E> {
    let device = plan.device().open().map_err(Error::from)?;
    let config = plan.config();
    let dtype = set_arithmetic(&config.train, &device).map_err(Error::from)?;
    let batch_size = plan.micro_batch().map_or(config.train.batch_size, usize::from);
    let sketch = UNet::new(&config.model).map_err(Error::from)?.sketch(fuses_on(&device)).map_err(Error::from)?;
    let counted = counted(sketch.operations().cloned());
    let mut ops = Vec::new();
    for (done, (operation, count)) in counted.iter().enumerate() {
        tell(Progress::Done(done, counted.len()))?;
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
            tell(Progress::Timed(&timed))?;
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

/// Each different one once, with how often it is there.
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
    // The first one looks for the fastest algorithm.
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
