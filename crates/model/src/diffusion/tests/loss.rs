//! Values and gradients of the losses.

use std::f64::consts::LN_2;

use super::*;

const IMAGE: [usize; 4] = [4, 2, 2, 2];

/// Four samples at four timesteps of a ten-step process, with an imperfect output.
struct Case {
    process: DiffusionProcess,
    loss: Loss,
    output: Tensor,
    x_start: Tensor,
    x_t: Tensor,
    t: Vec<Timestep>,
    noise: Tensor,
}

fn case(kind: LossKind, variance_type: VarianceType, prediction_type: PredictionType, gamma: Option<f64>) -> Case {
    let process = process(|c| {
        (c.num_train_timesteps, c.beta_start, c.beta_end) = (10, 0.02, 0.3);
        (c.variance_type, c.prediction_type) = (variance_type, prediction_type);
    });
    let config = LossConfig { kind, min_snr_gamma: gamma, ..Default::default() };
    let loss = Loss::new(&config, process.config()).unwrap();
    let t = timesteps(&process, &[0, 1, 5, 9]);
    let (x_start, noise) = ((normal(&IMAGE, 1) * 0.5).unwrap(), normal(&IMAGE, 2));
    let x_t = process.q_sample(&x_start, &t, &noise).unwrap();
    let output = normal(&[4, 2, 2, variance_type.out_channels(2)], 3);
    Case { process, loss, output, x_start, x_t, t, noise }
}

impl Case {
    fn inputs(&self) -> LossInputs<'_> {
        LossInputs {
            model_output: &self.output,
            x_start: &self.x_start,
            t: &self.t,
            noise: &self.noise,
            weights: &[1.0, 0.5, 2.0, 1.0],
            global_batch: 4,
        }
    }

    fn value(&self) -> LossValue {
        self.loss.compute(&self.process, &self.inputs()).unwrap()
    }

    fn bits(&self) -> Vec<f64> {
        vlb_bits(&self.process, &self.output, &self.x_start, &self.noise, &self.t)
    }
}

/// (first C channels, second C channels) of the gradient, for C = 2.
fn halves(grad: &Tensor) -> (Vec<f64>, Vec<f64>) {
    (flat(&grad.narrow(3, 0, 2).unwrap()), flat(&grad.narrow(3, 2, 2).unwrap()))
}

#[test]
fn simple_is_the_mean_squared_error_of_the_noise() {
    let case = case(LossKind::Simple, VarianceType::FixedSmall, PredictionType::Epsilon, None);
    let (noise, output) = (flat(&case.noise), flat(&case.output));
    let want: Vec<f64> =
        (0..4).map(|i| (0..8).map(|j| (noise[i * 8 + j] - output[i * 8 + j]).powi(2)).sum::<f64>() / 8.0).collect();
    assert_close(&case.value().per_sample, &want, 1e-12);
    assert!(case.value().vlb.is_none());
}

#[test]
fn a_network_that_says_nothing_has_simple_loss_1() {
    let p = process(|_| ());
    let (x, noise) = (normal(&[4, 64, 64, 3], 1), normal(&[4, 64, 64, 3], 2));
    let inputs = LossInputs {
        model_output: &noise.zeros_like().unwrap(),
        x_start: &x,
        t: &timesteps(&p, &[1, 2, 3, 4]),
        noise: &noise,
        weights: &[1.0; 4],
        global_batch: 4,
    };
    let value = Loss::new(&LossConfig::default(), p.config()).unwrap().compute(&p, &inputs).unwrap();
    assert!(value.per_sample.iter().all(|loss| (loss - 1.0).abs() < 5.0 * (2.0 / 12_288f64).sqrt()), "{value:?}");
}

/// With sigma_t^2 = beta~_t both Gaussians of the KL have one variance: the KL is the weighted squared error of eps.
#[test]
fn vlb_weighted_is_the_bound_itself_for_t_above_0() {
    for prediction in PREDICTIONS {
        let case = case(LossKind::VlbWeighted, VarianceType::FixedSmall, prediction, None);
        let nats: Vec<f64> = case.bits().iter().map(|bits| bits * LN_2).collect();
        assert_close(&case.value().per_sample[1..], &nats[1..], 2e-5);
    }
}

#[test]
fn vlb_weighted_uses_the_variance_of_the_config() {
    let (small, large) = (VarianceType::FixedSmall, VarianceType::FixedLarge);
    let case_of = |variance| case(LossKind::VlbWeighted, variance, PredictionType::Epsilon, None);
    let (small, large) = (case_of(small), case_of(large));
    let schedule = small.process.schedule();
    let ratio = |t: usize| schedule.posterior_variance()[t] / schedule.betas()[t];
    let (small_value, large_value) = (small.value().per_sample, large.value().per_sample);
    for (i, t) in [(1, 1), (2, 5), (3, 9)] {
        assert_close(&[large_value[i]], &[small_value[i] * ratio(t)], 1e-12);
    }
}

#[test]
fn min_snr_caps_the_weight_of_each_prediction() {
    for prediction in PREDICTIONS {
        let plain = case(LossKind::Simple, VarianceType::FixedSmall, prediction, None);
        let capped = case(LossKind::Simple, VarianceType::FixedSmall, prediction, Some(3.0)).value();
        assert_close(&capped.mse, &plain.value().per_sample, 1e-14);
        for (i, t) in [0, 1, 5, 9].into_iter().enumerate() {
            let bar = plain.process.schedule().alphas_cumprod()[t];
            let snr = bar / (1.0 - bar);
            let weight = match prediction {
                PredictionType::Epsilon => (3.0 / snr).min(1.0),
                PredictionType::Sample => snr.min(3.0),
                PredictionType::VPrediction => snr.min(3.0) * (1.0 - bar),
            };
            assert_close(&[capped.per_sample[i]], &[weight * capped.mse[i]], 1e-12);
        }
    }
}

#[test]
fn vlb_is_the_bound_times_t_and_hybrid_adds_a_thousandth_of_it() {
    let vlb = case(LossKind::Vlb, VarianceType::LearnedRange, PredictionType::Epsilon, None);
    let hybrid = case(LossKind::Hybrid, VarianceType::LearnedRange, PredictionType::Epsilon, None).value();
    let bits = vlb.bits();
    assert_close(hybrid.vlb.as_ref().unwrap(), &bits, 1e-14);
    let of_vlb: Vec<f64> = bits.iter().map(|bits| 10.0 * bits).collect();
    assert_close(&vlb.value().per_sample, &of_vlb, 1e-12);
    let of_hybrid: Vec<f64> = hybrid.mse.iter().zip(&bits).map(|(mse, bits)| mse + 0.001 * 10.0 * bits).collect();
    assert_close(&hybrid.per_sample, &of_hybrid, 1e-12);
}

#[test]
fn in_hybrid_the_bound_teaches_the_variance_and_nothing_else() {
    let simple = case(LossKind::Simple, VarianceType::FixedSmall, PredictionType::Epsilon, None);
    let hybrid = case(LossKind::Hybrid, VarianceType::LearnedRange, PredictionType::Epsilon, None);
    // The same prediction in both, the variance's channels beside it.
    let prediction = hybrid.output.narrow(3, 0, 2).unwrap();
    let simple = Case { output: prediction, ..simple };
    let (mean_half, variance_half) = halves(&hybrid.value().grad);
    assert_eq!(mean_half, flat(&simple.value().grad), "the bound reached the mean");
    assert!(mean_half.iter().all(|g| *g != 0.0));
    assert!(variance_half.iter().all(|g| *g != 0.0), "the variance learns nothing");

    let vlb = case(LossKind::Vlb, VarianceType::LearnedRange, PredictionType::Epsilon, None).value();
    assert!(halves(&vlb.grad).0.iter().all(|g| *g != 0.0), "alone, the bound teaches the mean too");
}

#[test]
fn micro_batches_sum_to_the_gradient_of_the_whole_batch() {
    for kind in [LossKind::Vlb, LossKind::Hybrid] {
        let case = case(kind, VarianceType::LearnedRange, PredictionType::Epsilon, None);
        let whole = case.value();
        let (mut per_sample, mut grad) = (vec![], vec![]);
        for (first, count) in [(0, 1), (1, 3)] {
            let part = |tensor: &Tensor| tensor.narrow(0, first, count).unwrap();
            let inputs = LossInputs {
                model_output: &part(&case.output),
                x_start: &part(&case.x_start),
                t: &case.t[first..first + count],
                noise: &part(&case.noise),
                weights: &case.inputs().weights[first..first + count],
                global_batch: 4,
            };
            let value = case.loss.compute(&case.process, &inputs).unwrap();
            per_sample.extend(value.per_sample);
            grad.extend(flat(&value.grad));
        }
        assert_eq!((per_sample, grad), (whole.per_sample, flat(&whole.grad)));
    }
}

#[test]
fn a_learned_variance_at_its_lower_bound_is_the_fixed_small_one() {
    let fixed = case(LossKind::Simple, VarianceType::FixedSmall, PredictionType::Epsilon, None);
    let learned = case(LossKind::Vlb, VarianceType::LearnedRange, PredictionType::Epsilon, None);
    let lowest = (fixed.output.ones_like().unwrap() * -1.0).unwrap();
    let output = Tensor::cat(&[&fixed.output, &lowest], 3).unwrap();
    assert_close(&Case { output, ..learned }.bits(), &fixed.bits(), 1e-12);
}

/// Both errors against x_0 and eps as `process` predicts them, clamped.
#[test]
fn the_errors_behind_a_term_are_those_of_x_start_and_of_the_eps_that_belongs_to_it() {
    let case = case(LossKind::Vlb, VarianceType::LearnedRange, PredictionType::Epsilon, None);
    let p = &case.process;
    let predicted = p.predict_x_start(&case.output, &case.x_t, &case.t).unwrap().clamp(-1f32, 1f32).unwrap();
    let terms = bound_terms(p, &case.output, &case.x_start, &case.noise, &case.t).unwrap();
    let (predicted, x_start) = (flat(&predicted), flat(&case.x_start));
    let (x_t, noise) = (flat(&case.x_t), flat(&case.noise));
    for (i, terms) in terms.iter().enumerate() {
        let bar = p.schedule().alphas_cumprod()[case.t[i].index()];
        let eps = |k: usize| (x_t[k] - bar.sqrt() * predicted[k]) / (1.0 - bar).sqrt();
        let mean = |f: &dyn Fn(usize) -> f64| (i * 8..i * 8 + 8).map(f).sum::<f64>() / 8.0;
        assert_close(&[terms.xstart_mse], &[mean(&|k| (predicted[k] - x_start[k]).powi(2))], 1e-5);
        assert_close(&[terms.mse], &[mean(&|k| (eps(k) - noise[k]).powi(2))], 1e-4);
    }
}

/// Golden value of the reference implementation: x = 1 everywhere, linear, T = 1000.
#[test]
fn the_prior_term_agrees_with_the_reference_implementation() {
    let p = process(|_| ());
    let ones = normal(&[2, 4, 4, 3], 0).ones_like().unwrap();
    for bits in prior_bits(&p, &ones).unwrap() {
        assert!((bits - 2.9112e-5).abs() < 1e-9, "{bits}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let case = case(LossKind::Hybrid, VarianceType::LearnedRange, PredictionType::Epsilon, None);
    let refusal = |process: &DiffusionProcess, inputs: LossInputs<'_>| {
        case.loss.compute(process, &inputs).unwrap_err().to_string()
    };
    let p = &case.process;
    assert!(refusal(p, LossInputs { model_output: &case.x_t, ..case.inputs() }).contains("model_output has shape"));
    assert!(refusal(p, LossInputs { noise: &case.output, ..case.inputs() }).contains("noise has shape"));
    assert!(refusal(p, LossInputs { t: &case.t[1..], ..case.inputs() }).contains("t has shape [3]: expected [4]"));
    assert!(refusal(p, LossInputs { weights: &[1.0], ..case.inputs() }).contains("weights has shape"));
    assert!(refusal(p, LossInputs { global_batch: 3, ..case.inputs() }).contains("global_batch = 3"));
    assert!(refusal(&process(|_| ()), case.inputs()).contains("learned_range"));
}
