#![allow(clippy::unwrap_used)]

use std::path::Path;

use ddpm_data::Share;

use super::*;
use crate::config::{Resolved, Setting};
use crate::error::Kind;

const SIZE: usize = 8;

/// A small network that uses every random draw: t, noise, dropout, dropped labels.
fn plan(batch_size: usize) -> TrainPlan {
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
    let settings = [("run.device", "cpu".to_owned()), ("train.batch_size", batch_size.to_string())]
        .map(|(key, value)| Setting { key: key.to_owned(), value });
    TrainPlan::new(&Resolved::from_layers(Path::new("tiny.toml"), text, [], &settings).unwrap()).unwrap()
}

/// The images of a share of a batch.
fn batch(share: Share) -> Batch {
    let image = |place: usize| (0..SIZE * SIZE).map(move |pixel| (place * 37 + pixel * 11) as u8);
    Batch {
        images: share.places().flat_map(image).collect(),
        shape: [share.count(), SIZE, SIZE, 1],
        labels: Some(share.places().map(|place| place as u32 % 10).collect()),
        ids: share.places().map(|place| place as u64).collect(),
    }
}

/// The outcome of the first step of a rank with this share, and its gradient.
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
    let ranks = [0, 1].map(|rank| first_step(Share::of_rank(rank, 2, 5).unwrap()));
    let together = |of: fn(&StepOutcome) -> Vec<f64>| ranks.iter().flat_map(|(outcome, _)| of(outcome)).collect();
    let timesteps: Vec<f64> = together(|outcome| outcome.timesteps.iter().map(|t| t.index() as f64).collect());
    assert_eq!(timesteps, whole.timesteps.iter().map(|t| t.index() as f64).collect::<Vec<_>>());
    let losses: Vec<f64> = together(|outcome| outcome.losses.clone());
    assert_eq!(losses, whole.losses);
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (at, expected) in expected.iter().enumerate() {
        let sum = ranks[0].1[at] + ranks[1].1[at];
        assert!((sum - expected).abs() < 1e-5 * largest, "number {at}: {sum}, alone {expected}");
    }
}

#[test]
fn a_step_that_diverges_names_the_loss_first_and_counts_for_nothing() {
    let share = Share::whole(2);
    let mut trainer = Trainer::new(&plan(share.of()), &Device::Cpu).unwrap();
    trainer.step(batch(share)).unwrap();
    let before = trainer.learner.optimizer.moments()[0].to_vec().unwrap();
    trainer.learner.params.buffer().with_mut(|weights| weights.fill(f32::NAN)).unwrap();
    let error = trainer.step(batch(share)).unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    let Error::Diverged { step: 2, what } = error else { panic!("{error}") };
    assert_eq!(what, "the loss is NaN");
    assert_eq!(trainer.steps_taken(), 1);
    assert_eq!(trainer.learner.optimizer.moments()[0].to_vec().unwrap(), before);
}
