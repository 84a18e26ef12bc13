//! The diffusion code against independent results: golden values of the reference implementations, identities derived another
//! way, finite differences, and closed forms for Gaussian data.

#![allow(clippy::unwrap_used)]

mod finite_differences;
mod gaussian;
mod loss;
mod process;
mod samplers;
mod schedule;

use candle_core::{Device, Tensor};
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, loss_and_grad};
use ddpm_kernels::philox::{Philox, Purpose};

use super::*;

/// Standard normals, another tensor for each `stream`.
fn normal(dims: &[usize], stream: u64) -> Tensor {
    let mut values = vec![0f32; dims.iter().product()];
    Philox::new(20, Purpose::Noise).fill_normal(stream, 0, &mut values);
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap()
}

fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
}

fn process(change: impl FnOnce(&mut DiffusionConfig)) -> DiffusionProcess {
    let mut config = DiffusionConfig::default();
    change(&mut config);
    DiffusionProcess::new(&config).unwrap()
}

fn timesteps(process: &DiffusionProcess, indices: &[usize]) -> Vec<Timestep> {
    indices.iter().map(|&t| process.schedule().timestep(t).unwrap()).collect()
}

/// `L_t` of each sample, without clamping: as in a loss.
fn vlb_bits(p: &DiffusionProcess, output: &Tensor, x_start: &Tensor, noise: &Tensor, t: &[Timestep]) -> Vec<f64> {
    let constants = |&t| SampleConstants { bound: 1.0, ..p.constants(t).unwrap() };
    let samples = SampleConstants::tensor(&t.iter().map(constants).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let images = NoisyImages { images: x_start, samples: &samples, noise: Noise::Given(noise) };
    let samples = loss_and_grad(&images, output, None).unwrap().samples;
    samples.to_vec2::<f64>().unwrap().iter().map(|sample| sample[2]).collect()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (g - w).abs();
        assert!(off <= tolerance * (1.0 + w.abs()), "element {i}: got {g}, want {w}"); // false for NaN
    }
}

const PREDICTIONS: [PredictionType; 3] = [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];
