//! The tables against golden values and against Bayes' rule.

use super::*;

const SCHEDULES: [BetaSchedule; 4] =
    [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredcosCapV2, BetaSchedule::Sigmoid];

fn schedule(beta_schedule: BetaSchedule, num_train_timesteps: usize) -> Schedule {
    Schedule::new(&DiffusionConfig { beta_schedule, num_train_timesteps, ..Default::default() }).unwrap()
}

#[track_caller]
fn assert_equal_to_rounding(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-12 * want.abs(), "got {got:e}, want {want:e}");
}

/// Golden values of the reference implementations (improved-diffusion, diffusers).
#[test]
fn the_linear_schedule_agrees_with_the_reference_implementation() {
    let linear = schedule(BetaSchedule::Linear, 1000);
    assert_equal_to_rounding(linear.alphas_cumprod()[999], 4.035829765375676e-05);
    assert_equal_to_rounding(linear.alphas_cumprod()[500], 0.07779665836502389);
    assert_equal_to_rounding(linear.posterior_log_variance_clipped()[0].0, -9.81672513529567);
    assert_equal_to_rounding(linear.posterior_log_variance_clipped()[1].0, -9.81672513529567);
    assert_equal_to_rounding(linear.posterior_log_variance_clipped()[999].0, -3.912023829100455);
    assert_eq!((linear.betas()[0], linear.betas()[999]), (1e-4, 0.02));
}

#[test]
fn the_cosine_schedule_agrees_with_the_reference_implementation() {
    let cosine = schedule(BetaSchedule::SquaredcosCapV2, 1000);
    assert!((cosine.betas()[0] - 4.128422482196914e-05).abs() < 1e-15, "{:e}", cosine.betas()[0]);
    assert_equal_to_rounding(cosine.alphas_cumprod()[500], 0.49228517244880304);
    assert_eq!(cosine.betas()[999], 0.999);
}

#[test]
fn scaled_linear_and_sigmoid_hit_their_ends_and_middles() {
    let scaled = schedule(BetaSchedule::ScaledLinear, 3);
    assert_close(scaled.betas(), &[1e-4, ((0.01 + 0.02f64.sqrt()) / 2.0).powi(2), 0.02], 1e-15);
    let sigmoid = schedule(BetaSchedule::Sigmoid, 3);
    let low = 0.0199 / (1.0 + 6f64.exp());
    assert_close(sigmoid.betas(), &[1e-4 + low, 1e-4 + 0.0199 / 2.0, 0.02 - low], 1e-15);
}

/// q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add up.
#[test]
fn the_posterior_is_the_one_of_bayes_rule() {
    for name in SCHEDULES {
        let s = schedule(name, 1000);
        for t in 1..1000 {
            let (beta, bar_prev) = (s.betas()[t], s.alphas_cumprod()[t - 1]);
            let precision = (1.0 - beta) / beta + 1.0 / (1.0 - bar_prev);
            let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-9, "{name:?} {t}: {got}, {want}");
            close(s.posterior_variance()[t], 1.0 / precision);
            close(s.posterior_log_variance_clipped()[t].variance(), 1.0 / precision);
            close(s.posterior_mean_coef1()[t], bar_prev.sqrt() / (1.0 - bar_prev) / precision);
            close(s.posterior_mean_coef2()[t], (1.0 - beta).sqrt() / beta / precision);
        }
    }
}

#[test]
fn at_t_0_the_posterior_is_x_0_itself() {
    for name in SCHEDULES {
        let s = schedule(name, 50);
        assert_eq!((s.posterior_variance()[0], s.posterior_mean_coef2()[0]), (0.0, 0.0));
        assert!((s.posterior_mean_coef1()[0] - 1.0).abs() < 1e-11);
        assert_eq!(s.posterior_log_variance_clipped()[0], LogVariance::of(s.posterior_variance()[1]));
        assert_eq!(s.fixed_large_log_variance()[0], LogVariance::of(s.posterior_variance()[1]));
        assert_eq!(s.fixed_large_log_variance()[7], LogVariance::of(s.betas()[7]));
        assert_eq!(s.alphas_cumprod_prev()[0], 1.0);
    }
}

#[test]
fn a_respaced_schedule_keeps_alpha_bar_at_the_kept_steps() {
    for name in SCHEDULES {
        let s = schedule(name, 1000);
        let kept = Spacing::Sections(vec![10, 15, 20]).kept_timesteps(None, 1000).unwrap();
        let respaced = s.respaced(&kept).unwrap();
        let want: Vec<f64> = kept.iter().map(|t| s.alphas_cumprod()[t.index()]).collect();
        assert_close(respaced.alphas_cumprod(), &want, 1e-13);
        assert_close(&respaced.snr()[..1], &[want[0] / (1.0 - want[0])], 1e-9);
    }
}

#[test]
fn a_schedule_of_one_step_has_finite_tables() {
    let s = schedule(BetaSchedule::Linear, 1000);
    let one = s.respaced(&[s.timestep(999).unwrap()]).unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one.posterior_log_variance_clipped()[0], LogVariance::of(one.betas()[0]));
}

#[test]
fn the_terminal_signal_tells_a_long_enough_schedule_from_a_short_one() {
    assert!(schedule(BetaSchedule::Linear, 1000).terminal_signal() < 0.01);
    assert!(schedule(BetaSchedule::Linear, 100).terminal_signal() > 0.05);
}

#[test]
fn betas_that_destroy_the_tables_are_refused() {
    let config = DiffusionConfig { beta_start: 0.9, beta_end: 0.99, ..Default::default() };
    let error = Schedule::new(&config).unwrap_err().to_string();
    assert!(error.starts_with("diffusion.beta_schedule = betas from 9e-1 to 9.9e-1 over 1000 timesteps"), "{error}");
    let config = DiffusionConfig { beta_start: 1e-20, ..Default::default() };
    assert!(Schedule::new(&config).is_err());
}

#[test]
fn a_timestep_of_a_longer_schedule_is_refused() {
    let (long, short) = (process(|_| ()), process(|c| c.num_train_timesteps = 10));
    let t = timesteps(&long, &[10]);
    let x = normal(&[1, 2, 2, 1], 0);
    let error = short.q_sample(&x, &t, &x).unwrap_err();
    assert_eq!(error.to_string(), "timestep 10: expected one of 0..10");
}
