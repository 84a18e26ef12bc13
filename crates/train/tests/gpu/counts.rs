//! A step's calls of the driver, counted by the emulator. A training step is one upload, one replay of a graph, two small
//! copies back, and no wait; a step of a sampler is one upload and one replay.

use std::cell::Cell;

use candle_core::DType;
use ddpm_kernels::cuda::Gpu;
use ddpm_model::diffusion::SamplerKind;
use ddpm_train::config::presets;
use ddpm_train::drawing::{Glimpse, Onlooker};
use ddpm_train::training::trainer::Trainer;

use crate::emulator::Emulator;
use crate::sampling::{Sketch, request, sampler};
use crate::{TINY, batches, gpu, plan};

/// Launches that a step of the CIFAR-10 model may have; a launch costs the GPU about two microseconds.
const MOST_LAUNCHES: i64 = 410;

/// Where the emulator skips the arithmetic (GPU_EMULATOR_SKIP), of Ho's CIFAR-10 model; else of one that is computed quickly.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_step_is_one_upload_and_one_replay() {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    let settings = [
        ("run.device", "cuda"),
        ("data.source", "builtin:fashion10k"),
        ("train.batch_size", "2"),
        ("train.precision", "bf16"),
    ];
    let text = match std::env::var_os("GPU_EMULATOR_SKIP") {
        Some(_) => presets::find("cifar10-ddpm").unwrap().text,
        None => TINY,
    };
    let plan = plan(text, &settings);
    let mut trainer = Trainer::new(&plan, &device).unwrap();
    let batches = batches(&plan);
    trainer.step(batches.batch_at(0).unwrap()).unwrap();
    sum_on_the_way(&Gpu::of(&device).unwrap());
    trainer.step(batches.batch_at(1).unwrap()).unwrap();
    let batch = batches.batch_at(2).unwrap();
    emulator.reset();
    trainer.step(batch).unwrap();
    let count = |name| emulator.get(name);
    let launches = count("graph kernel");
    println!("{launches} launches in a step");
    assert!(launches > 50, "{launches} launches: the step was not replayed");
    assert!(launches <= MOST_LAUNCHES, "{launches} launches");
    assert_eq!(count("api graph launch"), 1);
    assert_eq!(count("api HtoD"), 1, "uploads");
    assert_eq!(count("api DtoD"), 1, "moves of what was uploaded");
    assert_eq!(count("api DtoH"), 2, "downloads");
    // Without an event after each copy the host would read and overwrite memory that is still being copied. Without two waits
    // one stream would read or overwrite what the other has not written or read yet. The other three are cudarc's, one for each
    // host memory, for an event that is never recorded.
    assert_eq!(count("api cuEventRecord"), 3, "events recorded");
    assert_eq!(count("api cuStreamWaitEvent"), 2 + 3, "streams that wait for each other");
    for name in ["kernel", "api cuMemAlloc", "api memset", "api sync", "api cudnn", "api cublasLt heuristics"] {
        assert_eq!(count(name), 0, "{name}");
    }
}

/// Fixes the way of summing biases' gradients, with their weights', whatever was faster: the emulator's timing is not a GPU's.
fn sum_on_the_way(gpu: &Gpu) {
    let choices = gpu.choices().into_iter().filter(|(computation, _)| computation.starts_with("BiasGradient"));
    gpu.choose(choices.map(|(computation, (_, of))| (computation, (of - 1, of))).collect());
}

/// A picture's recording must not take the memory of the step's.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_picture_leaves_the_recorded_step_its_memory() {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    let plan = plan(TINY, &[("run.device", "cuda")]);
    let mut trainer = Trainer::new(&plan, &device).unwrap();
    let batches = batches(&plan);
    let replay = |trainer: &mut Trainer, step| {
        emulator.reset();
        trainer.step(batches.batch_at(step).unwrap()).unwrap();
        trainer.outcomes(true).unwrap();
        emulator.get("api graph memory")
    };
    replay(&mut trainer, 0);
    assert_eq!((replay(&mut trainer, 1), replay(&mut trainer, 2)), (1, 0), "what is recorded finds memory once");
    let (sketch, sampler) = (Sketch::new(&[]), sampler((SamplerKind::Ddpm, 0.0), 4));
    let params = sketch.params(&device, DType::F32);
    sketch.painter(&params).draw_unless(&request(&sampler), &|| false).unwrap().unwrap();
    assert_eq!(replay(&mut trainer, 3), 0, "the step had to find its memory again");
    assert_eq!(emulator.get("api graph launch"), 1);
}

/// Steps that are counted, after as many that are not.
const COUNTED: i64 = 3;

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_step_of_a_sampler_is_one_upload_and_one_replay() {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    for (dtype, launch) in
        [(DType::F32, "graph kernel sampler_step_f32"), (DType::BF16, "graph kernel sampler_step_bf16")]
    {
        let (sketch, sampler) = (Sketch::new(&[]), sampler((SamplerKind::Ddpm, 0.0), 2 * COUNTED as usize));
        let params = sketch.params(&device, dtype);
        let (painter, request) = (sketch.painter(&params), request(&sampler));
        let (step, batches) = (Cell::new(0), Cell::new(0));
        let mut glimpse = |_: Glimpse<'_>| {
            step.set(step.get() + 1);
            if step.get() == COUNTED {
                emulator.reset();
            } else if step.get() == 2 * COUNTED {
                assert_eq!(emulator.get(launch), COUNTED);
                assert_eq!(emulator.get("api graph launch"), COUNTED);
                assert_eq!(emulator.get("api HtoD"), COUNTED, "uploads");
                assert_eq!(emulator.get("api DtoD"), COUNTED, "moves of what was uploaded");
                for name in
                    ["kernel", "api DtoH", "api cuMemAlloc", "api memset", "api sync", "api capture", "api cudnn"]
                {
                    assert_eq!(emulator.get(name), 0, "{name}");
                }
                step.set(0);
                batches.set(batches.get() + 1);
            }
            Ok(())
        };
        let onlooker = &mut Onlooker { progress: &mut |_| (), proceed: &|| true, glimpse: &mut glimpse };
        painter.draw(&request, onlooker).unwrap();
        assert_eq!(batches.get(), 3);
    }
}
