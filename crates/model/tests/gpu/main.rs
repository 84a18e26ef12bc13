//! What the model crate computes on a GPU against what it computes on the CPU.
//!
//! They need a GPU, or the emulator: `cargo test -p ddpm-model --features cuda --test gpu -- --ignored gpu`.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, missing_docs)]

mod loss;
mod samplers;

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};

/// The GPU, opened once.
pub(crate) fn gpu() -> &'static Device {
    static GPU: OnceLock<Device> = OnceLock::new();
    GPU.get_or_init(|| ddpm_kernels::cuda::open(0).unwrap())
}

/// A tensor's numbers on the CPU.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    host.flatten_all().unwrap().to_vec1().unwrap()
}
