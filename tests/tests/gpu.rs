//! What a user sees when a GPU's memory is full. The program must be built for GPUs and find one, or the emulator:
//! `DDPM_TEST_BINARY=target/debug/ddpm CUDA_LIB_DIRS=... cargo test -p ddpm-tests --test gpu -- --ignored`
//! (`scripts/check-cuda` does that). Memory is made scarce by the emulator, so what is about that passes over on a real one.
#![allow(clippy::unwrap_used)]

use ddpm_tests::{Ddpm, Place, assert_fields, fresh_run};

/// Bytes of the emulated GPU: scratch space is 32 MiB, the tiny network with all that belongs to it less than one.
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
    assert_fields(&check.json()["gpu"], "total_bytes, parameters_bytes, gradients_bytes, activations_bytes");
}
