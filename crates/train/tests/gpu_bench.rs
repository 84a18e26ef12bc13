//! What `ddpm bench` measures on a GPU: that every time is there, not how long it is.
//!
//! They need a GPU, or the emulator: `cargo test -p ddpm-train --features cuda --test gpu_bench -- --ignored gpu`.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use ddpm_train::config::{Resolved, Setting, TrainPlan};
use ddpm_train::training::measure::measure_step;
use ddpm_train::training::operations::measure_operations;
use ddpm_train::training::throughput::measure_sample;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/quickstart.toml");

/// The quick start with a network, images and batches so small that an emulator is done soon.
fn plan(precision: &str) -> TrainPlan {
    let settings = [
        ("run.device", "cuda:0"),
        ("data.image_size", "8"),
        ("model.block_out_channels", "[16, 32]"),
        ("model.layers_per_block", "1"),
        ("model.norm_num_groups", "8"),
        ("model.down_block_types", r#"["DownBlock2D", "AttnDownBlock2D"]"#),
        ("model.up_block_types", r#"["AttnUpBlock2D", "UpBlock2D"]"#),
        ("train.batch_size", "2"),
        ("train.precision", precision),
        ("sample.num", "2"),
        ("sample.steps", "2"),
    ];
    let settings = settings.map(|(key, value)| Setting { key: key.to_owned(), value: value.to_owned() });
    TrainPlan::new(&Resolved::load(Path::new(CONFIG), &settings).unwrap()).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_steps_are_measured_in_blocks_and_by_phases() {
    let step = measure_step(&plan("bf16"), 4).unwrap();
    assert_eq!((step.precision.as_str(), step.batch_size), ("bf16", 2));
    let phases = step.phases_ms;
    let times = [step.median_ms, step.min_ms, step.max_ms, phases.forward, phases.backward, phases.optimizer];
    assert!(times.iter().all(|&time| time > 0.0), "{step:?}");
    assert!(step.peak_bytes.unwrap() > 12 * step.parameters as u64, "{step:?}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_sampling_is_measured() {
    let sample = measure_sample(&plan("f32"), 1).unwrap();
    assert_eq!((sample.batch_size, sample.steps, sample.precision.as_str()), (2, 2, "f32"));
    assert!(sample.median_ms > 0.0 && sample.peak_bytes.unwrap() > 0);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_operations_are_measured_both_ways() {
    let operations = measure_operations(&plan("bf16"), 1, &mut |_, _| ()).unwrap();
    assert!(operations.ops.iter().all(|op| op.ms > 0.0 && op.bytes > 0), "{operations:?}");
    for name in ["conv2d forward", "conv2d backward", "attention backward", "group_norm forward"] {
        assert!(operations.ops.iter().any(|op| op.name == name), "{name}");
    }
}
