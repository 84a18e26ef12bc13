//! Recorded losses: they show a change of the numbers anywhere between a pixel and a weight.
//!
//! `DDPM_RECORD_GOLDEN=1 cargo test -p ddpm-tests --test golden` records them anew; that belongs to a change that is meant
//! to change numbers, and to no other.
#![allow(clippy::unwrap_used)]

use std::fs;

use ddpm_tests::{Place, fresh_run, repository};
use serde_json::Value;

/// Other processors and thread counts add in another order and round products once or twice: 1e-7 of a sum, which 50 steps of
/// training turned into at most 5e-7 of the loss (baseline, AVX2 and AVX-512; 1, 2 and 7 threads). Small mistakes change it
/// much more: a learning rate 1 % off 2e-2, clipping 1 % off 2e-3, a forgotten weight decay of 0.01 still 9e-4.
const TOLERANCE: f64 = 1e-4;

fn grey() -> Place {
    fresh_run(&["train.steps=50", "log.every=1"])
}

fn emoji() -> Place {
    let run = fresh_run(&[
        "train.steps=50",
        "log.every=1",
        "data.channels=3",
        "data.flip=true",
        "data.crop=random",
        "model.num_class_embeds=11",
        "model.resnet_time_scale_shift=scale_shift",
        "model.dropout=0.1",
        "diffusion.beta_schedule=squaredcos_cap_v2",
        "loss.label_dropout=0.2",
        "train.lr_schedule=cosine",
        "train.micro_batch=3",
    ]);
    let source = repository().join("assets/emoji32.parquet").canonicalize().unwrap();
    run.with_setting(&format!("data.source={}", source.display()))
}

#[test]
fn the_losses_of_a_grey_unconditional_model_are_those_recorded() {
    check("grey", &grey(), may_record());
}

#[test]
fn the_losses_of_a_coloured_class_conditional_model_are_those_recorded() {
    check("emoji", &emoji(), may_record());
}

#[test]
fn older_processors_give_the_losses_recorded() {
    for level in ["baseline", "avx2"] {
        check("grey", &grey().with_environment("DDPM_SIMD", level), false);
        check("emoji", &emoji().with_environment("DDPM_SIMD", level), false);
    }
}

fn may_record() -> bool {
    std::env::var_os("DDPM_RECORD_GOLDEN").is_some()
}

#[track_caller]
fn check(name: &str, run: &Place, record: bool) {
    run.train().succeeds();
    let losses: Vec<f64> = run.metrics().iter().map(|line| loss(line)).collect();
    assert_eq!(losses.len(), 50);
    let path = repository().join(format!("tests/golden/loss-{name}.txt"));
    if record {
        let lines: String = losses.iter().map(|loss| format!("{loss:.9}\n")).collect();
        fs::write(&path, format!("# Loss of each step; see tests/tests/golden.rs.\n{lines}")).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let recorded: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(recorded.len(), losses.len(), "{}", path.display());
    for (step, (loss, recorded)) in losses.iter().zip(&recorded).enumerate() {
        let error = (loss / recorded - 1.0).abs();
        assert!(error <= TOLERANCE, "{name}, step {}: {loss}, recorded {recorded}: {error:e} off", step + 1);
    }
    assert!(losses[49] < 0.6 * losses[0], "nothing was learned: {losses:?}");
}

fn loss(line: &str) -> f64 {
    serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()
}
