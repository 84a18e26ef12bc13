//! What a run does when its loss is not finite: it skips the step, goes back to a checkpoint and on with other images, or ends
//! with a report. The fault is injected: the losses of chosen images are NaN.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use ddpm_data::{Batcher, Crop, Fitting, LoaderConfig, OnCorrupt, Origin, Share};
use ddpm_run::RunRecord;
use ddpm_train::Error;
use ddpm_train::config::{Resolved, Setting, TrainPlan};
use ddpm_train::training::run::{RunOptions, Summary, train};

const TINY: &str = r#"
[run]
device = "cpu"
[data]
source = "builtin:fashion10k"
image_size = 8
channels = 1
[model]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
[train]
steps = 12
batch_size = 4
warmup_steps = 2
[checkpoint]
every = 4
[sample]
every = 0
[log]
every = 1
tensorboard = false
"#;

/// A run directory, and which images are poisoned.
struct Case {
    dir: tempfile::TempDir,
    poisoned: Vec<u64>,
}

impl Case {
    /// The loss of an image of these steps (from 1) is NaN, if the run is at its first try.
    fn new(bad_steps: &[u64]) -> Self {
        let poisoned = bad_steps.iter().map(|&step| first_image(step)).collect();
        Self { dir: tempfile::tempdir().unwrap(), poisoned }
    }

    fn train(&self, settings: &[(&str, &str)], max_steps: Option<u64>) -> Result<Summary, Error> {
        let dir = self.dir.path().join("run").display().to_string();
        let settings = settings.iter().copied().chain([("run.dir", dir.as_str())]);
        let settings: Vec<_> =
            settings.map(|(key, value)| Setting { key: key.to_owned(), value: value.to_owned() }).collect();
        let plan =
            TrainPlan::new(&Resolved::from_layers(Path::new("tiny.toml"), TINY, [], &settings).unwrap()).unwrap();
        let options = RunOptions { max_steps, poisoned: self.poisoned.clone(), ..RunOptions::default() };
        train(&plan, &options)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    fn weights(&self, step: u64) -> Vec<u8> {
        fs::read(self.path(&format!("checkpoints/step-{step:09}/model.safetensors"))).unwrap()
    }

    /// Step and number of skipped steps of every logged step.
    fn logged(&self) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(self.path("metrics.jsonl")).unwrap();
        let number = |line: &serde_json::Value, key: &str| line[key].as_u64().unwrap_or(0);
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| (number(&line, "step"), number(&line, "skipped"))).collect()
    }

    fn reasons(&self) -> Vec<String> {
        let record = RunRecord::read(&self.path("run.json")).unwrap().unwrap();
        record.restarts.into_iter().filter_map(|restart| restart.reason).collect()
    }
}

/// The number in the source of an image of step `step`, from 1.
fn first_image(step: u64) -> u64 {
    let source = ddpm_data::open("builtin:fashion10k", &ddpm_data::OpenOptions::default()).unwrap();
    let config = LoaderConfig {
        seed: 0,
        share: Share::whole(4),
        shuffle: ddpm_data::Shuffle::Whole,
        origin: Origin::default(),
        image_size: ddpm_data::ImageSize::square(8),
        limits: ddpm_data::ImageLimits::default(),
        channels: 1,
        crop: Crop::Center,
        fitting: Fitting::default(),
        flip: false,
        num_classes: None,
        on_corrupt: OnCorrupt::Fail,
        max_corrupt: 0.0,
        workers: 1,
        prefetch: 1,
    };
    Batcher::new(source, config).unwrap().batch_at(step - 1).unwrap().ids[0]
}

#[test]
fn a_bad_step_is_skipped_and_the_run_reaches_its_end() {
    let (bad, good) = (Case::new(&[6]), Case::new(&[]));
    assert_eq!(bad.train(&[], None).unwrap().step, 12);
    good.train(&[], None).unwrap();
    let skipped: Vec<u64> = bad.logged().into_iter().map(|(_, skipped)| skipped).collect();
    assert_eq!(skipped, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]);
    assert!(bad.weights(4) == good.weights(4) && bad.weights(12) != good.weights(12));
    assert!(bad.reasons().is_empty() && !bad.path("divergence").exists());
}

#[test]
fn a_run_with_skipped_steps_resumes_to_the_bit() {
    let settings = [("train.max_bad_steps", "3"), ("train.spike_factor", "50")];
    let (whole, parts) = (Case::new(&[3, 7, 8, 9]), Case::new(&[3, 7, 8, 9]));
    whole.train(&settings, None).unwrap();
    for steps in [2, 7, 9] {
        parts.train(&settings, Some(steps)).unwrap();
    }
    parts.train(&settings, None).unwrap();
    assert_eq!(whole.logged(), parts.logged());
    assert!(whole.weights(12) == parts.weights(12));
}

#[test]
fn a_save_waits_for_a_step_that_is_not_bad() {
    let case = Case::new(&[4, 5]);
    case.train(&[], Some(7)).unwrap();
    let saved = ["step-000000006", "step-000000007"];
    let mut names: Vec<_> = fs::read_dir(case.path("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, saved);
}

#[test]
fn a_run_that_diverges_goes_back_and_on_with_other_images() {
    let settings = [("train.max_bad_steps", "0")];
    let case = Case::new(&[6]);
    let summary = case.train(&settings, None).unwrap();
    // Steps 5 to 12 after the four of the checkpoint, and the two that were passed over.
    assert_eq!((summary.step, summary.images), (12, 4 * (12 + 2)));
    let reasons = case.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("diverged at step 6: the loss is NaN; going back to step 4"));
    assert_eq!(case.logged().iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    assert!(case.path("divergence/step-000000006/report.json").is_file());
    // A run that is stopped in its second try ends with the same bits.
    let parts = Case::new(&[6]);
    for steps in [7, 9] {
        parts.train(&settings, Some(steps)).unwrap();
    }
    assert_eq!(parts.train(&settings, None).unwrap().images, summary.images);
    assert!(case.weights(12) == parts.weights(12));
}

#[test]
fn a_run_that_keeps_diverging_ends_with_a_report() {
    // The images at the places of steps 6, 7 and 9: each try from step 4 meets another one.
    let case = Case::new(&[6, 7, 9]);
    let error = case.train(&[("train.max_bad_steps", "0")], None).unwrap_err();
    let Error::Diverged { report: Some(dir), what, .. } = &error else { panic!("{error}") };
    assert_eq!(what, "the loss is NaN");
    assert!(error.causes()[0].contains("divergence"), "{:?}", error.causes());
    assert_eq!(case.reasons().len(), 2);
    assert_eq!(fs::read_dir(case.path("divergence")).unwrap().count(), 3, "a report of each");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["samples"].as_array().unwrap().len(), 4);
    assert!(report["samples"][0]["loss"].is_null() && report["samples"][1]["loss"].is_number(), "{report}");
    assert!(report["gradients"][0]["not_finite"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["steps_before"][0]["step"].as_u64().unwrap() + 1, report["step"].as_u64().unwrap());
    let batch = ddpm_run::checkpoint::tensors::read(&dir.join("batch.safetensors")).unwrap();
    assert_eq!(batch.iter().find(|tensor| tensor.name == "images").unwrap().shape, [4, 8, 8, 1]);
    assert!(dir.join("batch.png").is_file());
}
