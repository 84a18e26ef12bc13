//! Recorded losses: what a change to the numbers anywhere between a pixel and a weight shows in.
//!
//! `DDPM_RECORD_GOLDEN=1 cargo test -p ddpm-tests --test golden` records them anew; that belongs to a change that is meant
//! to change numbers, and to no other.
#![allow(clippy::unwrap_used)]

use std::fs;

use ddpm_tests::{Place, ddpm_binary, fresh_run, repository};
use serde_json::Value;

/// Processors add in another order and round products once or twice, which is 1e-7 of a sum; 50 steps of training
/// make some 1e-5 of it (the processors at hand differ by 0 to 2e-6). A wrong formula is off by far more than this:
/// without the bias correction of AdamW the loss of step 2 differs by 20 %.
const TOLERANCE: f64 = 1e-3;

#[test]
fn the_losses_of_a_grey_unconditional_model_are_those_recorded() {
    check("grey", &fresh_run(&["train.steps=50", "log.every=1"]));
}

#[test]
fn the_losses_of_a_coloured_class_conditional_model_are_those_recorded() {
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
    check("emoji", &run.with_setting(&format!("data.source={}", source.display())));
}

#[test]
fn every_level_of_vector_instructions_gives_the_losses_recorded() {
    assert!(ddpm_binary().exists());
    for level in ["baseline", "avx2"] {
        let run = fresh_run(&["train.steps=50", "log.every=1"]).with_environment("DDPM_SIMD", level);
        check("grey", &run);
    }
}

#[track_caller]
fn check(name: &str, run: &Place) {
    run.train().succeeds();
    let losses: Vec<f64> = run.metrics().iter().map(|line| loss(line)).collect();
    assert_eq!(losses.len(), 50);
    let path = repository().join(format!("tests/golden/loss-{name}.txt"));
    if std::env::var_os("DDPM_RECORD_GOLDEN").is_some() {
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
