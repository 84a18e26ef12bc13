//! What `ddpm bench` measures on a GPU: every time is present; its value is not checked.

use ddpm_train::Error;
use ddpm_train::config::TrainPlan;
use ddpm_train::measuring::operations::{Progress, measure_operations};
use ddpm_train::measuring::step::measure_step;
use ddpm_train::measuring::throughput::measure_sample;

use crate::emulator::Emulator;
use crate::{TINY, gpu, plan};

fn tiny(precision: &str) -> TrainPlan {
    let settings = [
        ("run.device", "cuda"),
        ("train.batch_size", "2"),
        ("train.precision", precision),
        ("sample.num", "2"),
        ("sample.steps", "2"),
    ];
    plan(TINY, &settings)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_steps_are_measured_in_blocks_and_by_phases() {
    let (_, _turn) = gpu();
    let step = measure_step(&tiny("bf16"), 4).unwrap();
    assert_eq!((step.precision.as_str(), step.batch_size), ("bf16", 2));
    let phases = step.phases_ms;
    let times = [step.median_ms, step.min_ms, step.max_ms, phases.forward, phases.backward, phases.optimizer];
    assert!(times.iter().all(|&time| time > 0.0), "{step:?}");
    assert!(step.peak_bytes.unwrap() > 12 * step.parameters as u64, "{step:?}");
    let single = step.around_picture_ms.unwrap();
    assert!(single.before > 0.0 && single.after > 0.0, "{single:?}");
}

/// Needs the emulator, which counts a profiler's events.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_profiler_sees_one_step_and_nothing_that_is_done_once() {
    let (_, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    emulator.reset();
    // SAFETY: tests that use the GPU take turns, and nothing else here reads the environment meanwhile.
    unsafe { std::env::set_var("DDPM_GPU_PROFILE", "1") };
    let measured = measure_step(&tiny("bf16"), 1);
    // SAFETY: as before.
    unsafe { std::env::remove_var("DDPM_GPU_PROFILE") };
    measured.unwrap();
    assert_eq!(emulator.get("api profile"), 1);
    assert_eq!(emulator.get("profiled api HtoD"), 1, "uploads, of which a step has one");
    assert!(emulator.get("profiled kernel") > 50);
    for name in ["profiled kernel busy", "profiled api cudnn", "profiled api cublasLt heuristics", "profiled api graph"]
    {
        assert_eq!(emulator.get(name), 0, "{name}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_sampling_is_measured() {
    let (_, _turn) = gpu();
    let sample = measure_sample(&tiny("f32"), 1).unwrap();
    assert_eq!((sample.batch_size, sample.steps, sample.precision.as_str()), (2, 2, "f32"));
    assert!(sample.median_ms > 0.0 && sample.peak_bytes.unwrap() > 0);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_operations_are_measured_both_ways() {
    let (_, _turn) = gpu();
    let mut timed = 0;
    let report = &mut |progress: Progress<'_>| {
        timed += usize::from(matches!(progress, Progress::Timed(_)));
        Ok(())
    };
    let operations = measure_operations::<Error>(&tiny("bf16"), 1, report).unwrap();
    assert_eq!(timed, operations.ops.len());
    assert!(operations.ops.iter().all(|op| op.ms > 0.0 && op.bytes > 0), "{operations:?}");
    for name in ["conv2d forward", "conv2d backward", "attention backward", "group_norm forward"] {
        assert!(operations.ops.iter().any(|op| op.name == name), "{name}");
    }
}
