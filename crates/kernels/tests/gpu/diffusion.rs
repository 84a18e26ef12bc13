//! Noisy images, sinusoids, and whose noise a sampler's step adds; losses and samplers are tested where their formulas are, in
//! the model crate.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::diffusion::{
    NoisyImages, SampleConstants, SamplerConstants, SamplerState, SamplerStep, place, q_sample, sinusoids,
};
use ddpm_kernels::philox::{Philox, Purpose};

use crate::common::{FORMATS, assert_close, download, gpu, tolerance};

/// More than 32 bits.
const STEP: u64 = (3 << 32) + 5;
const POSITION: u64 = 7;
/// Of the first image of all; with the position more than 32 bits.
const FIRST: u64 = (1 << 32) - 3;

fn step(number: u64) -> Tensor {
    Tensor::new(&place(number, FIRST), gpu()).unwrap()
}

fn bytes(shape: [usize; 4]) -> Vec<u8> {
    let len: usize = shape.iter().product();
    (0..len).map(|i| (i * 37 % 256) as u8).collect()
}

/// Signal and noise of an image.
fn coefficients(image: usize) -> (f64, f64) {
    let angle = 0.3 + 0.4 * image as f64;
    (angle.cos(), angle.sin())
}

fn samples(n: usize) -> Tensor {
    let words: Vec<f64> = (0..n)
        .flat_map(|image| {
            let (signal, noise) = coefficients(image);
            SampleConstants { signal, noise, ..SampleConstants::default() }.words()
        })
        .collect();
    Tensor::from_vec(words, (n, SampleConstants::WORDS), gpu()).unwrap()
}

/// What the CPU makes of the images, in f32 as it does.
fn want(shape: [usize; 4], philox: Philox, step: u64) -> Tensor {
    let values: usize = shape[1..].iter().product();
    let mut x_t = Vec::new();
    for (image, bytes) in bytes(shape).chunks(values).enumerate() {
        let mut eps = vec![0.0; values];
        philox.fill_normal(step, FIRST + POSITION + image as u64, &mut eps);
        let (signal, noise) = coefficients(image);
        let (signal, noise) = (signal as f32, noise as f32);
        x_t.extend(bytes.iter().zip(eps).map(|(&b, eps)| (f32::from(b) / 127.5 - 1.0) * signal + eps * noise));
    }
    Tensor::from_vec(x_t, &shape, &Device::Cpu).unwrap()
}

fn found(shape: [usize; 4], philox: Philox, place: &Tensor, dtype: DType) -> Tensor {
    let images = Tensor::from_vec(bytes(shape), &shape, gpu()).unwrap();
    let samples = samples(shape[0]);
    let noisy = NoisyImages { images: &images, samples: &samples, noise: philox, place, first_position: POSITION };
    q_sample(&noisy, dtype).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_q_sample_draws_the_cpus_noise() {
    let philox = Philox::new(3, Purpose::Noise);
    for dtype in FORMATS {
        for shape in [[1, 1, 1, 1], [3, 5, 7, 3], [2, 8, 8, 4], [2, 33, 32, 3]] {
            let found = found(shape, philox, &step(STEP), dtype);
            // f32 differs at most where the two logarithms, sines or cosines in f64 do.
            let tolerance = if dtype == DType::F32 { 1e-7 } else { tolerance(dtype) };
            assert_close(&format!("q_sample {shape:?} {dtype:?}"), &found, &want(shape, philox, STEP), tolerance);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_q_sample_reads_the_step_from_device_memory() {
    let (philox, shape) = (Philox::new(3, Purpose::Noise), [2, 4, 4, 3]);
    let first = found(shape, philox, &step(1), DType::F32);
    let second = found(shape, philox, &step(2), DType::F32);
    assert_close("step 2", &second, &want(shape, philox, 2), 1e-7);
    assert_ne!(download(&first), download(&second));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_samplers_step_adds_the_noise_of_its_place() {
    let (philox, shape, first) = (Philox::new(3, Purpose::Sample), [2, 5, 7, 3], (2 << 32) + 9);
    let state = SamplerState::new(shape, DType::F32, gpu()).unwrap();
    state.begin_at(&Tensor::zeros(&shape, DType::F32, gpu()).unwrap()).unwrap();
    let constants = SamplerConstants { noise: 1.0, ..SamplerConstants::default() };
    let constants = Tensor::new(&constants.words(), gpu()).unwrap();
    let place = Tensor::new(&place(STEP, first), gpu()).unwrap();
    let output = Tensor::zeros(&shape, DType::F32, gpu()).unwrap();
    let step = SamplerStep { constants: &constants, place: &place, noise: philox, output: &output, unguided: None };
    state.step(&step).unwrap();
    let values: usize = shape[1..].iter().product();
    let mut want = vec![0f32; 2 * values];
    for (image, normals) in want.chunks_mut(values).enumerate() {
        philox.fill_normal(STEP, first + image as u64, normals);
    }
    let want = Tensor::from_vec(want, &shape, &Device::Cpu).unwrap();
    assert_close("noise of a step", state.x_t(), &want, 1e-7);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_sinusoids_are_exact_at_large_angles() {
    let numbers = [0.0f32, 1.0, 7.0, 500.0, 999.0];
    let device = Tensor::new(&numbers, gpu()).unwrap();
    for (channels, flip, shift) in [(8, false, 0.0), (128, true, 1.0), (2, false, 0.0)] {
        let half = channels / 2;
        let mut want = Vec::new();
        for t in numbers {
            let frequency = |i: usize| (-(10_000f64.ln()) as f32 * i as f32 / (half as f64 - shift) as f32).exp();
            // Rounded as f32 once, at the angle; the functions of it are exact.
            let sines = (0..half).map(|i| f64::from(t * frequency(i)).sin());
            let cosines = (0..half).map(|i| f64::from(t * frequency(i)).cos());
            if flip { want.extend(cosines.chain(sines)) } else { want.extend(sines.chain(cosines)) }
        }
        let want = Tensor::from_vec(want, (numbers.len(), channels), &Device::Cpu).unwrap();
        for dtype in FORMATS {
            let found = sinusoids(&device, channels, flip, shift, dtype).unwrap();
            // In f32: a last digit of the frequency, times 999.
            let tolerance = if dtype == DType::F32 { 1.3e-4 } else { tolerance(dtype) };
            assert_close(&format!("sinusoids {channels} {dtype:?}"), &found, &want, tolerance);
        }
    }
    assert!(sinusoids(&device, 7, false, 0.0, DType::F32).is_err());
}
