//! The launches.

use candle_core::{DType, Device, Tensor};

use super::super::cuda::in_32_bits;
use super::{Noise, SamplerState, SamplerStep};
use crate::cuda::{Address, Gpu, empty, operand, optional};
use crate::error::{KernelError, Result};

pub(super) fn new(shape: &[usize], dtype: DType, device: &Device) -> Result<SamplerState> {
    let gpu = Gpu::of(device)?;
    let x_t = empty(&gpu, DType::F32, shape)?;
    let input = if dtype == DType::F32 { x_t.clone() } else { empty(&gpu, dtype, shape)? };
    Ok(SamplerState { x_start: empty(&gpu, DType::F32, shape)?, x_t, input })
}

/// Noise at the address `given`, or the normals of this key and number.
pub(super) fn begin(state: &SamplerState, given: Option<&Tensor>, key: u64, first: u64) -> Result<()> {
    const OP: &str = "sampler_begin";
    let gpu = Gpu::of(state.x_t.device())?;
    let (n, values) = sizes(state);
    gpu.float_kernel(OP, state.input.dtype())?
        .arg(optional(&gpu, OP, given, DType::F32)?)
        .arg(key)
        .arg(first)
        .arg(operand(&gpu, OP, &state.x_t, DType::F32)?)
        .arg(separate_input(state, &gpu, OP)?)
        .arg(values)
        .arg(n)
        .over(n * values.div_ceil(4))
}

pub(super) fn step(
    op: &'static str,
    state: &SamplerState,
    step: &SamplerStep<'_>,
    (channels, halves): (usize, usize),
) -> Result<()> {
    let (n, values) = sizes(state);
    let dtype = state.input.dtype();
    let gpu = Gpu::of(state.x_t.device())?;
    // The launch counts images from the first image of the place.
    let Noise::Drawn { stream, place, first_position: 0 } = step.noise else {
        return Err(KernelError::Device { op, device: state.x_t.device().location() });
    };
    gpu.float_kernel(op, dtype)?
        .arg(operand(&gpu, op, step.constants, DType::F64)?)
        .arg(operand(&gpu, op, place, DType::U32)?)
        .arg(stream.key())
        .arg(operand(&gpu, op, step.output, dtype)?)
        .arg(optional(&gpu, op, step.unguided, dtype)?)
        .arg(in_32_bits(op, &state.x_t, channels)?)
        .arg(halves as u32)
        .arg(operand(&gpu, op, &state.x_t, DType::F32)?)
        .arg(operand(&gpu, op, &state.x_start, DType::F32)?)
        .arg(separate_input(state, &gpu, op)?)
        .arg(values)
        .arg(n)
        .over(n * values.div_ceil(4))
}

/// Images, and values of one.
fn sizes(state: &SamplerState) -> (usize, usize) {
    let n = state.x_t.dims().first().copied().unwrap_or_default();
    (n, state.x_t.elem_count() / n.max(1))
}

/// The network's input, where it is not x_t itself.
fn separate_input(state: &SamplerState, gpu: &Gpu, op: &'static str) -> Result<Address> {
    let dtype = state.input.dtype();
    if dtype == DType::F32 { Ok(Address::NONE) } else { operand(gpu, op, &state.input, dtype) }
}
