//! Group normalisation on a GPU, fused with what comes before and after it in the network, and with the sums for which the layer
//! before it would have to read all of dx again.
//!
//! With an offset `o` `[N, C]`, `x^` is that of `x + o`; with dropout, elements of `y` become 0. Backward, `dx` is the gradient
//! of `x`, and that of `o` its sum over the pixels; summed over the images too, it is the gradient of the bias of the layer
//! that made `x`.

use candle_core::{Device, Tensor};

pub use super::fusion::{ChannelSums, Fused, FusedGrads, Mask, Wanted};
use super::{GroupNorm, OP, Statistics, cuda};
use crate::buffer::ParamGrads;
use crate::error::{KernelError, Result};
use crate::ops::check;

/// The operands of [`forward`].
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[N, ..., C]`.
    pub x: &'a Tensor,
    /// `[C]`, f32.
    pub weight: &'a Tensor,
    /// `[C]`, f32.
    pub bias: &'a Tensor,
    /// `[N, 2C]`, whose rows may lie apart; not beside an offset.
    pub modulation: Option<&'a Tensor>,
    /// What else happens.
    pub fused: Fused<'a>,
}

impl<'a> Inputs<'a> {
    fn affine(&self) -> cuda::Affine<'a> {
        cuda::Affine { weight: self.weight, bias: self.bias, modulation: self.modulation }
    }

    fn shape(&self, norm: &GroupNorm) -> Result<super::Shape> {
        let shape = norm.shape(self.x, self.weight, self.bias, self.modulation)?;
        if let Some(offset) = self.fused.offset {
            check::shape(OP, "offset", offset, &[self.x.dim(0)?, shape.channels])?;
            if let Some(modulation) = self.modulation {
                check::shape(OP, "modulation beside an offset", modulation, &[])?;
            }
        }
        if let Some(step) = self.fused.dropout.and_then(|mask| mask.step) {
            check::shape(OP, "step", step, &[2])?;
        }
        match self.x.device() {
            Device::Cuda(_) => Ok(shape),
            other => Err(KernelError::Device { op: OP, device: other.location() }),
        }
    }
}

/// A tensor of any values, of `like`'s kind, that is written piece by piece.
///
/// # Errors
/// A device that is no GPU, or whose memory is full.
pub fn room(like: &Tensor, shape: &[usize]) -> Result<Tensor> {
    crate::cuda::empty(&*crate::cuda::Gpu::of(like.device())?, like.dtype(), shape)
}

/// As [`super::forward`], on a GPU.
///
/// # Errors
/// As there, or a device that is no GPU.
pub fn forward(norm: &GroupNorm, inputs: &Inputs<'_>) -> Result<(Tensor, Statistics)> {
    let (shape, source) = (inputs.shape(norm)?, cuda::Source { x: inputs.x, parts: None });
    let (y, statistics) = cuda::forward(norm, shape, source, inputs.affine(), inputs.fused)?;
    Ok((y, Statistics(statistics)))
}

/// The same of two tensors whose channels stand side by side, which are also written to `inputs.x`.
///
/// # Errors
/// As there, or parts that are not those of `inputs.x`.
pub fn forward_joining(norm: &GroupNorm, parts: [&Tensor; 2], inputs: &Inputs<'_>) -> Result<(Tensor, Statistics)> {
    let shape = inputs.shape(norm)?;
    let (first, mut dims) = (parts[0].dims().last().copied().unwrap_or(0), inputs.x.dims().to_vec());
    for (name, part, channels) in
        [("first part", parts[0], first), ("other part", parts[1], shape.channels.saturating_sub(first))]
    {
        dims.iter_mut().rev().take(1).for_each(|last| *last = channels);
        check::shape(OP, name, part, &dims)?;
        check::not_empty(OP, name, part)?;
    }
    let source = cuda::Source { x: inputs.x, parts: Some(parts) };
    let (y, statistics) = cuda::forward(norm, shape, source, inputs.affine(), inputs.fused)?;
    Ok((y, Statistics(statistics)))
}

/// As [`super::backward`], on a GPU, with up to two gradients from elsewhere, or one if there is dropout. They cover all
/// channels, and are part of the sums.
///
/// # Errors
/// As there; a device that is no GPU; or an `extra` beside an offset, whose gradient it would be added to.
pub fn backward(
    norm: &GroupNorm,
    inputs: &Inputs<'_>,
    statistics: &Statistics,
    (dy, extra): (&Tensor, [Option<&Tensor>; 2]),
    wanted: &Wanted,
    grads: &ParamGrads<'_>,
) -> Result<FusedGrads> {
    let shape = inputs.shape(norm)?;
    let (x, statistics) = (inputs.x, &statistics.0);
    check::shape(OP, "dy", dy, x.dims())?;
    check::shape(OP, "statistics", statistics, &[x.dim(0)?, 2, norm.groups])?;
    // The kernels add two, or add one and drop.
    if let (Some(_), [Some(_), Some(second)]) = (inputs.fused.dropout, extra) {
        check::shape(OP, "second extra beside dropout", second, &[])?;
    }
    let extra = if extra[0].is_none() { [extra[1], None] } else { extra };
    for extra in extra.into_iter().flatten() {
        check::shape(OP, "extra", extra, if inputs.fused.offset.is_some() { &[] } else { x.dims() })?;
    }
    if let Some(joined) = wanted.joined.filter(|&joined| joined == 0 || joined >= shape.channels) {
        let (found, expected) = (vec![joined], vec![shape.channels.saturating_sub(1)]);
        return Err(KernelError::Shape { op: OP, tensor: "joined", found, expected });
    }
    for ChannelSums { at, .. } in &wanted.sums {
        if at.len() > shape.channels || at.end > grads.buffer.len() {
            let (found, expected) = (vec![at.start, at.end], vec![grads.buffer.len(), shape.channels]);
            return Err(KernelError::Shape { op: OP, tensor: "sums", found, expected });
        }
    }
    if let Some(time) = &wanted.time {
        let of = inputs.modulation.or(inputs.fused.offset).map_or(&[][..], Tensor::dims);
        check::shape(OP, "time's gradient", time, of)?;
    }
    grads.check(OP, shape.channels, shape.channels)?;
    let operands = cuda::BackwardInputs { x, dy, statistics, extra };
    cuda::backward(norm, shape, operands, inputs.affine(), inputs.fused, wanted, grads)
}
