//! Bad steps on a GPU: skipped as on the CPU, also in a replayed graph, and looked at again when they end the training.

use candle_core::Device;
use ddpm_train::Error;
use ddpm_train::training::outcome::StepOutcome;
use ddpm_train::training::trainer::Trainer;

use crate::{TINY, batches, gpu, plan};

/// Six steps, of which the fourth is bad; by then a GPU replays its steps.
fn skipped(settings: &[(&str, &str)], device: &Device) -> (Vec<StepOutcome>, Vec<f32>) {
    let plan = plan(TINY, settings);
    let (mut trainer, batches) = (Trainer::new(&plan, device).unwrap(), batches(&plan));
    trainer.poison([batches.batch_at(3).unwrap().ids[1]]);
    (0..6).for_each(|step| trainer.step(batches.batch_at(step).unwrap()).unwrap());
    let outcomes = trainer.outcomes(true).unwrap();
    (outcomes, trainer.sampling_params().unwrap().buffer().to_vec().unwrap())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_bad_step_is_skipped_as_on_the_cpu() {
    let (device, _turn) = gpu();
    let (found, weights) = skipped(&[("run.device", "cuda")], &device);
    let (expected, want) = skipped(&[("run.device", "cpu")], &Device::Cpu);
    let bad = |outcomes: &[StepOutcome]| outcomes.iter().map(StepOutcome::is_bad).collect::<Vec<_>>();
    assert_eq!(bad(&found), [false, false, false, true, false, false]);
    assert_eq!(bad(&expected), bad(&found));
    assert_eq!(found[5].state.skipped, 1);
    let off = weights.iter().zip(&want).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off < 2e-5, "weights are off by {off}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_step_that_ends_a_training_changes_nothing_and_is_named() {
    let (device, _turn) = gpu();
    for precision in ["f32", "bf16"] {
        let settings = [("run.device", "cuda"), ("train.max_bad_steps", "0"), ("train.precision", precision)];
        let plan = plan(TINY, &settings);
        let (mut trainer, batches) = (Trainer::new(&plan, &device).unwrap(), batches(&plan));
        trainer.poison([batches.batch_at(3).unwrap().ids[1]]);
        let ended = (0..8).try_for_each(|step| trainer.step(batches.batch_at(step).unwrap()));
        let Err(Error::Diverged { step: 4, what, .. }) = ended.and_then(|()| trainer.outcomes(true).map(drop)) else {
            panic!("{precision}: it did not diverge at step 4")
        };
        assert_eq!(what, "the loss is NaN");
        assert_eq!(trainer.steps_taken(), 3);
        let worst = trainer.diagnose().unwrap().unwrap().gradients.remove(0);
        assert!(worst.not_finite > 0, "{precision}: {worst:?}");
    }
}
