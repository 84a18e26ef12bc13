#![allow(clippy::unwrap_used)]

use super::*;

/// More than one task's share.
const LEN: usize = 40_000;

struct Training {
    buffers: [FlatBuffer; 4],
    averages: [FlatBuffer; 5],
}

impl Training {
    fn new() -> Self {
        let buffer = |f: fn(f32) -> f32| {
            FlatBuffer::from_vec((0..LEN).map(|i| f(i as f32 * 0.37)).collect(), &Device::Cpu).unwrap()
        };
        let averages = std::array::from_fn(|_| buffer(f32::sin));
        Self { buffers: [buffer(f32::sin), buffer(f32::cos), buffer(|_| 0.0), buffer(|_| 0.0)], averages }
    }

    fn settings(step: u64) -> StepSettings {
        let decays = vec![0.5, 0.6, 0.7, 0.8, 0.9];
        StepSettings {
            lr: 0.01,
            betas: [0.9, 0.99],
            eps: 1e-8,
            weight_decay: 0.1,
            clip_grad_norm: 2.0,
            step,
            max_bad_steps: 0,
            spike_factor: 0.0,
            decays,
        }
    }

    /// A step down the gradient, `factor` times.
    fn step(&self, judged: &JudgedStep, step: u64, factor: f32) {
        self.step_with(judged, &Self::settings(step), factor);
    }

    fn step_with(&self, judged: &JudgedStep, settings: &StepSettings, factor: f32) {
        let [parameters, gradients, exp_avg, exp_avg_sq] = &self.buffers;
        let gradients = gradients.to_vec().unwrap().into_iter().map(|g| g * factor).collect();
        let gradients = &FlatBuffer::from_vec(gradients, &Device::Cpu).unwrap();
        let averages = &self.averages.each_ref();
        let settings = Tensor::new(settings.words(), &Device::Cpu).unwrap();
        let (narrow, compute) = (None, None);
        let buffers = StepBuffers { parameters, gradients, narrow, exp_avg, exp_avg_sq, averages, compute };
        judged.step(&settings, &buffers).unwrap();
    }

    fn all(&self) -> Vec<f32> {
        self.buffers.iter().chain(&self.averages).flat_map(|buffer| buffer.to_vec().unwrap()).collect()
    }
}

#[test]
fn a_judged_step_is_the_clipped_step_of_adamw_bit_for_bit() {
    let (judged, plain) = (Training::new(), Training::new());
    let memory = JudgedStep::new(&Device::Cpu, &StepState::unscaled()).unwrap();
    for step in 1..=3 {
        judged.step(&memory, step, 1.0);
        let [parameters, gradients, exp_avg, exp_avg_sq] = &plain.buffers;
        let norm = norm(gradients).unwrap();
        assert_eq!(memory.state().unwrap().norm, norm);
        let [beta1, beta2] = [0.9, 0.99];
        let gradient_scale = 2.0 / norm;
        let adamw = AdamW { lr: 0.01, beta1, beta2, eps: 1e-8, weight_decay: 0.1, step, gradient_scale };
        let averages: Vec<_> = plain.averages.iter().cloned().zip(Training::settings(step).decays).collect();
        let averages = &averages;
        adamw_step(&adamw, &AdamWBuffers { parameters, gradients, exp_avg, exp_avg_sq, averages }).unwrap();
    }
    assert_eq!(judged.all(), plain.all());
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_no_later_step_does() {
    let training = Training::new();
    let memory = JudgedStep::new(&Device::Cpu, &StepState::unscaled()).unwrap();
    training.step(&memory, 1, 1.0);
    let before = training.all();
    training.step(&memory, 2, f32::NAN);
    training.step(&memory, 3, 1.0);
    assert_eq!(training.all(), before);
    let state = memory.state().unwrap();
    assert_eq!(state.diverged, Some(2));
    assert!(state.norm.is_nan());
    memory.set_state(&StepState::unscaled()).unwrap();
    training.step(&memory, 3, 1.0);
    assert_ne!(training.all(), before);
}

#[test]
fn a_loss_scale_is_halved_where_it_overflows_and_the_step_does_not_count() {
    let (scaled, plain) = (Training::new(), Training::new());
    let memory = JudgedStep::new(&Device::Cpu, &StepState::scaled(4.0)).unwrap();
    scaled.step(&memory, 1, f32::INFINITY);
    scaled.step(&memory, 2, 2.0);
    let unscaled = JudgedStep::new(&Device::Cpu, &StepState::unscaled()).unwrap();
    plain.step(&unscaled, 1, 1.0);
    assert_eq!(scaled.all(), plain.all());
    let state = memory.state().unwrap();
    assert_eq!((state.loss_scale, state.skipped, state.diverged), (2.0, 1, None));
    memory.set_state(&StepState { steady_steps: GROWTH_INTERVAL - 1, ..state }).unwrap();
    scaled.step(&memory, 3, 2.0);
    assert_eq!(memory.state().unwrap().loss_scale, 4.0);
}

#[test]
fn bad_steps_in_a_row_are_skipped_and_one_too_many_ends_the_training() {
    let (training, without) = (Training::new(), Training::new());
    let judged = || JudgedStep::new(&Device::Cpu, &StepState::unscaled()).unwrap();
    let (memory, plain) = (judged(), judged());
    let settings = |step| StepSettings { max_bad_steps: 2, ..Training::settings(step) };
    for (step, factor) in (1..).zip([1.0, f32::NAN, f32::INFINITY, 1.0, f32::NAN]) {
        training.step_with(&memory, &settings(step), factor);
    }
    for (step, factor) in [(1, 1.0), (2, 1.0)] {
        without.step(&plain, step, factor);
    }
    assert_eq!(training.all(), without.all(), "skipped steps changed something, or counted for the moments' bias");
    let state = memory.state().unwrap();
    assert_eq!((state.skipped, state.bad_steps, state.diverged), (3, 1, None));
    (6..=8).for_each(|step| training.step_with(&memory, &settings(step), f32::NAN));
    training.step_with(&memory, &settings(9), 1.0);
    assert_eq!(training.all(), without.all());
    assert_eq!(memory.state().unwrap().diverged, Some(7), "the third in a row");
}

#[test]
fn a_spike_is_skipped_until_it_is_the_usual() {
    let training = Training::new();
    let memory = JudgedStep::new(&Device::Cpu, &StepState::unscaled()).unwrap();
    let settings = |step| StepSettings { max_bad_steps: 2, spike_factor: 5.0, ..Training::settings(step) };
    let mut changed = Vec::new();
    for (step, factor) in (1..).zip([1.0, 4.0, 6.0, 1.0, 30.0, 30.0, 30.0]) {
        let before = training.all();
        training.step_with(&memory, &settings(step), factor);
        changed.push(training.all() != before);
    }
    assert_eq!(changed, [true, true, false, true, false, false, true]);
    let state = memory.state().unwrap();
    assert_eq!((state.skipped, state.diverged), (3, None), "a spike never ends the training");
}
