//! What the checks of all operations share.

mod case;
mod close;
mod slots;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::philox::{Philox, Purpose};

use proptest::test_runner::{Config as ProptestConfig, RngSeed};

pub(crate) use case::{Answer, Case};
pub(crate) use close::{Tolerance, assert_close, f64s};
pub(crate) use slots::parameter_gradients;

/// Standard normals that depend on `seed` and the shape alone.
pub(crate) fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut data = vec![0.0; shape.iter().product()];
    Philox::new(seed, Purpose::Noise).fill_normal(0, 0, &mut data);
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Normals of the given mean and spread.
pub(crate) fn gaussian(seed: u64, shape: &[usize], mean: f64, spread: f64) -> Tensor {
    normal(seed, shape).affine(spread, mean).unwrap()
}

/// `x` in f64.
pub(crate) fn widen(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F64).unwrap()
}

/// The bits of an f32 tensor, row by row.
pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The largest absolute value, 0 where there is none.
pub(crate) fn largest(x: &Tensor) -> f64 {
    f64s(x).into_iter().fold(0.0, |a, v| a.max(v.abs()))
}

/// The same few cases in every run: a random failure in someone else's change would help nobody.
pub(crate) fn few_cases() -> ProptestConfig {
    ProptestConfig { cases: 24, failure_persistence: None, rng_seed: RngSeed::Fixed(0xDD), ..ProptestConfig::default() }
}
