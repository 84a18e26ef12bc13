//! Every loss's gradient against central differences of its value.
//!
//! The value is computed in f64 from f32 outputs that are multiples of 1/1024, so a step of 1/1024 is exact and only
//! the difference's own truncation is left.

use super::*;

const STEP: f64 = 1.0 / 1024.0;
const WEIGHTS: [f32; 4] = [1.0, 0.5, 2.0, 0.25];
/// More than the four samples: they are a micro-batch.
const GLOBAL_BATCH: usize = 6;
const IMAGE: [usize; 4] = [4, 2, 1, 2];

struct Problem {
    process: DiffusionProcess,
    t: Vec<Timestep>,
    x_start: Tensor,
    noise: Tensor,
    dims: [usize; 4],
}

impl Problem {
    fn new(diffusion: &DiffusionConfig) -> Self {
        let process = DiffusionProcess::new(diffusion).unwrap();
        let t = timesteps(&process, &[0, 1, 5, 9]);
        let (x_start, noise) = ((normal(&IMAGE, 1) * 0.4).unwrap(), normal(&IMAGE, 2));
        Self { process, t, x_start, noise, dims: [4, 2, 1, diffusion.variance_type.out_channels(2)] }
    }

    /// An output near the target, so that no probability is at its floor, with any variance values.
    fn output(&self) -> Vec<f64> {
        let target = match self.process.config().prediction_type {
            PredictionType::Sample => flat(&self.x_start),
            PredictionType::Epsilon | PredictionType::VPrediction => flat(&self.noise),
        };
        let random = flat(&normal(&self.dims, 3));
        let channels = self.dims[3];
        let value = |i: usize| match i % channels {
            c if c < 2 => target[i / channels * 2 + c] + 0.2 * random[i],
            _ => 0.5 * random[i],
        };
        (0..random.len()).map(|i| (value(i) * 1024.0).round() / 1024.0).collect()
    }

    fn compute(&self, loss: &Loss, output: &[f64]) -> LossValue {
        let output: Vec<f32> = output.iter().map(|&x| x as f32).collect();
        let inputs = LossInputs {
            model_output: &Tensor::from_vec(output, &self.dims, &Device::Cpu).unwrap(),
            x_start: &self.x_start,
            t: &self.t,
            noise: &self.noise,
            weights: &WEIGHTS,
            global_batch: GLOBAL_BATCH,
        };
        loss.compute(&self.process, &inputs).unwrap()
    }

    fn objective(&self, loss: &Loss, output: &[f64]) -> f64 {
        let value = self.compute(loss, output);
        value.per_sample.iter().zip(WEIGHTS).map(|(loss, w)| loss * f64::from(w)).sum::<f64>() / GLOBAL_BATCH as f64
    }
}

#[track_caller]
fn check_gradient(config: &LossConfig, diffusion: &DiffusionConfig) {
    let problem = Problem::new(diffusion);
    let loss = Loss::new(config, diffusion).unwrap();
    // What the mean learns from: in hybrid the bound does depend on it, but detached.
    let mean_config = LossConfig { vlb_lambda: 0.0, ..config.clone() };
    let loss_of_mean = Loss::new(&mean_config, diffusion).unwrap();

    let output = problem.output();
    let got = flat(&problem.compute(&loss, &output).grad);
    for i in 0..output.len() {
        let loss = if i % problem.dims[3] < 2 { &loss_of_mean } else { &loss };
        let moved = |by: f64| {
            let mut output = output.clone();
            output[i] += by;
            problem.objective(loss, &output)
        };
        let want = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let off = (got[i] - want).abs();
        assert!(off <= 1e-3 * want.abs() + 1e-6, "{config:?} {diffusion:?}\n element {i}: got {}, want {want}", got[i]);
    }
}

fn check_gradients(kind: LossKind, variance_types: &[VarianceType], min_snr_gamma: Option<f64>) {
    for prediction_type in PREDICTIONS {
        for &variance_type in variance_types {
            let diffusion = DiffusionConfig {
                num_train_timesteps: 10,
                beta_start: 0.02,
                beta_end: 0.3,
                prediction_type,
                variance_type,
                ..Default::default()
            };
            // A large lambda, so that the bound's share of hybrid is not lost in the tolerance.
            let config = LossConfig { kind, min_snr_gamma, vlb_lambda: 0.3, ..Default::default() };
            check_gradient(&config, &diffusion);
        }
    }
}

#[test]
fn the_gradient_of_simple_is_its_derivative() {
    check_gradients(LossKind::Simple, &[VarianceType::FixedSmall], None);
    check_gradients(LossKind::Simple, &[VarianceType::FixedSmall], Some(5.0));
}

#[test]
fn the_gradient_of_vlb_weighted_is_its_derivative() {
    check_gradients(LossKind::VlbWeighted, &[VarianceType::FixedSmall, VarianceType::FixedLarge], None);
}

#[test]
fn the_gradient_of_vlb_is_its_derivative() {
    check_gradients(LossKind::Vlb, &[VarianceType::LearnedRange], None);
}

#[test]
fn the_gradient_of_hybrid_is_its_derivative_with_the_mean_detached() {
    check_gradients(LossKind::Hybrid, &[VarianceType::LearnedRange], None);
    check_gradients(LossKind::Hybrid, &[VarianceType::LearnedRange], Some(5.0));
}
