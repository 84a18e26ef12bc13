//! How a run's numbers are rounded: the format of activations, and what precision a GPU's libraries may use.

use candle_core::{DType, Device};
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::Gpu;

use super::types::{OptimConfig, Precision};

/// Sets the arithmetic of `device` as `train` says; returns the format of the activations. A CPU always computes in f32.
///
/// # Errors
/// The GPU cannot be used.
pub(crate) fn set_arithmetic(train: &OptimConfig, device: &Device) -> Result<DType, KernelError> {
    if !device.is_cpu() {
        let gpu = Gpu::of(device)?;
        gpu.set_deterministic(train.deterministic);
        gpu.set_tf32(train.allow_tf32);
    }
    Ok(match train.precision {
        _ if device.is_cpu() => DType::F32,
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
        Precision::F16 => DType::F16,
    })
}
