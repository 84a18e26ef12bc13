//! Gaussian data N(M, S^2), for which the best possible network is known in closed form: losses, the bound and every
//! sampler against theory, with no training.
//!
//! Everything here follows from the joint Gaussian of (x_0, eps, x_t): x_t has mean sqrt(bar) M and variance
//! V_t = bar S^2 + 1 - bar, Cov(x_0, x_t) = sqrt(bar) S^2, Cov(eps, x_t) = sqrt(1 - bar).

use std::f64::consts::LN_2;

use super::*;

const M: f64 = 0.3;
const S: f64 = 0.5;

fn unclipped(variance_type: VarianceType) -> DiffusionProcess {
    process(|c| (c.variance_type, c.clip_sample) = (variance_type, false))
}

fn variance_of_x_t(bar: f64) -> f64 {
    bar * S * S + 1.0 - bar
}

/// Var(x_0 | x_t).
fn variance_of_x_start_given_x_t(bar: f64) -> f64 {
    S * S * (1.0 - bar) / variance_of_x_t(bar)
}

/// E[eps | x_t], the best epsilon prediction.
fn best_epsilon(process: &DiffusionProcess, x_t: &Tensor, t: Timestep) -> Tensor {
    let bar = process.schedule().alphas_cumprod()[t.index()];
    let slope = (1.0 - bar).sqrt() / variance_of_x_t(bar);
    x_t.affine(slope, -slope * bar.sqrt() * M).unwrap()
}

/// (x_start, x_t, noise) of many independent values, all at `t`.
fn data_at(process: &DiffusionProcess, t: Timestep) -> (Tensor, Tensor, Tensor) {
    let dims = [1, 256, 256, 3];
    let (x_start, noise) = (normal(&dims, 1).affine(S, M).unwrap(), normal(&dims, 2));
    let x_t = process.q_sample(&x_start, &[t], &noise).unwrap();
    (x_start, x_t, noise)
}

#[test]
fn the_simple_loss_of_the_best_network_is_the_variance_of_eps_given_x_t() {
    let p = unclipped(VarianceType::FixedSmall);
    let loss = Loss::new(&LossConfig::default(), p.config()).unwrap();
    for index in [0, 20, 200, 600, 999] {
        let t = p.schedule().timestep(index).unwrap();
        let (x_start, x_t, noise) = data_at(&p, t);
        let inputs = LossInputs {
            model_output: &best_epsilon(&p, &x_t, t),
            x_start: &x_start,
            t: &[t],
            noise: &noise,
            weights: &[1.0],
            global_batch: 1,
        };
        let bar = p.schedule().alphas_cumprod()[index];
        let want = bar * S * S / variance_of_x_t(bar);
        let got = loss.compute(&p, &inputs).unwrap().per_sample[0];
        assert!((got / want - 1.0).abs() < 0.01, "t {index}: {got}, want {want}");
    }
}

/// KL(N(a, q) || N(b, p)) = (p / q terms), with E[(a - b)^2] = coef1^2 Var(x_0 | x_t) where the network is the best.
#[test]
fn the_bound_of_the_best_network_has_its_closed_form() {
    for variance_type in [VarianceType::FixedSmall, VarianceType::FixedLarge] {
        let p = unclipped(variance_type);
        for index in [1, 20, 200, 600, 999] {
            let t = p.schedule().timestep(index).unwrap();
            let (x_start, x_t, noise) = data_at(&p, t);
            let (beta, bar) = (p.schedule().betas()[index], p.schedule().alphas_cumprod()[index]);
            let bar_prev = bar / (1.0 - beta);
            let q = beta * (1.0 - bar_prev) / (1.0 - bar);
            let of_p = if variance_type == VarianceType::FixedSmall { q } else { beta };
            let mean_error = bar_prev * (beta / (1.0 - bar)).powi(2) * variance_of_x_start_given_x_t(bar);
            let want = 0.5 * ((of_p / q).ln() + (q + mean_error) / of_p - 1.0) / LN_2;
            let got = vlb_bits(&p, &best_epsilon(&p, &x_t, t), &x_start, &noise, &[t])[0];
            assert!((got / want - 1.0).abs() < 0.01, "{variance_type:?}, t {index}: {got}, want {want}");
        }
    }
}

/// Mean and variance of a sampler's output with the best network; the start is N(0, 1).
fn sampled(p: &DiffusionProcess, config: &SamplerConfig, output: impl Fn(&Tensor, Timestep) -> Tensor) -> (f64, f64) {
    let dims = [2, 64, 64, 3];
    let images = sample::<DiffusionError>(
        p,
        config,
        normal(&dims, 0),
        &mut |step| Ok(normal(&dims, 1 + step as u64)),
        &mut |x_t, t| Ok(output(x_t, t)),
    );
    mean_and_variance(&flat(&images.unwrap()))
}

/// Standard errors of mean and variance over the 24,576 values that `sampled` draws, five-fold.
#[track_caller]
fn assert_moments((mean, variance): (f64, f64), want_mean: f64, want_variance: f64) {
    let n = 24_576f64;
    assert!((mean - want_mean).abs() < 5.0 * (want_variance / n).sqrt(), "mean {mean}, want {want_mean}");
    let allowed = 5.0 * want_variance * (2.0 / n).sqrt();
    assert!((variance - want_variance).abs() < allowed, "variance {variance}, want {want_variance}");
}

/// The chain x_{t-1} = E[x_{t-1} | x_t] + sigma z: the slope is Cov(x_{t-1}, x_t) / V_t, and with
/// x_t = sqrt(a) x_{t-1} + noise the covariance is sqrt(a) V_{t-1}.
fn ancestral_moments(bars: &[f64], sigma_squared: impl Fn(usize) -> f64) -> (f64, f64) {
    let (mut mean, mut variance) = (0.0, 1.0);
    for t in (0..bars.len()).rev() {
        let bar_prev = if t == 0 { 1.0 } else { bars[t - 1] };
        let slope = (bars[t] / bar_prev).sqrt() * variance_of_x_t(bar_prev) / variance_of_x_t(bars[t]);
        mean = bar_prev.sqrt() * M + slope * (mean - bars[t].sqrt() * M);
        variance = slope * slope * variance + if t == 0 { 0.0 } else { sigma_squared(t) };
    }
    (mean, variance)
}

#[test]
fn ancestral_sampling_has_the_mean_and_variance_of_theory() {
    for (variance_type, steps) in [
        (VarianceType::FixedSmall, None),
        (VarianceType::FixedLarge, None),
        (VarianceType::FixedSmall, Some(25)),
        (VarianceType::FixedLarge, Some(25)),
    ] {
        let p = unclipped(variance_type);
        let config = SamplerConfig { steps, spacing: Spacing::Linspace, ..Default::default() };
        let kept = config.kept_timesteps(1000).unwrap();
        let bars: Vec<f64> = kept.iter().map(|t| p.schedule().alphas_cumprod()[t.index()]).collect();
        let (mean, variance) = ancestral_moments(&bars, |t| {
            let beta = 1.0 - bars[t] / bars[t - 1];
            match variance_type {
                VarianceType::FixedSmall => beta * (1.0 - bars[t - 1]) / (1.0 - bars[t]),
                _ => beta,
            }
        });
        assert_moments(sampled(&p, &config, |x_t, t| best_epsilon(&p, x_t, t)), mean, variance);
        if steps.is_none() {
            assert!((mean - M).abs() < 0.01 && (variance / (S * S) - 1.0).abs() < 0.05, "{mean}, {variance}");
        }
    }
}

/// The true Var(x_{t-1} | x_t) lies in the learned range; given it, ten steps are as exact as a thousand.
#[test]
fn a_learned_variance_makes_ten_ancestral_steps_exact() {
    let p = unclipped(VarianceType::LearnedRange);
    let config = SamplerConfig { steps: Some(10), spacing: Spacing::Linspace, ..Default::default() };
    let kept = config.kept_timesteps(1000).unwrap();
    let bars: Vec<f64> = kept.iter().map(|t| p.schedule().alphas_cumprod()[t.index()]).collect();
    let moments = sampled(&p, &config, |x_t, t| {
        let at = kept.iter().position(|k| *k == t).unwrap();
        let mut value = 0.0;
        if at > 0 {
            let (bar, bar_prev) = (bars[at], bars[at - 1]);
            let beta = 1.0 - bar / bar_prev;
            let posterior = beta * (1.0 - bar_prev) / (1.0 - bar);
            // Var(x_{t-1} | x_t) = V_{t-1} - Cov^2 / V_t.
            let (v_prev, v) = (variance_of_x_t(bar_prev), variance_of_x_t(bar));
            let exact = v_prev - bar / bar_prev * v_prev * v_prev / v;
            value = 2.0 * (exact / posterior).ln() / (beta / posterior).ln() - 1.0;
            assert!((-1.0..=1.0).contains(&value), "{value}");
        }
        let epsilon = best_epsilon(&p, x_t, t);
        let variance = (epsilon.ones_like().unwrap() * value).unwrap();
        Tensor::cat(&[&epsilon, &variance], 3).unwrap()
    });
    assert_moments(moments, M, S * S);
}

#[test]
fn deterministic_ddim_is_the_affine_map_of_theory() {
    let p = unclipped(VarianceType::FixedSmall);
    for (steps, exact) in [(Some(20), false), (None, true)] {
        let config = SamplerConfig { sampler: SamplerKind::Ddim, steps, ..Default::default() };
        let kept = config.kept_timesteps(1000).unwrap();
        let bars: Vec<f64> = kept.iter().map(|t| p.schedule().alphas_cumprod()[t.index()]).collect();
        let (mut slope, mut bar) = (1.0, bars[bars.len() - 1]);
        let last = bar;
        for bar_prev in bars.iter().rev().skip(1).copied().chain([1.0]) {
            let from_x_start = bar_prev.sqrt() * bar.sqrt() * S * S;
            let from_noise = (1.0 - bar_prev).sqrt() * (1.0 - bar).sqrt();
            slope *= (from_x_start + from_noise) / variance_of_x_t(bar);
            bar = bar_prev;
        }
        let x_t = normal(&[1, 4, 4, 1], 0);
        let want: Vec<f64> = flat(&x_t).iter().map(|x| M + slope * (x - last.sqrt() * M)).collect();
        let mut no_noise = |_| unreachable!("eta is 0");
        let got = sample::<DiffusionError>(&p, &config, x_t, &mut no_noise, &mut |x_t, t| Ok(best_epsilon(&p, x_t, t)));
        assert_close(&flat(&got.unwrap()), &want, 1e-4);
        // With many steps the map takes N(0, 1) to the data's own distribution.
        assert!(!exact || (slope / S - 1.0).abs() < 0.02, "{slope}");
    }
}

/// In lambda the data's own ODE has the solution x = sqrt(bar) M + sqrt(V / V_T) (x_T - sqrt(bar_T) M): a solver of second
/// order comes much nearer to it than DDIM, which is of first order.
#[test]
fn dpm_solver_is_of_second_order() {
    let p = unclipped(VarianceType::FixedSmall);
    let x_t = normal(&[1, 8, 8, 1], 0);
    let last = *p.schedule().alphas_cumprod().last().unwrap();
    let exact: Vec<f64> =
        flat(&x_t).iter().map(|x| M + S / variance_of_x_t(last).sqrt() * (x - last.sqrt() * M)).collect();
    let error = |sampler, steps| {
        let config = SamplerConfig { sampler, steps: Some(steps), spacing: Spacing::Trailing, ..Default::default() };
        let mut no_noise = |_| unreachable!("deterministic");
        let denoise = &mut |x_t: &Tensor, t| Ok(best_epsilon(&p, x_t, t));
        let images = sample::<DiffusionError>(&p, &config, x_t.clone(), &mut no_noise, denoise).unwrap();
        flat(&images).iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    for (steps, ratio) in [(10, 0.8), (20, 0.4), (40, 0.1), (80, 0.1)] {
        let (dpm, ddim) = (error(SamplerKind::Dpm, steps), error(SamplerKind::Ddim, steps));
        assert!(dpm < ratio * ddim, "{steps} steps: dpm {dpm}, ddim {ddim}");
    }
    // Twice the steps: half the error of a method of first order, a quarter with one of second.
    let gain = |sampler| error(sampler, 10) / error(sampler, 20);
    let (dpm, ddim) = (gain(SamplerKind::Dpm), gain(SamplerKind::Ddim));
    assert!(dpm > 3.5 && ddim < 2.5, "dpm {dpm}, ddim {ddim}");
    assert!(error(SamplerKind::Dpm, 200) < 1e-3, "{}", error(SamplerKind::Dpm, 200));
}

#[test]
fn dpm_solver_has_the_mean_and_variance_of_the_data() {
    let p = unclipped(VarianceType::FixedSmall);
    let config =
        SamplerConfig { sampler: SamplerKind::Dpm, steps: Some(50), spacing: Spacing::Trailing, ..Default::default() };
    assert_moments(sampled(&p, &config, |x_t, t| best_epsilon(&p, x_t, t)), M, S * S);
}

/// With eta between 0 and 1 the sampler keeps the moments of theory: x_{t-1} is linear in x_t plus sigma noise.
#[test]
fn ddim_with_some_noise_has_the_mean_and_variance_of_theory() {
    let p = unclipped(VarianceType::FixedSmall);
    let eta = 0.5;
    let config = SamplerConfig { sampler: SamplerKind::Ddim, steps: Some(25), eta, ..Default::default() };
    let bars: Vec<f64> =
        config.kept_timesteps(1000).unwrap().iter().map(|t| p.schedule().alphas_cumprod()[t.index()]).collect();
    let (mut mean, mut variance) = (0.0, 1.0);
    for t in (0..bars.len()).rev() {
        let (bar, bar_prev) = (bars[t], if t == 0 { 1.0 } else { bars[t - 1] });
        let sigma = eta * ((1.0 - bar_prev) / (1.0 - bar)).sqrt() * (1.0 - bar / bar_prev).sqrt();
        let of_x_start = bar_prev.sqrt() * bar.sqrt() * S * S;
        let of_noise = (1.0 - bar_prev - sigma * sigma).max(0.0).sqrt() * (1.0 - bar).sqrt();
        let slope = (of_x_start + of_noise) / variance_of_x_t(bar);
        mean = bar_prev.sqrt() * M + slope * (mean - bar.sqrt() * M);
        variance = slope * slope * variance + sigma * sigma;
    }
    assert_moments(sampled(&p, &config, |x_t, t| best_epsilon(&p, x_t, t)), mean, variance);
}

/// 8-bit data: N(M, S^2) rounded to the values of bytes, with tails that hardly ever reach the ends.
fn byte_data(dims: &[usize]) -> Tensor {
    let byte = |x: f64| ((x + 1.0) * 127.5).round().clamp(0.0, 255.0) / 127.5 - 1.0;
    let values: Vec<f32> = flat(&normal(dims, 7)).iter().map(|z| byte(NARROW_M + NARROW_S * z) as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}
const NARROW_M: f64 = -0.1;
const NARROW_S: f64 = 0.2;

/// With the best mean and the best variance every step of the reverse process is the true one, so nothing is lost: the
/// bound is the entropy of the data, `log2(S sqrt(2 pi e) / bin)` bits for a Gaussian on bins of 2/255.
#[test]
fn the_bits_per_dimension_of_the_best_network_are_the_entropy_of_the_data() {
    let entropy = (NARROW_S * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt() * 127.5).log2();
    for (schedule, steps) in
        [(BetaSchedule::Linear, None), (BetaSchedule::SquaredcosCapV2, None), (BetaSchedule::Linear, Some(100))]
    {
        let trained = process(|c| (c.variance_type, c.beta_schedule) = (VarianceType::LearnedRange, schedule));
        let kept = Spacing::Sections(vec![steps.unwrap_or(1000)]).kept_timesteps(None, 1000).unwrap();
        let p = trained.respaced(&kept).unwrap();
        let x_start = byte_data(&[2, 64, 64, 1]);
        let mut noise = |t: Timestep| Ok(normal(x_start.dims(), 100 + t.index() as u64));
        let images = bits_per_dim::<DiffusionError>(&p, &x_start, &mut noise, &mut |x_t, t| {
            let at = kept.iter().position(|k| *k == t).unwrap();
            Ok(best_output(&p, x_t, at))
        });
        let images = images.unwrap();
        let got = images.iter().map(BitsPerDim::total).sum::<f64>() / images.len() as f64;
        assert!((got / entropy - 1.0).abs() < 0.01, "{schedule:?} {steps:?}: {got} bits, want {entropy}");
    }
}

/// E[eps | x_t] and the v of Var(x_{t-1} | x_t), for data of [`NARROW_M`] and [`NARROW_S`], at index `t` of `p`.
fn best_output(p: &DiffusionProcess, x_t: &Tensor, t: usize) -> Tensor {
    let variance_at = |bar: f64| bar * NARROW_S * NARROW_S + 1.0 - bar;
    let (schedule, bar) = (p.schedule(), p.schedule().alphas_cumprod()[t]);
    let bar_prev = schedule.alphas_cumprod_prev()[t];
    let slope = (1.0 - bar).sqrt() / variance_at(bar);
    let epsilon = x_t.affine(slope, -slope * bar.sqrt() * NARROW_M).unwrap();
    let exact = variance_at(bar_prev) * (1.0 - bar / bar_prev * variance_at(bar_prev) / variance_at(bar));
    let (small, large) = (schedule.posterior_log_variance_clipped()[t].0, schedule.betas()[t].ln());
    let value = if large > small { 2.0 * (exact.ln() - small) / (large - small) - 1.0 } else { 0.0 };
    Tensor::cat(&[&epsilon, &(epsilon.ones_like().unwrap() * value).unwrap()], 3).unwrap()
}

/// A fixed variance costs what the closed forms of its terms say, t by t and in the sum.
#[test]
fn the_bits_per_dimension_of_a_fixed_variance_are_those_of_theory() {
    for variance_type in [VarianceType::FixedSmall, VarianceType::FixedLarge] {
        let p = unclipped(variance_type);
        let x_start = byte_data(&[2, 64, 64, 1]);
        let mut noise = |t: Timestep| Ok(normal(x_start.dims(), 100 + t.index() as u64));
        let images = bits_per_dim::<DiffusionError>(&p, &x_start, &mut noise, &mut |x_t, t| {
            let epsilon = best_output(&p, x_t, t.index()).narrow(3, 0, 1)?;
            Ok(epsilon)
        });
        let images = images.unwrap();
        let (bars, betas) = (p.schedule().alphas_cumprod(), p.schedule().betas());
        let of_t = |t: usize| -> f64 {
            let (bar, bar_prev, beta) = (bars[t], bars[t - 1], betas[t]);
            let q = beta * (1.0 - bar_prev) / (1.0 - bar);
            let of_p = if variance_type == VarianceType::FixedSmall { q } else { beta };
            let of_x_start = NARROW_S * NARROW_S * (1.0 - bar) / (bar * NARROW_S * NARROW_S + 1.0 - bar);
            let mean_error = bar_prev * (beta / (1.0 - bar)).powi(2) * of_x_start;
            0.5 * ((of_p / q).ln() + (q + mean_error) / of_p - 1.0) / LN_2
        };
        let want: f64 = (1..1000).map(of_t).sum();
        let got = images.iter().flat_map(|image| &image.vb[1..]).sum::<f64>() / 2.0;
        assert!((got / want - 1.0).abs() < 0.01, "{variance_type:?}: {got}, want {want}");
    }
}
