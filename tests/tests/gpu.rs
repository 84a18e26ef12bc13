//! What a user sees when a GPU's memory is full. The program must be built for GPUs and find one, or the emulator:
//! `DDPM_TEST_BINARY=target/debug/ddpm CUDA_LIB_DIRS=... cargo test -p ddpm-tests --test gpu -- --ignored`
//! (`scripts/check-cuda` does that). The emulator makes memory scarce, so tests of that are skipped on a real GPU.
#![allow(clippy::unwrap_used)]

use ddpm_tests::{Ddpm, Place, assert_fields, fresh_run};

/// Memory of the emulated GPU in bytes: scratch space is 32 MiB, the tiny network with all its state less than one.
const MEMORY: &str = "GPU_EMULATOR_MEMORY";
const TOO_LITTLE: &str = "36000000";

fn on_gpu(place: &Place, command: &str) -> Ddpm {
    let libraries = std::env::var("CUDA_LIB_DIRS").unwrap_or_default();
    place.ddpm(&format!("{command} --device cuda")).env("CUDA_LIB_DIRS", &libraries)
}

#[test]
#[ignore = "needs a build for GPUs, and the emulator"]
fn a_gpu_without_room_for_one_image_is_a_device_problem_with_an_estimate_and_the_run_can_go_on() {
    let run = fresh_run(&[]);
    let train = on_gpu(&run, "train tiny.toml --set train.steps=2");
    let scarce = train.clone().env(MEMORY, TOO_LITTLE);
    let failed = scarce.fails_with(4).stderr_has("a step with 1 image at once does not fit into the GPU's memory");
    failed.stderr_has("it takes about").stderr_has("help: ").stderr_has("block_out_channels").stderr_lacks("panicked");
    assert!(run.checkpoints().is_empty());
    train.succeeds().stdout_has("done: step 2");
}

#[test]
#[ignore = "needs a build for GPUs, and the emulator"]
fn a_gpu_that_cannot_hold_the_parameters_is_a_device_problem() {
    let run = fresh_run(&[]);
    let failed = on_gpu(&run, "train tiny.toml").env(MEMORY, "1000000").fails_with(4);
    failed.stderr_has("GPU").stderr_lacks("panicked");
}

#[test]
#[ignore = "needs a build for GPUs, and the emulator"]
fn the_check_and_the_bench_tell_a_gpus_peak_beside_the_estimate() {
    let place = fresh_run(&[]);
    let check = on_gpu(&place, "config check tiny.toml");
    check.succeeds().stdout_has(", estimated ").stdout_has("\non a GPU ");
    for document in [check.json(), on_gpu(&place, "bench step tiny.toml --repeat 3").json()] {
        let bytes = |name: &str| document[name].as_f64().unwrap();
        let peak = if document["peak_bytes"].is_null() { bytes("memory_bytes") } else { bytes("peak_bytes") };
        let ratio = peak / bytes("estimated_bytes");
        assert!((0.9..1.1).contains(&ratio), "{document}");
    }
    let bench = on_gpu(&place, "bench step tiny.toml --repeat 1").json();
    assert_fields(&bench["around_picture_ms"], "before, after");
    assert_fields(&check.json()["gpu"], "total_bytes, parameters_bytes, gradients_bytes, activations_bytes");
}

#[test]
#[ignore = "needs a build for GPUs, and the emulator"]
fn what_is_turned_off_on_a_gpu_is_told_and_an_unknown_word_is_a_usage_problem() {
    let place = fresh_run(&[]);
    let with = |command: &str, words: &str| on_gpu(&place, command).env("DDPM_GPU_OFF", words);
    for command in ["train tiny.toml --max-steps 1", "bench sample tiny.toml --repeat 1 --set sample.steps=2"] {
        let failed = with(command, "flash,grpah").fails_with(2);
        failed.stderr_has("DDPM_GPU_OFF: found `grpah`, expected any of graph, flash, fuse, bgradb");
        let warning = "warning: DDPM_GPU_OFF=graph,fuse: the GPU computes without these";
        let ended = with(command, "fuse,graph").succeeds().stderr_has(warning);
        assert_eq!(ended.stderr.matches("DDPM_GPU_OFF").count(), 1, "{}", ended.stderr);
        on_gpu(&place, command).succeeds().stderr_lacks("DDPM_GPU_OFF");
    }
    let doctor = |words: &str| {
        let libraries = std::env::var("CUDA_LIB_DIRS").unwrap_or_default();
        place.ddpm("doctor").env("CUDA_LIB_DIRS", &libraries).env("DDPM_GPU_OFF", words).succeeds()
    };
    doctor("flash").stdout_has("DDPM_GPU_OFF").stdout_has("flash: off");
    doctor("flsh").stdout_has("found `flsh`, expected any of");
    assert!(!doctor("").stdout.contains("DDPM_GPU_OFF"));
}

#[test]
#[ignore = "needs a build for GPUs, and the emulator"]
fn a_cudnn_that_fails_is_told_once_and_ends_no_run() {
    let run = fresh_run(&[]);
    let train = on_gpu(&run, "train tiny.toml --max-steps 2").env("GPU_EMULATOR_CUDNN_FAULT", "heuristics:4000");
    let ended = train.succeeds().stderr_has("warning: cuDNN failed at a convolution").stderr_has("4000");
    assert_eq!(ended.stderr.matches("cuDNN failed").count(), 1, "{}", ended.stderr);
}
