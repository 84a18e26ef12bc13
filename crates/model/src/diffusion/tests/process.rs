//! Forward process, posterior and predictions against their definitions, in f64.

use candle_core::DType;
use ddpm_kernels::ops::diffusion::reference;

use super::*;

const DIMS: [usize; 4] = [4, 3, 2, 2];
const T: [usize; 4] = [0, 1, 300, 999];

fn double(stream: u64) -> Tensor {
    normal(&DIMS, stream).to_dtype(DType::F64).unwrap()
}

/// x_t in f64, by the reference twin of the operation.
fn q_sample(p: &DiffusionProcess, x_start: &Tensor, t: &[Timestep], noise: &Tensor) -> Tensor {
    reference::q_sample(&p.constants_at(t).unwrap(), x_start, noise).unwrap()
}

/// The output of a perfect network, from the definitions of the three predictions.
fn perfect_output(process: &DiffusionProcess, x_start: &Tensor, noise: &Tensor) -> Tensor {
    let bars = T.map(|t| process.schedule().alphas_cumprod()[t]);
    let per_sample = DIMS[1..].iter().product::<usize>();
    let values = flat(x_start).into_iter().zip(flat(noise)).enumerate().map(|(i, (x, eps))| {
        let bar: f64 = bars[i / per_sample];
        match process.config().prediction_type {
            PredictionType::Epsilon => eps,
            PredictionType::Sample => x,
            PredictionType::VPrediction => bar.sqrt() * eps - (1.0 - bar).sqrt() * x,
        }
    });
    Tensor::from_vec(values.collect::<Vec<f64>>(), &DIMS, &Device::Cpu).unwrap()
}

#[test]
fn q_sample_has_the_mean_and_variance_of_equation_4() {
    let p = process(|_| ());
    let x_start = (Tensor::ones((3, 100, 100, 3), DType::F32, &Device::Cpu).unwrap() * -0.7).unwrap();
    let at = [10, 200, 900];
    let x_t = p.q_sample(&x_start, &timesteps(&p, &at), &normal(x_start.dims(), 1)).unwrap();
    for (i, t) in at.into_iter().enumerate() {
        let bar = p.schedule().alphas_cumprod()[t];
        let (mean, variance) = mean_and_variance(&flat(&x_t.get(i).unwrap()));
        let n = 30_000f64;
        assert!((mean + 0.7 * bar.sqrt()).abs() < 5.0 * ((1.0 - bar) / n).sqrt(), "t {t}: {mean}");
        assert!((variance / (1.0 - bar) - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "t {t}: {variance}");
    }
}

/// Noising step by step, eq. 2, is the same Gaussian: means multiply, variances follow alpha V + beta.
#[test]
fn one_jump_is_as_good_as_many_steps() {
    let p = process(|c| c.beta_schedule = BetaSchedule::SquaredcosCapV2);
    let (mut mean, mut variance) = (1.0, 0.0);
    let ones = Tensor::ones((1, 1, 1, 1), DType::F64, &Device::Cpu).unwrap();
    let zeros = ones.zeros_like().unwrap();
    for t in 0..1000 {
        let beta = p.schedule().betas()[t];
        mean *= (1.0 - beta).sqrt();
        variance = (1.0 - beta) * variance + beta;
        let t = timesteps(&p, &[t]);
        let signal = flat(&q_sample(&p, &ones, &t, &zeros));
        let noise = flat(&q_sample(&p, &zeros, &t, &ones));
        assert_close(&[signal[0], noise[0].powi(2)], &[mean, variance], 1e-12);
    }
}

/// Ho et al. 2020, eq. 11: it is alpha_t, not alpha_bar_t, under the leading fraction.
#[test]
fn the_posterior_mean_in_terms_of_eps_equals_the_one_in_terms_of_x_start() {
    let p = process(|_| ());
    let (x_start, noise, t) = (double(1), double(2), timesteps(&p, &T));
    let x_t = q_sample(&p, &x_start, &t, &noise);
    let got = flat(&p.q_posterior_mean(&x_start, &x_t, &t).unwrap());
    let per_sample = got.len() / T.len();
    let want: Vec<f64> = flat(&x_t)
        .into_iter()
        .zip(flat(&noise))
        .enumerate()
        .map(|(i, (x, eps))| {
            let t = T[i / per_sample];
            let (beta, bar) = (p.schedule().betas()[t], p.schedule().alphas_cumprod()[t]);
            (x - beta / (1.0 - bar).sqrt() * eps) / (1.0 - beta).sqrt()
        })
        .collect();
    assert_close(&got, &want, 1e-9);
}

#[test]
fn every_prediction_type_gives_back_x_start_and_noise() {
    for prediction_type in PREDICTIONS {
        let p = process(|c| c.prediction_type = prediction_type);
        let (x_start, noise, t) = (double(1), double(2), timesteps(&p, &T));
        let x_t = q_sample(&p, &x_start, &t, &noise);
        let output = perfect_output(&p, &x_start, &noise);
        assert_close(&flat(&p.predict_x_start(&output, &x_t, &t).unwrap()), &flat(&x_start), 1e-9);
        assert_close(&flat(&p.predict_noise(&output, &x_t, &t).unwrap()), &flat(&noise), 1e-9);
    }
}

#[test]
fn a_learned_variance_lies_between_its_bounds_in_the_logarithm() {
    let p = process(|c| c.variance_type = VarianceType::LearnedRange);
    let t = timesteps(&p, &T);
    let mut output = vec![9.0; 4 * 3 * 2 * 4];
    for pixel in output.chunks_exact_mut(4) {
        pixel[2..].copy_from_slice(&[-1.0, 0.5]);
    }
    let output = Tensor::from_vec(output, (4, 3, 2, 4), &Device::Cpu).unwrap();
    let got = flat(&p.model_log_variance(&output, &DIMS, &t).unwrap());
    let want: Vec<f64> = T
        .iter()
        .flat_map(|&t| {
            let (small, large) = (p.schedule().posterior_log_variance_clipped()[t].0, p.schedule().betas()[t].ln());
            [small, 0.75 * large + 0.25 * small].repeat(6)
        })
        .collect();
    assert_close(&got, &want, 1e-12);
    // The prediction is the other half.
    let x_t = double(3);
    assert!(flat(&p.predict_noise(&output, &x_t, &t).unwrap()).iter().all(|&eps| eps == 9.0));
}

#[test]
fn a_fixed_variance_is_the_tables() {
    for (variance_type, first) in [(VarianceType::FixedSmall, 999), (VarianceType::FixedLarge, 0)] {
        let p = process(|c| c.variance_type = variance_type);
        let t = timesteps(&p, &[first]);
        let output = normal(&[1, 2, 2, 1], 0);
        let got = flat(&p.model_log_variance(&output, output.dims(), &t).unwrap());
        let want = if first == 999 { -3.912023829100455 } else { -9.81672513529567 };
        assert_close(&got, &[want], 1e-6);
    }
}

#[test]
fn an_output_with_the_wrong_channels_is_refused() {
    let p = process(|c| c.variance_type = VarianceType::LearnedRange);
    let (x_t, t) = (normal(&DIMS, 0), timesteps(&p, &T));
    let error = p.predict_x_start(&x_t, &x_t, &t).unwrap_err();
    assert_eq!(error.to_string(), "prediction: model_output has shape [4, 3, 2, 2]: expected [4, 3, 2, 4]");
    assert!(error.help().unwrap().contains("learned_range"));
    assert!(p.q_sample(&x_t, &t[..3], &x_t).is_err());
}
