//! The memory of a device, and the memory that training used.

use candle_core::Device;
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::Gpu;
use ddpm_run::memory::{peak_resident, total};

/// The peak memory: of tensors and scratch space on a GPU (`Gpu::peak_memory`), or else [resident](peak_resident).
///
/// # Errors
/// The GPU does not answer.
pub(crate) fn peak_on(device: &Device) -> Result<Option<u64>, KernelError> {
    if device.is_cpu() { Ok(peak_resident()) } else { Ok(Some(Gpu::of(device)?.peak_memory()?)) }
}

/// Bytes that training may take: the free memory of a GPU, or else all memory of this machine.
///
/// # Errors
/// The GPU does not answer.
pub(crate) fn room_on(device: &Device) -> Result<Option<u64>, KernelError> {
    if device.is_cpu() { Ok(total()) } else { Ok(Some(Gpu::of(device)?.memory()?.free)) }
}
