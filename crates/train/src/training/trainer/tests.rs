#![allow(clippy::unwrap_used)]

use std::path::Path;

use ddpm_data::Share;

use super::*;
use crate::config::{Resolved, Setting};
use crate::error::Kind;

const SIZE: usize = 8;

/// A small network that uses every random draw: t, noise, dropout, dropped labels.
pub(in crate::training) fn plan(batch_size: usize) -> TrainPlan {
    plan_with(batch_size, &[])
}

pub(super) fn plan_with(batch_size: usize, settings: &[(&str, &str)]) -> TrainPlan {
    let text = r#"
[data]
source = "builtin:fashion10k"
image_size = 8
channels = 1
[model]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
dropout = 0.3
num_class_embeds = 11
[loss]
label_dropout = 0.3
"#;
    let batch_size = batch_size.to_string();
    let settings: Vec<_> = [("run.device", "cpu"), ("train.batch_size", batch_size.as_str())]
        .iter()
        .chain(settings)
        .map(|&(key, value)| Setting { key: key.to_owned(), value: value.to_owned() })
        .collect();
    TrainPlan::new(&Resolved::from_layers(Path::new("tiny.toml"), text, [], &settings).unwrap()).unwrap()
}

/// The images of a share of a batch.
pub(super) fn batch(share: Share) -> Batch {
    let image = |place: usize| (0..SIZE * SIZE).map(move |pixel| (place * 37 + pixel * 11) as u8);
    Batch {
        images: share.places().flat_map(image).collect(),
        shape: [share.count(), SIZE, SIZE, 1],
        labels: Some(share.places().map(|place| place as u32 % 10).collect()),
        ids: share.places().map(|place| place as u64).collect(),
    }
}

/// The outcome of the first step of a rank with this share that meets no other, and its gradient. Losses of others are then missing.
fn first_step(share: Share) -> (StepOutcome, Vec<f32>) {
    let mut trainer = Trainer::new(&plan(share.of()), &Device::Cpu).unwrap();
    trainer.learner.share = share;
    trainer.step(batch(share)).unwrap();
    let outcome = trainer.outcomes(true).unwrap().remove(0);
    (outcome, trainer.learner.gradients.buffer().to_vec().unwrap())
}

#[test]
fn ranks_with_a_share_each_learn_together_what_one_learns_alone() {
    let (whole, expected) = first_step(Share::whole(5));
    let shares = [0, 1].map(|rank| Share::of_rank(rank, 2, 5).unwrap());
    let ranks = shares.map(first_step);
    assert!(ranks.iter().all(|(outcome, _)| outcome.timesteps == whole.timesteps));
    let own = |(share, (outcome, _)): (&Share, &(StepOutcome, _))| outcome.losses[share.places()].to_vec();
    assert_eq!(shares.iter().zip(&ranks).flat_map(own).collect::<Vec<f64>>(), whole.losses);
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (at, expected) in expected.iter().enumerate() {
        let sum = ranks[0].1[at] + ranks[1].1[at];
        assert!((sum - expected).abs() < 1e-5 * largest, "number {at}: {sum}, alone {expected}");
    }
}

#[test]
fn a_step_that_diverges_names_the_loss_first_and_counts_for_nothing() {
    let share = Share::whole(2);
    let mut trainer = Trainer::new(&plan_with(share.of(), &[("train.max_bad_steps", "0")]), &Device::Cpu).unwrap();
    trainer.step(batch(share)).unwrap();
    let before = trainer.learner.optimizer.moments()[0].to_vec().unwrap();
    trainer.learner.params.buffer().with_mut(|weights| weights.fill(f32::NAN)).unwrap();
    let error = trainer.step(batch(share)).unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    let Error::Diverged { step: 2, what, .. } = error else { panic!("{error}") };
    assert_eq!(what, "the loss is NaN");
    assert_eq!(trainer.steps_taken(), 1);
    assert_eq!(trainer.learner.optimizer.moments()[0].to_vec().unwrap(), before);
}

#[test]
fn a_bad_step_is_skipped_and_the_next_is_as_if_it_had_not_been() {
    let share = Share::whole(2);
    let mut trainer = Trainer::new(&plan(share.of()), &Device::Cpu).unwrap();
    trainer.step(batch(share)).unwrap();
    let weights = |trainer: &Trainer| trainer.learner.params.buffer().to_vec().unwrap();
    let before = (weights(&trainer), trainer.sampling_params().unwrap().buffer().to_vec().unwrap());
    trainer.poison([1]);
    trainer.step(batch(share)).unwrap();
    assert_eq!((weights(&trainer), trainer.sampling_params().unwrap().buffer().to_vec().unwrap()), before);
    trainer.poisoned.clear();
    trainer.step(batch(share)).unwrap();
    assert_ne!(weights(&trainer), before.0);
    let outcomes = trainer.outcomes(true).unwrap();
    assert_eq!(outcomes.iter().map(StepOutcome::is_bad).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(outcomes[1].complaint(), "the loss is NaN");
    assert_eq!((outcomes[2].step, outcomes[2].state.skipped), (3, 1));
}

#[test]
fn the_step_that_ends_a_training_is_looked_at_again() {
    let share = Share::whole(2);
    let mut trainer = Trainer::new(&plan_with(share.of(), &[("train.max_bad_steps", "0")]), &Device::Cpu).unwrap();
    assert!(trainer.diagnose().unwrap().is_none());
    trainer.step(batch(share)).unwrap();
    let before = trainer.learner.params.buffer().to_vec().unwrap();
    trainer.poison([1]);
    trainer.step(batch(share)).unwrap_err();
    let found = trainer.diagnose().unwrap().unwrap();
    assert_eq!((found.ids, found.images), (vec![0, 1], batch(share).images));
    assert_eq!(found.shape, [2, SIZE, SIZE, 1]);
    assert!(found.outcome.losses[0].is_finite() && found.outcome.losses[1].is_nan());
    let worst = &found.gradients[0];
    assert!(worst.not_finite > 0 && found.gradients.iter().any(|gradient| gradient.name == "conv_in.weight"));
    assert_eq!(trainer.learner.params.buffer().to_vec().unwrap(), before);
}
