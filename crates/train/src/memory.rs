//! How much memory a device has and a training took.

use candle_core::Device;
use ddpm_kernels::KernelError;
use ddpm_run::memory::{peak_resident, total};

/// The most memory that was in use at once: by tensors and scratch space of a GPU (`Gpu::peak_memory`), or else
/// [resident](peak_resident).
///
/// # Errors
/// A GPU that does not answer.
pub fn peak_on(device: &Device) -> Result<Option<u64>, KernelError> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(Some(ddpm_kernels::cuda::Gpu::of(device)?.peak_memory()?));
    }
    let _ = device;
    Ok(peak_resident())
}

/// Bytes that a training may take: what is free on a GPU, or else all that this machine has.
///
/// # Errors
/// A GPU that does not answer.
pub fn room_on(device: &Device) -> Result<Option<u64>, KernelError> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(Some(ddpm_kernels::cuda::Gpu::of(device)?.memory()?.free));
    }
    let _ = device;
    Ok(total())
}
