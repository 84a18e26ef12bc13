//! The diffusion process on a GPU; what is checked on every device is in `tests/common/diffusion.rs`.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::KernelError;
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, place, q_sample, sinusoids};
use ddpm_kernels::philox::{Philox, Purpose};

use crate::common::{FORMATS, assert_close, download, gpu, tolerance};
use crate::diffusion_checks as checks;

#[test]
#[ignore = "needs a GPU"]
fn gpu_q_sample_draws_the_cpus_noise() {
    FORMATS.iter().for_each(|&dtype| checks::check_q_sample(gpu(), dtype));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_and_its_gradient_are_right() {
    for dtype in FORMATS {
        checks::check_loss(gpu(), dtype);
        checks::check_loss_without_variance(gpu(), dtype);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_bound_is_right() {
    FORMATS.iter().for_each(|&dtype| checks::check_bound(gpu(), dtype));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_samplers_step_is_right() {
    FORMATS.iter().for_each(|&dtype| checks::check_sampler(gpu(), dtype));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_diffusion_leaves_no_number_of_what_is_none() {
    checks::check_what_is_no_number_stays_none(gpu());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_q_sample_reads_the_step_from_device_memory() {
    let images = Tensor::zeros((2, 4, 4, 3), DType::U8, gpu()).unwrap();
    let constants = SampleConstants { noise: 1.0, ..SampleConstants::default() };
    let samples = SampleConstants::tensor(&[constants; 2], gpu()).unwrap();
    let x_t = |step| {
        let place = Tensor::new(&place(step, 0), gpu()).unwrap();
        let noise = Noise::Drawn { stream: Philox::new(3, Purpose::Noise), place: &place, first_position: 0 };
        download(&q_sample(&NoisyImages { images: &images, samples: &samples, noise }, DType::F32).unwrap())
    };
    assert_eq!(x_t(1), x_t(1));
    assert_ne!(x_t(1), x_t(2));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_noise_is_never_given() {
    let images = Tensor::zeros((1, 1, 1, 3), DType::U8, gpu()).unwrap();
    let noise = Tensor::zeros((1, 1, 1, 3), DType::F32, gpu()).unwrap();
    let samples = SampleConstants::tensor(&[SampleConstants::default()], gpu()).unwrap();
    let noisy = NoisyImages { images: &images, samples: &samples, noise: Noise::Given(&noise) };
    assert!(matches!(q_sample(&noisy, DType::F32), Err(KernelError::Device { .. })));
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
