//! Losses, norms and weights after some steps: the same on both devices, but for the rounding of the format.

use candle_core::Device;
use ddpm_train::Kind;
use ddpm_train::training::outcome::StepOutcome;
use ddpm_train::training::trainer::Trainer;

use crate::{TINY, gpu, plan, train};

const HYBRID: [(&str, &str); 3] = [
    ("diffusion.variance_type", "learned_range"),
    ("loss.kind", "hybrid"),
    ("model.resnet_time_scale_shift", "scale_shift"),
];

fn weights(trainer: &Trainer) -> Vec<f32> {
    trainer.sampling_params().unwrap().buffer().to_vec().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

fn assert_close(what: &str, found: &[StepOutcome], expected: &[StepOutcome], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.timesteps, expected.timesteps, "{what}: step {step}");
        assert_eq!(found.quartiles, expected.quartiles, "{what}: step {step}");
        assert_eq!(found.vlb.is_some(), expected.vlb.is_some(), "{what}: step {step}");
        let pairs = found.losses.iter().zip(&expected.losses).chain(found.mse.iter().zip(&expected.mse));
        for (found, expected) in pairs.chain([(&found.state.norm, &expected.state.norm)]) {
            let off = (found - expected).abs() / expected.abs();
            assert!(off < tolerance, "{what}: step {step}: {found}, on the CPU {expected}");
        }
    }
}

/// The CPU's own precision for f32; a network of few channels feels 8 bits of mantissa most in its gradient.
fn check(settings: &[(&str, &str)], steps: u64) {
    let (device, _turn) = gpu();
    let (expected, cpu) = train(&plan(TINY, &[settings, &[("run.device", "cpu")]].concat()), &Device::Cpu, steps);
    for (precision, tolerance) in [("f32", 1e-4), ("bf16", 5e-2), ("f16", 1e-2)] {
        let what = format!("{precision} {settings:?}");
        let settings = [settings, &[("run.device", "cuda"), ("train.precision", precision)]].concat();
        let (found, trainer) = train(&plan(TINY, &settings), &device, steps);
        assert_close(&what, &found, &expected, tolerance);
        let off = largest_difference(&weights(&trainer), &weights(&cpu));
        // AdamW moves a weight by about lr a step, whichever sign its gradient has.
        assert!(off < if precision == "f32" { 2e-5 } else { 1e-3 * steps as f32 }, "{what}: weights are off by {off}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_training_is_the_cpus() {
    check(&[], 8);
    check(&[("loss.kind", "vlb_weighted"), ("diffusion.prediction_type", "v_prediction")], 3);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_training_with_a_learned_variance_and_classes_is_the_cpus() {
    check(&HYBRID, 4);
    check(&[("model.num_class_embeds", "11"), ("loss.label_dropout", "0.3")], 4);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_fifty_steps_stay_with_the_cpu() {
    let (device, _turn) = gpu();
    let steps = 50;
    let (expected, _) = train(&plan(TINY, &[("run.device", "cpu")]), &Device::Cpu, steps);
    let (found, _) = train(&plan(TINY, &[("run.device", "cuda")]), &device, steps);
    assert_close("50 steps", &found, &expected, 2e-2);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_micro_batches_are_the_whole_batch() {
    let (device, _turn) = gpu();
    let (expected, _) = train(&plan(TINY, &[("run.device", "cpu")]), &Device::Cpu, 4);
    let settings = [("run.device", "cuda"), ("train.micro_batch", "3")];
    assert_close("micro-batches", &train(&plan(TINY, &settings), &device, 4).0, &expected, 1e-4);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_training_twice_gives_the_same_bits() {
    let (device, _turn) = gpu();
    for precision in ["f32", "bf16"] {
        let settings = [("run.device", "cuda"), ("train.precision", precision), ("train.deterministic", "true")];
        let plan = plan(TINY, &settings);
        let (first, second) = (train(&plan, &device, 4), train(&plan, &device, 4));
        assert_eq!(weights(&first.1), weights(&second.1), "{precision}");
        let losses = |run: &[StepOutcome]| run.iter().flat_map(|step| step.losses.clone()).collect::<Vec<_>>();
        assert_eq!(losses(&first.0), losses(&second.0), "{precision}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_diverged_run_says_so_and_keeps_its_weights() {
    let (device, _turn) = gpu();
    let too_fast = [("train.lr", "1e30"), ("train.warmup_steps", "0"), ("train.max_bad_steps", "0")];
    let plan = plan(TINY, &[&[("run.device", "cuda")], too_fast.as_slice()].concat());
    let mut trainer = Trainer::new(&plan, &device).unwrap();
    let batches = crate::batches(&plan);
    let mut failure = None;
    for step in 0..8 {
        let took = trainer.step(batches.batch_at(step).unwrap()).and_then(|()| trainer.outcomes(step == 7).map(drop));
        failure = failure.or(took.err());
    }
    let failure = failure.expect("a learning rate of 1e30 ruins any network");
    assert!(failure.to_string().contains("diverged at step"), "{failure}");
    assert_eq!(failure.kind(), Kind::Diverged);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_training_on_images_that_are_not_square_is_the_cpus() {
    for (size, settings) in [("[8, 12]", &[][..]), ("[14, 6]", &HYBRID[..])] {
        check(&[settings, &[("data.image_size", size)]].concat(), 3);
    }
}
