//! Training and sampling on a GPU against the same on the CPU; and a step's calls of the driver.
//!
//! They need a GPU, or the emulator: `cargo test -p ddpm-train --features cuda --test gpu -- --ignored gpu`. Tests that count
//! the driver's calls need the emulator, and are skipped without it.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
mod counts;
mod divergence;
mod emulator;
mod engines;
mod faults;
mod hearing;
mod memory;
mod nll;
mod resume;
mod sampling;
mod switches;
mod training;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Device;
use ddpm_data::{Batch, Batcher, LoaderConfig};
use ddpm_train::config::{Resolved, Setting, TrainPlan};
use ddpm_train::training::outcome::StepOutcome;
use ddpm_train::training::trainer::Trainer;

/// A small network with everything a UNet has: attention, skip connections, resampling.
const TINY: &str = r#"
[data]
source = "builtin:fashion10k"
image_size = 8
channels = 1
[model]
block_out_channels = [16, 32]
layers_per_block = 1
norm_num_groups = 8
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
dropout = 0.1
[train]
batch_size = 4
lr = 1e-3
warmup_steps = 2
ema_decays = [0.9, 0.99]
"#;

/// A GPU for one test at a time, because the driver's calls are counted and its memory is shared.
pub(crate) fn gpu() -> (Device, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (ddpm_kernels::cuda::open(0).unwrap(), turn)
}

/// The plan of `text`, with these values of keys beside.
pub(crate) fn plan(text: &str, settings: &[(&str, &str)]) -> TrainPlan {
    let setting = |(key, value): &(&str, &str)| Setting { key: (*key).to_owned(), value: (*value).to_owned() };
    let settings: Vec<_> = settings.iter().map(setting).collect();
    let resolved = Resolved::from_layers(Path::new("tiny.toml"), text, [], &settings).unwrap();
    TrainPlan::new(&resolved).unwrap()
}

/// Batches of a plan's data.
pub(crate) fn batches(plan: &TrainPlan) -> Batcher {
    let config = plan.config();
    let source = ddpm_data::open(&config.data.source, &plan.open_options()).unwrap();
    let loader = LoaderConfig {
        seed: config.run.seed,
        share: plan.share(),
        origin: plan.origin(),
        shuffle: ddpm_data::Shuffle::Whole,
        image_size: config.data.image_size,
        limits: config.data.limits(),
        channels: config.data.channels,
        crop: config.data.crop,
        fitting: config.data.fitting(),
        flip: config.data.flip,
        num_classes: plan.classes(),
        on_corrupt: config.data.on_corrupt,
        max_corrupt: config.data.max_corrupt,
        workers: 1,
        prefetch: 1,
    };
    Batcher::new(source, loader).unwrap()
}

/// The outcomes of so many steps, and the trainer after them.
pub(crate) fn train(plan: &TrainPlan, device: &Device, steps: u64) -> (Vec<StepOutcome>, Trainer) {
    let mut trainer = Trainer::new(plan, device).unwrap();
    let batches = batches(plan);
    for step in 0..steps {
        let batch: Batch = batches.batch_at(step).unwrap();
        trainer.step(batch).unwrap();
    }
    let outcomes = trainer.outcomes(true).unwrap();
    (outcomes, trainer)
}
