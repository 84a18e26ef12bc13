//! Borrowed f32 slices of tensors, for the loops of the losses.

use std::ops::{Deref, Range};

use candle_core::{DType, Device, Storage, Tensor};

use super::DiffusionError;

/// `tensor` as contiguous f32 on the CPU; no copy where it is that already.
pub(super) fn on_host(tensor: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
}

/// The values of a tensor that [`on_host`] returned, borrowed for as long as this lives. `S` is candle's read guard.
pub(super) struct Values<S> {
    storage: S,
    range: Range<usize>,
}

/// Borrows `tensor`'s values.
pub(super) fn values(tensor: &Tensor) -> Values<impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    Values { storage, range }
}

impl<S: Deref<Target = Storage>> Values<S> {
    pub(super) fn as_slice(&self) -> Result<&[f32], DiffusionError> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&storage.as_slice::<f32>()?[self.range.clone()]),
            Storage::Cuda(_) | Storage::Metal(_) => {
                Err(candle_core::Error::Msg("diffusion: expected a tensor on the CPU".into()).into())
            }
        }
    }
}
