//! Bits per dimension on a GPU against the same on the CPU, and a timestep's calls of the driver.

use std::path::PathBuf;

use candle_core::{DType, Device};
use ddpm_model::diffusion::{DiffusionProcess, Spacing};
use ddpm_model::unet::UNet;
use ddpm_train::eval::images::{EvalImages, Selection};
use ddpm_train::eval::nll::{Nll, NllRequest, evaluate};
use ddpm_train::exchange::Model;
use ddpm_train::{Error, Kind};

use crate::emulator::Emulator;
use crate::sampling::Sketch;
use crate::{TINY, gpu, plan};

const CLASSES: &[(&str, &str)] = &[("data.num_classes", "10"), ("model.num_class_embeds", "10")];
const NUMBERED: &[(&str, &str)] =
    &[("data.num_classes", "10"), ("model.num_class_embeds", "10"), ("model.class_embed_type", "timestep")];
const GUIDED: &[(&str, &str)] =
    &[("data.num_classes", "10"), ("model.num_class_embeds", "11"), ("loss.label_dropout", "0.3")];
const LEARNED: &[(&str, &str)] = &[("diffusion.variance_type", "learned_range"), ("loss.kind", "hybrid")];
/// The last batch has one image fewer than the others.
const IMAGES: usize = 3;
const BATCH: usize = 2;
const STEPS: usize = 5;

fn model(settings: &[(&str, &str)], device: &Device, dtype: DType) -> Model {
    let config = plan(TINY, settings).config().clone();
    Model {
        params: Sketch::new(settings).params(device, dtype),
        unet: UNet::new(&config.model).unwrap(),
        process: DiffusionProcess::new(&config.diffusion).unwrap(),
        config,
        origin: PathBuf::new(),
        facts: None,
    }
}

fn images(model: &Model, num: usize) -> EvalImages {
    let selection = Selection { source: "builtin:fashion10k", split: None, num: Some(num), seed: 3 };
    EvalImages::open(&selection, &model.config).unwrap()
}

/// Evaluates at some of the timesteps, so many images at once; `progress` gets the number of passes.
fn try_judge(
    model: &Model,
    images: &EvalImages,
    batch_size: usize,
    mut progress: impl FnMut(usize),
) -> Result<Nll, Error> {
    let kept = Spacing::default().kept_timesteps(Some(STEPS), model.process.schedule().len()).unwrap();
    let request = NllRequest { kept: &kept, batch_size, seed: 8 };
    evaluate(model, images, &request, &mut |passes, _| progress(passes))
}

/// The result for the first `num` images, and how often progress was reported.
fn judge(model: &Model, num: usize, batch_size: usize) -> (Nll, usize) {
    let mut last = 0;
    let nll = try_judge(model, &images(model, num), batch_size, |passes| last = passes).unwrap();
    (nll, last)
}

#[track_caller]
fn assert_close(what: &str, found: &Nll, want: &Nll, tolerance: f64) {
    let all = |nll: &Nll| [&nll.vb[..], &nll.mse, &nll.xstart_mse, &nll.image_bits_per_dim, &[nll.prior]].concat();
    let (found, want) = (all(found), all(want));
    assert_eq!(found.len(), want.len(), "{what}");
    for (i, (f, w)) in found.iter().zip(&want).enumerate() {
        assert!((f - w).abs() <= tolerance * w.abs(), "{what}: number {i} is {f}, on the CPU {w}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_bits_per_dim_are_the_cpus() {
    let (device, _turn) = gpu();
    for settings in [LEARNED, CLASSES, NUMBERED, GUIDED] {
        let (want, passes) = judge(&model(settings, &Device::Cpu, DType::F32), IMAGES, BATCH);
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::BF16, 2e-1)] {
            let (found, passes_there) = judge(&model(settings, &device, dtype), IMAGES, BATCH);
            assert_close(&format!("{settings:?}, {dtype:?}"), &found, &want, tolerance);
            assert_eq!((passes_there, passes), (2 * STEPS, 2 * STEPS));
        }
    }
}

/// Not equal to the bit: for another number of images another algorithm may be the fastest.
#[test]
#[ignore = "needs a GPU"]
fn gpu_an_images_bits_do_not_depend_on_the_others() {
    let (device, _turn) = gpu();
    let model = model(CLASSES, &device, DType::F32);
    let (all, _) = judge(&model, IMAGES, IMAGES + 3);
    let (parts, _) = judge(&model, IMAGES, BATCH);
    let (single, _) = judge(&model, IMAGES, 1);
    assert_close("in twos", &parts, &all, 1e-4);
    assert_close("one by one", &single, &all, 1e-4);
}

/// Needs the emulator, which counts.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_timestep_is_one_upload_and_one_replay() {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    let model = model(&[], &device, DType::BF16);
    // The first batch finds algorithms and records; the second replays from its first step on, after its images.
    let count = |name| emulator.get(name);
    let mut counted = Vec::new();
    try_judge(&model, &images(&model, 2 * BATCH), BATCH, |passes| match passes {
        passes if passes == STEPS => emulator.reset(),
        passes if passes == 2 * STEPS => {
            let names = ["api graph launch", "api DtoH", "graph kernel diffusion_bound_bf16", "api HtoD"];
            counted.extend(names.map(count));
            let none = ["kernel", "api cuMemAlloc", "api memset", "api cudnn", "api cublasLt heuristics"];
            assert_eq!(none.map(count), [0; 5]);
        }
        _ => {}
    })
    .unwrap();
    let steps = STEPS as i64;
    assert_eq!(counted, [steps, steps, steps, steps + 1]);
}

/// Needs the emulator, whose memory has the size that one says.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_memory_too_small_for_an_evaluation_is_reported() {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    let model = model(&[], &device, DType::F32);
    let images = images(&model, IMAGES);
    for room in [0, 10_000, 40_000] {
        emulator.limit_memory(Some(emulator.live_bytes() + room));
        let judged = try_judge(&model, &images, BATCH, |_| ());
        emulator.limit_memory(None);
        let error = judged.expect_err("there was no room");
        assert_eq!(error.kind(), Kind::Memory, "{error}");
        assert!(error.to_string().contains("memory is full"), "{error}");
    }
    // In the middle of a batch, with results on their way.
    let full = try_judge(&model, &images, BATCH, |_| emulator.limit_memory(Some(emulator.live_bytes())));
    emulator.limit_memory(None);
    assert_eq!(full.expect_err("there was no room").kind(), Kind::Memory);
    judge(&model, IMAGES, BATCH);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_labels_that_do_not_fit_the_model_are_refused() {
    let (device, _turn) = gpu();
    let conditional = model(CLASSES, &device, DType::F32);
    let unlabelled = images(&conditional, IMAGES).without_labels();
    let error = try_judge(&conditional, &unlabelled, BATCH, |_| ()).expect_err("there are no labels");
    assert_eq!(error.kind(), Kind::Setting, "{error}");
    let unconditional = model(&[], &device, DType::F32);
    let labelled = images(&conditional, IMAGES);
    let error = try_judge(&unconditional, &labelled, BATCH, |_| ()).expect_err("there are labels");
    assert_eq!(error.kind(), Kind::Setting, "{error}");
}
