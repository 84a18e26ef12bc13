//! What `DDPM_GPU_OFF` turns off: the plainer way is used, and computes the same.

use candle_core::DType;
use ddpm_kernels::cuda::Gpu;
use ddpm_kernels::cuda::switches::{Family, Off};
use ddpm_model::diffusion::SamplerKind;
use ddpm_train::drawing::Images;
use ddpm_train::training::outcome::StepOutcome;

use crate::emulator::Emulator;
use crate::sampling::{Sketch, request, sampler};
use crate::{TINY, gpu, plan, train};

/// The counter that must stay zero while a family is off, and the one that must not.
const FAMILIES: [(Family, &[&str], &str); 4] = [
    (Family::Graph, &["api capture", "api graph", "captured"], "kernel cudnn"),
    (
        Family::Flash,
        &[
            "kernel attention_flash",
            "graph kernel attention_flash",
            "kernel attention_rows",
            "graph kernel attention_rows",
        ],
        "kernel attention_softmax",
    ),
    (
        Family::Fuse,
        &["kernel group_norm_backward_dropout", "graph kernel group_norm_backward_dropout"],
        "kernel dropout",
    ),
    (Family::BiasEpilogue, &["kernel cublasLt bgradb", "graph kernel cublasLt bgradb"], "kernel column_sum"),
];

/// Losses, squared errors and norms of some steps, and pictures, in bf16.
fn compute(off: Off) -> (Vec<StepOutcome>, Images) {
    let (device, _turn) = gpu();
    Gpu::of(&device).unwrap().set_off(off);
    let emulator = Emulator::find();
    emulator.iter().for_each(Emulator::reset);
    let settings = [("run.device", "cuda"), ("train.precision", "bf16"), ("model.attention_head_dim", "16")];
    let (steps, _) = train(&plan(TINY, &settings), &device, 4);
    let (sketch, sampler) = (Sketch::new(&[]), sampler((SamplerKind::Ddim, 0.0), 4));
    let params = sketch.params(&device, DType::BF16);
    let images = sketch.painter(&params).draw_unless(&request(&sampler), &|| false).unwrap().unwrap();
    if let Some(emulator) = emulator {
        for (family, never, instead) in FAMILIES {
            if off == Off::default().with(family) {
                never.iter().for_each(|name| assert_eq!(emulator.get(name), 0, "{family:?} is off, but {name}"));
                assert!(emulator.get(instead) > 0, "{family:?} is off, but there is no {instead}");
            }
        }
    }
    (steps, images)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_what_is_turned_off_is_not_taken_and_nothing_else_changes() {
    let (expected, images) = compute(Off::default());
    for (family, ..) in FAMILIES {
        let (found, painted) = compute(Off::default().with(family));
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let pairs = found.losses.iter().zip(&expected.losses).chain([(&found.state.norm, &expected.state.norm)]);
            for (found, expected) in pairs {
                let off = (found - expected).abs() / expected.abs();
                assert!(off < 5e-2, "{family:?}: step {step}: {found}, with it {expected}");
            }
        }
        let off = painted.pixels.iter().zip(&images.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // The tolerance of bf16 against f32 in `sampling`.
        assert!(off <= 26, "{family:?}: a byte is off by {off}");
    }
}

/// Where the arithmetic is not skipped, the result is also right: f32 has no flash attention.
#[test]
#[ignore = "needs a GPU"]
fn gpu_all_of_it_turned_off_trains_as_before() {
    let all = [Family::Graph, Family::Flash, Family::Fuse, Family::BiasEpilogue];
    let losses = |off: Off| {
        let (device, _turn) = gpu();
        Gpu::of(&device).unwrap().set_off(off);
        let (steps, _) = train(&plan(TINY, &[("run.device", "cuda")]), &device, 4);
        steps.into_iter().flat_map(|step| step.losses).collect::<Vec<_>>()
    };
    let (found, expected) = (losses(all.into_iter().fold(Off::default(), Off::with)), losses(Off::default()));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() / expected.abs() < 1e-4, "{found}, with all of it {expected}");
    }
}
