//! Where a tensor's numbers lie on the GPU, and new tensors for results.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::Gpu;
use crate::error::{KernelError, Result};

/// An address in the GPU's memory. The caller keeps the tensor alive until its work is queued: memory is freed in stream order,
/// after the work that was queued before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// No address: an operand that is left out.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn of<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> Self {
        Self(slice.device_ptr(stream).0)
    }

    /// The largest power of two that divides it, up to what a plain allocation has.
    pub(crate) fn alignment(self) -> u32 {
        1 << self.0.trailing_zeros().min(8)
    }

    /// The address `elements` of `dtype` further on.
    pub(crate) fn offset(self, elements: usize, dtype: DType) -> Self {
        Self(self.0 + (elements * dtype.size_in_bytes()) as u64)
    }
}

/// The address of a contiguous tensor of `dtype` on `gpu`.
///
/// # Errors
/// Another dtype, a strided view, or another device.
pub(crate) fn operand(gpu: &Gpu, op: &'static str, tensor: &Tensor, dtype: DType) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(KernelError::Device { op, device: tensor.device().location() });
    };
    let start = match layout.contiguous_offsets() {
        Some((start, _)) if tensor.dtype() == dtype => start,
        _ => return Err(KernelError::Layout { op, dtype: tensor.dtype(), shape: tensor.dims().to_vec() }),
    };
    let base = match &storage.slice {
        CudaStorageSlice::F32(slice) => Address::of(slice, &gpu.stream),
        CudaStorageSlice::BF16(slice) => Address::of(slice, &gpu.stream),
        CudaStorageSlice::F16(slice) => Address::of(slice, &gpu.stream),
        CudaStorageSlice::U8(slice) => Address::of(slice, &gpu.stream),
        CudaStorageSlice::U32(slice) => Address::of(slice, &gpu.stream),
        CudaStorageSlice::F64(slice) => Address::of(slice, &gpu.stream),
        _ => return Err(KernelError::Layout { op, dtype: tensor.dtype(), shape: tensor.dims().to_vec() }),
    };
    Ok(base.offset(start, dtype))
}

/// The address of an operand that may be left out.
pub(crate) fn optional(gpu: &Gpu, op: &'static str, tensor: Option<&Tensor>, dtype: DType) -> Result<Address> {
    tensor.map_or(Ok(Address::NONE), |tensor| operand(gpu, op, tensor, dtype))
}

/// A new tensor of any values, for a result that is written whole.
///
/// # Errors
/// The memory is full, or `dtype` is none we compute with.
pub(crate) fn empty(gpu: &Gpu, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let len = shape.elem_count();
    let device = gpu.device();
    let storage = match dtype {
        DType::F32 => CudaStorage::wrap_cuda_slice(alloc::<f32>(gpu, len)?, device.clone()),
        DType::BF16 => CudaStorage::wrap_cuda_slice(alloc::<bf16>(gpu, len)?, device.clone()),
        DType::F16 => CudaStorage::wrap_cuda_slice(alloc::<f16>(gpu, len)?, device.clone()),
        DType::U8 => CudaStorage::wrap_cuda_slice(alloc::<u8>(gpu, len)?, device.clone()),
        DType::U32 => CudaStorage::wrap_cuda_slice(alloc::<u32>(gpu, len)?, device.clone()),
        DType::F64 => CudaStorage::wrap_cuda_slice(alloc::<f64>(gpu, len)?, device.clone()),
        _ => return Err(KernelError::Layout { op: "a new tensor", dtype, shape: shape.dims().to_vec() }),
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

pub(super) fn alloc<T: candle_core::cuda_backend::cudarc::driver::DeviceRepr>(
    gpu: &Gpu,
    len: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: the memory holds any values until the kernel that it is for has written all of it.
    unsafe { gpu.stream.alloc::<T>(len) }
        .map_err(super::out_of_memory(format!("{} bytes more were asked for", len * size_of::<T>())))
}

/// Queues a copy of `values` over all of `tensor`, in place, so that a captured graph reads the new values.
///
/// # Errors
/// Another number of elements, or the driver fails.
pub(crate) fn write(gpu: &Gpu, op: &'static str, tensor: &Tensor, values: &[f64]) -> Result<()> {
    if tensor.elem_count() != values.len() {
        let (found, expected) = (vec![values.len()], vec![tensor.elem_count()]);
        return Err(KernelError::Shape { op, tensor: "values", found, expected });
    }
    let at = operand(gpu, op, tensor, DType::F64)?;
    // SAFETY: the tensor's memory has room for as many numbers as there are; values in pageable memory are copied before
    // the call returns.
    unsafe { result::memcpy_htod_async(at.0, values, gpu.stream.cu_stream()) }
        .map_err(super::refused("writing a tensor"))
}

/// Queues zeros over `bytes` from an address on.
///
/// # Errors
/// The driver fails.
pub(crate) fn zero(gpu: &Gpu, at: Address, bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller's memory is as large as it says.
    unsafe { result::memset_d8_async(at.0, 0, bytes, gpu.stream.cu_stream()) }.map_err(super::refused("zeroing memory"))
}
