//! The bodies for a GPU: a launch for the norm, a launch for the step.

use candle_core::{DType, Device, Tensor};

use super::{AdamWBuffers, Factors, MAX_AVERAGES, OP, StepBuffers};
use crate::buffer::{FlatBuffer, NarrowPart};
use crate::cuda::{Address, Gpu, Launch, empty, operand, write};
use crate::error::{KernelError, Result};

const NORM: &str = "gradient_norm";
const STEP: &str = "adamw";
/// Count of a step's factors.
pub(super) const FACTORS: usize = 10 + MAX_AVERAGES;
/// Threads of a block that adds squares.
const THREADS: u32 = 256;

/// Addresses of the step's settings, state and factors, which the norm's kernel reads and writes.
struct Judgement {
    settings: Address,
    state: Address,
    factors: Address,
}

/// A gradient in f32, a part of which may be stored elsewhere in 16 bits.
struct Gradient<'a> {
    buffer: &'a FlatBuffer,
    narrow: Option<&'a NarrowPart>,
}

impl Gradient<'_> {
    /// The format of the narrow part.
    fn dtype(&self) -> Option<DType> {
        self.narrow.map(|part| part.numbers.dtype())
    }

    fn pass_to<'g>(&self, launch: Launch<'g>, gpu: &Gpu) -> Result<Launch<'g>> {
        let launch = launch.arg(self.buffer.address(gpu)?);
        let Some(NarrowPart { numbers, map }) = self.narrow else {
            return Ok(launch.arg(Address::NONE).arg(Address::NONE));
        };
        Ok(launch.arg(operand(gpu, STEP, numbers, numbers.dtype())?).arg(operand(gpu, STEP, map, DType::U32)?))
    }
}

/// The arguments of the step's kernel; averages and the 16-bit copy may be missing.
struct StepAddresses<'a> {
    parameters: Address,
    gradients: Gradient<'a>,
    exp_avg: Address,
    exp_avg_sq: Address,
    averages: [Address; MAX_AVERAGES],
    /// The copy and its number format.
    compute: Option<(Address, DType)>,
    factors: Address,
    len: usize,
}

pub(super) fn norm(buffer: &FlatBuffer) -> Result<f64> {
    let gpu = Gpu::of(buffer.device())?;
    let result = empty(&gpu, DType::F64, 1)?;
    let no_step = Judgement { settings: Address::NONE, state: Address::NONE, factors: Address::NONE };
    let gradients = Gradient { buffer, narrow: None };
    queue_norm(&gpu, &gradients, operand(&gpu, NORM, &result, DType::F64)?, &no_step)?;
    Ok(result.to_vec1::<f64>()?[0])
}

/// Queues the norm of the gradient; its bits depend on the gradient and on the GPU's size alone.
fn queue_norm(gpu: &Gpu, gradients: &Gradient<'_>, result: Address, judgement: &Judgement) -> Result<()> {
    let len = gradients.buffer.len();
    let threads = len.div_ceil(4);
    let most = gpu.multiprocessors() as usize * 8;
    let blocks = threads.div_ceil(THREADS as usize).clamp(1, most);
    gradients
        .pass_to(gpu.float_kernel(NORM, gradients.dtype().unwrap_or(DType::BF16))?, gpu)?
        .arg(len)
        .arg(gpu.workspace(blocks * size_of::<f64>())?)
        .arg(gpu.counters(1)?)
        .arg(result)
        .arg(judgement.settings)
        .arg(judgement.state)
        .arg(judgement.factors)
        .blocks((blocks as u32, 1, 1), THREADS)
}

fn queue_step(gpu: &Gpu, step: &StepAddresses<'_>) -> Result<()> {
    let (copy, dtype) = step.compute.unwrap_or((Address::NONE, step.gradients.dtype().unwrap_or(DType::BF16)));
    let launch = step.gradients.pass_to(gpu.float_kernel(STEP, dtype)?.arg(step.parameters), gpu)?;
    let mut launch = launch.arg(step.exp_avg).arg(step.exp_avg_sq);
    for average in step.averages {
        launch = launch.arg(average);
    }
    launch.arg(copy).arg(step.factors).arg(step.len).over(step.len.div_ceil(4))
}

/// Overwrites a step's state.
pub(super) fn write_state(state: &Tensor, words: &[f64]) -> Result<()> {
    write(&*Gpu::of(state.device())?, OP, state, words)
}

/// Queues two kernels: the gradient's norm, which also computes the factors from settings and state, and the step that reads
/// them.
pub(super) fn judged_step(
    state: &Tensor,
    factors: &Tensor,
    settings: &Tensor,
    buffers: &StepBuffers<'_>,
) -> Result<()> {
    check_count(buffers.averages.len())?;
    let gpu = Gpu::of(state.device())?;
    let factors = operand(&gpu, OP, factors, DType::F32)?;
    let judgement = Judgement {
        settings: operand(&gpu, OP, settings, DType::F64)?,
        state: operand(&gpu, OP, state, DType::F64)?,
        factors,
    };
    let gradients = Gradient { buffer: buffers.gradients, narrow: buffers.narrow };
    queue_norm(&gpu, &gradients, Address::NONE, &judgement)?;
    let compute = |copy: &Tensor| Ok::<_, KernelError>((operand(&gpu, OP, copy, copy.dtype())?, copy.dtype()));
    let step = StepAddresses {
        parameters: buffers.parameters.address(&gpu)?,
        gradients,
        exp_avg: buffers.exp_avg.address(&gpu)?,
        exp_avg_sq: buffers.exp_avg_sq.address(&gpu)?,
        averages: addresses(&gpu, buffers.averages)?,
        compute: buffers.compute.map(compute).transpose()?,
        factors,
        len: buffers.parameters.len(),
    };
    queue_step(&gpu, &step)
}

pub(super) fn adamw_step(factors: Factors, buffers: &AdamWBuffers<'_>) -> Result<()> {
    let gpu = Gpu::of(buffers.parameters.device())?;
    let decays: Vec<f64> = buffers.averages.iter().map(|(_, decay)| *decay).collect();
    let averages: Vec<&FlatBuffer> = buffers.averages.iter().map(|(average, _)| average).collect();
    let words = words(factors, &decays)?;
    let factors = Tensor::from_slice(&words, FACTORS, &Device::Cuda(gpu.device().clone()))?;
    let step = StepAddresses {
        parameters: buffers.parameters.address(&gpu)?,
        gradients: Gradient { buffer: buffers.gradients, narrow: None },
        exp_avg: buffers.exp_avg.address(&gpu)?,
        exp_avg_sq: buffers.exp_avg_sq.address(&gpu)?,
        averages: addresses(&gpu, &averages)?,
        compute: None,
        factors: operand(&gpu, STEP, &factors, DType::F32)?,
        len: buffers.parameters.len(),
    };
    queue_step(&gpu, &step)
}

/// The averages' addresses; missing averages have the address 0.
fn addresses(gpu: &Gpu, averages: &[&FlatBuffer]) -> Result<[Address; MAX_AVERAGES]> {
    check_count(averages.len())?;
    let mut addresses = [Address::NONE; MAX_AVERAGES];
    for (address, average) in addresses.iter_mut().zip(averages) {
        *address = average.address(gpu)?;
    }
    Ok(addresses)
}

fn check_count(averages: usize) -> Result<()> {
    if averages <= MAX_AVERAGES {
        return Ok(());
    }
    Err(KernelError::Shape { op: STEP, tensor: "averages", found: vec![averages], expected: vec![MAX_AVERAGES] })
}

/// `Factors` of cuda/optim.cuh: numbers to apply.
fn words(f: Factors, decays: &[f64]) -> Result<[f32; FACTORS]> {
    check_count(decays.len())?;
    let mut words = [0.0; FACTORS];
    let known =
        [1.0, f.beta1, f.rest1, f.beta2, f.rest2, f.gradient_scale, f.keep, f.step_size, f.root_correction, f.eps];
    words[..known.len()].copy_from_slice(&known);
    for (word, decay) in words[known.len()..].iter_mut().zip(decays) {
        *word = (1.0 - decay) as f32;
    }
    Ok(words)
}
