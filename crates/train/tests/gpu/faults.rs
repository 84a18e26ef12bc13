//! If cuDNN fails and there is another way, training continues with the same losses, and the user is warned. The emulator makes
//! it fail; without it these tests are skipped.

use crate::emulator::Emulator;
use crate::hearing::hearing;
use crate::{TINY, gpu, plan, train};

/// Losses of a training whose cuDNN fails, and the warnings.
fn losses(fault: Option<&str>) -> (Vec<f64>, Vec<String>) {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return (Vec::new(), Vec::new()) };
    emulator.fail_cudnn(fault);
    // Few numbers: without cuDNN the emulator computes a thread for each.
    let settings = [
        ("run.device", "cuda"),
        ("train.precision", "bf16"),
        ("train.deterministic", "true"),
        ("train.batch_size", "1"),
    ];
    let ((steps, _), warnings) = hearing(|| train(&plan(TINY, &settings), &device, 2));
    emulator.fail_cudnn(None);
    (steps.into_iter().flat_map(|step| step.losses).collect(), warnings)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_cudnn_that_fails_ends_no_training_and_is_reported() {
    let (expected, warnings) = losses(None);
    assert_eq!(warnings, [""; 0]);
    // A compilation that fails, a launch that does, and codes that no header has yet.
    for (fault, code) in [
        ("plan:4001", "4001"),
        ("plan:4999", "4999"),
        ("execute:4005", "4005"),
        ("execute:5001", "5001"),
        ("heuristics:4002", "4002"),
    ] {
        let (found, warnings) = losses(Some(fault));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() / expected.abs() < 5e-2, "{fault}: {found}, else {expected}");
        }
        if Emulator::find().is_some() {
            assert!(
                matches!(&warnings[..], [one] if one.contains("cuDNN failed") && one.contains(code)),
                "{fault}: {warnings:?}"
            );
        }
    }
}
