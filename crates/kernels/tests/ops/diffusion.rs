//! The diffusion process on a CPU; what is checked on every device is in `tests/common/diffusion.rs`.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::diffusion::{
    Noise, NoisyImages, SampleConstants, SamplerState, loss_and_grad, place, q_sample, sinusoids,
};
use ddpm_kernels::philox::{Philox, Purpose};

use crate::common::{bits, f64s, normal};
use crate::diffusion_checks as checks;

#[test]
fn q_sample_is_right() {
    checks::check_q_sample(&Device::Cpu, DType::F32);
}

#[test]
fn the_loss_and_its_gradient_are_right() {
    checks::check_loss(&Device::Cpu, DType::F32);
    checks::check_loss_without_variance(&Device::Cpu, DType::F32);
}

#[test]
fn the_bound_is_right() {
    checks::check_bound(&Device::Cpu, DType::F32);
}

#[test]
fn a_samplers_step_is_right() {
    checks::check_sampler(&Device::Cpu, DType::F32);
}

#[test]
fn what_is_no_number_stays_none() {
    checks::check_what_is_no_number_stays_none(&Device::Cpu);
}

/// Bytes and numbers, noise that is drawn and noise that is given: the same bits, whole or in parts.
#[test]
fn images_and_noise_may_come_in_any_form_and_in_parts() {
    let shape = [4, 3, 5, 2];
    let bytes: Vec<u8> = (0..120).map(|i| (i * 85 % 256) as u8).collect();
    let pixels: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    let [bytes, pixels] = [
        Tensor::from_vec(bytes, &shape, &Device::Cpu).unwrap(),
        Tensor::from_vec(pixels, &shape, &Device::Cpu).unwrap(),
    ];
    let stream = Philox::new(1, Purpose::Noise);
    let mut noise = vec![0f32; 120];
    noise.chunks_mut(30).enumerate().for_each(|(k, noise)| stream.fill_normal(9, k as u64, noise));
    let (noise, place) =
        (Tensor::from_vec(noise, &shape, &Device::Cpu).unwrap(), Tensor::new(&place(9, 0), &Device::Cpu));
    let (place, output) = (place.unwrap(), normal(2, &shape));
    let constants = SampleConstants { signal: 0.8, noise: 0.6, mse_weight: 1.0, scale: 1.0, ..Default::default() };
    let run = |images: &Tensor, given: bool, first: usize, count: usize| {
        let samples = SampleConstants::tensor(&vec![constants; count], &Device::Cpu).unwrap();
        let part = |all: &Tensor| all.narrow(0, first, count).unwrap();
        let (images, given_noise, output) = (part(images), part(&noise), part(&output));
        let drawn = Noise::Drawn { stream, place: &place, first_position: first as u64 };
        let noise = if given { Noise::Given(&given_noise) } else { drawn };
        let noisy = NoisyImages { images: &images, samples: &samples, noise };
        let loss = loss_and_grad(&noisy, &output, None).unwrap();
        [bits(&q_sample(&noisy, DType::F32).unwrap()), bits(&loss.grad)].map(|bits| (bits, f64s(&loss.samples)))
    };
    let whole = run(&bytes, false, 0, 4);
    assert_eq!(whole, run(&pixels, true, 0, 4));
    assert_eq!(whole, run(&bytes, true, 0, 4));
    for ((whole, losses), (part, some)) in whole.iter().zip(run(&bytes, false, 1, 2)) {
        assert_eq!((&whole[30..90], &losses[3..9]), (&part[..], &some[..]));
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let (images, samples) = (zeros(&[2, 2, 2, 3], DType::U8), zeros(&[2, SampleConstants::WORDS], DType::F64));
    let noise = zeros(&[2, 2, 2, 3], DType::F32);
    let noisy = NoisyImages { images: &images, samples: &samples, noise: Noise::Given(&noise) };
    let refusal =
        |noisy: &NoisyImages<'_>, output: &Tensor| loss_and_grad(noisy, output, None).unwrap_err().to_string();
    let output = zeros(&[2, 2, 2, 4], DType::F32);
    assert_eq!(refusal(&noisy, &output), "diffusion_loss: model_output has shape [2, 2, 2, 4], expected [2, 2, 2, 3]");
    let short = NoisyImages { samples: &samples.narrow(0, 0, 1).unwrap(), ..noisy };
    assert!(refusal(&short, &noise).contains("samples has shape [1, 16], expected [2, 16]"));
    let other = NoisyImages { noise: Noise::Given(&output), ..noisy };
    assert!(refusal(&other, &noise).contains("noise has shape"));
    assert!(q_sample(&noisy, DType::BF16).is_err());
    assert!(SamplerState::new([0, 2, 2, 3], DType::F32, &Device::Cpu).is_err());
    assert!(SamplerState::new([1, 2, 2, 3], DType::F16, &Device::Cpu).is_err());
}

#[test]
fn sinusoids_agree_with_the_formula_in_both_orders() {
    let number = Tensor::new(&[7f32], &Device::Cpu).unwrap();
    let row = |flip, shift| f64s(&sinusoids(&number, 8, flip, shift, DType::F32).unwrap());
    let (plain, flipped, ho) = (row(false, 0.0), row(true, 0.0), row(false, 1.0));
    for i in 0..4 {
        let angle = 7.0 * 10_000f64.powf(-(i as f64) / 4.0);
        assert!((plain[i] - angle.sin()).abs() < 1e-6);
        assert!((plain[4 + i] - angle.cos()).abs() < 1e-6);
        assert_eq!((flipped[i], flipped[4 + i]), (plain[4 + i], plain[i]));
        let angle = 7.0 * 10_000f64.powf(-(i as f64) / 3.0);
        assert!((ho[i] - angle.sin()).abs() < 1e-6);
    }
    assert!(sinusoids(&number, 7, false, 0.0, DType::F32).is_err());
}
