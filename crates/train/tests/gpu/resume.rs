//! A stop, and gradient checkpointing, change no bit of a training on a GPU.

use ddpm_run::checkpoint::{Checkpoint, Snapshot, save};
use ddpm_train::config::TrainPlan;
use ddpm_train::known_data::KnownData;
use ddpm_train::training::means::Means;
use ddpm_train::training::state::Position;
use ddpm_train::training::trainer::Trainer;

use crate::{TINY, batches, gpu, plan, train};

fn settings(precision: &str) -> [(&str, &str); 3] {
    [("run.device", "cuda"), ("train.precision", precision), ("train.deterministic", "true")]
}

fn snapshot(plan: &TrainPlan, trainer: &Trainer) -> Snapshot {
    let means = Means::default();
    let position = Position { plan, data: &KnownData::default(), means: &means, rollbacks: 0 };
    trainer.copy(&position).unwrap().into_snapshot().unwrap()
}

/// Weights, averages and moments as bits, by file and name, and the rest of the state.
fn everything(snapshot: &Snapshot) -> (Vec<(String, Vec<u32>)>, Option<serde_json::Value>) {
    let tensors = snapshot.files.iter().flat_map(|file| {
        file.tensors.iter().map(|t| (format!("{} {}", file.name, t.name), t.data.iter().map(|v| v.to_bits()).collect()))
    });
    (tensors.collect(), snapshot.state.extra.get("step_state").cloned())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped() {
    let (device, _turn) = gpu();
    for precision in ["f32", "bf16", "f16"] {
        let plan = plan(TINY, &settings(precision));
        let (_, unbroken) = train(&plan, &device, 6);
        let (_, first) = train(&plan, &device, 3);
        let dir = tempfile::tempdir().unwrap();
        let saved = save(dir.path(), &snapshot(&plan, &first)).unwrap();
        drop(first);
        let checkpoint = Checkpoint::open(&saved.path).unwrap();
        let (mut resumed, _) = Trainer::restore(&plan, &device, &checkpoint).unwrap();
        let batches = batches(&plan);
        for step in 3..6 {
            resumed.step(batches.batch_at(step).unwrap()).unwrap();
        }
        resumed.outcomes(true).unwrap();
        let (found, expected) = (everything(&snapshot(&plan, &resumed)), everything(&snapshot(&plan, &unbroken)));
        let scaled = expected.1.as_ref().is_some_and(|state| state.get("scale").is_some());
        assert_eq!(scaled, precision == "f16", "{:?}", expected.1);
        assert_eq!(found.1, expected.1, "{precision}");
        for (found, expected) in found.0.iter().zip(&expected.0) {
            assert!(found == expected, "{precision}: {}", expected.0);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_checkpointing_changes_no_bit() {
    let (device, _turn) = gpu();
    for precision in ["f32", "bf16"] {
        let settings = settings(precision);
        let (_, without) = train(&plan(TINY, &settings), &device, 4);
        let on = [&settings[..], &[("train.gradient_checkpointing", "true")]].concat();
        let on = plan(TINY, &on);
        let (_, with) = train(&on, &device, 4);
        let (found, expected) = (everything(&snapshot(&on, &with)), everything(&snapshot(&on, &without)));
        for (found, expected) in found.0.iter().zip(&expected.0) {
            assert!(found == expected, "{precision}: {}", expected.0);
        }
    }
}
