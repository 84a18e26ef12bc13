//! How much memory a device has and a training took.

use candle_core::Device;
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::Gpu;
use ddpm_run::memory::{peak_resident, total};

/// The most memory that was in use at once: by tensors and scratch space of a GPU (`Gpu::peak_memory`), or else
/// [resident](peak_resident).
///
/// # Errors
/// A GPU that does not answer.
pub fn peak_on(device: &Device) -> Result<Option<u64>, KernelError> {
    if device.is_cpu() { Ok(peak_resident()) } else { Ok(Some(Gpu::of(device)?.peak_memory()?)) }
}

/// Bytes that a training may take: what is free on a GPU, or else all that this machine has.
///
/// # Errors
/// A GPU that does not answer.
pub fn room_on(device: &Device) -> Result<Option<u64>, KernelError> {
    if device.is_cpu() { Ok(total()) } else { Ok(Some(Gpu::of(device)?.memory()?.free)) }
}
