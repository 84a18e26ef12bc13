//! Inputs, copies to and from the GPU, and what counts as equal.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::philox::{Philox, Purpose};

/// The number formats activations may have.
pub const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The GPU, opened once.
pub fn gpu() -> &'static Device {
    static GPU: OnceLock<Device> = OnceLock::new();
    GPU.get_or_init(|| ddpm_kernels::cuda::open(0).unwrap())
}

/// A tensor of `shape` that the CPU and the GPU hold alike: normals, rounded to `dtype`.
pub struct Both {
    /// In f64 on the CPU, for the twin.
    pub exact: Tensor,
    /// In `dtype` on the GPU.
    pub device: Tensor,
}

/// Standard normals, a function of `seed`.
pub fn normals(seed: u64, shape: &[usize], dtype: DType) -> Both {
    let mut data = vec![0f32; shape.iter().product()];
    Philox::new(seed, Purpose::Evaluation).fill_normal(0, 0, &mut data);
    both(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap(), dtype)
}

/// `tensor`, rounded to `dtype`.
pub fn both(tensor: &Tensor, dtype: DType) -> Both {
    let rounded = tensor.to_dtype(dtype).unwrap();
    Both { exact: rounded.to_dtype(DType::F64).unwrap(), device: rounded.to_device(gpu()).unwrap() }
}

/// A result's numbers on the CPU.
pub fn download(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    host.flatten_all().unwrap().to_vec1().unwrap()
}

/// How far a result may be off, relative to the largest number of the exact one: a few roundings of the format.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

/// Compares a result on the GPU with the exact one.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, exact: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), exact.dims(), "{what}: shape");
    let (found, exact) = (download(found), download(exact));
    let largest = exact.iter().fold(1e-6f64, |most, v| most.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(&exact).enumerate() {
        assert!((f - e).abs() <= tolerance * largest, "{what}: element {i} is {f}, exactly {e} (largest {largest})");
    }
}
