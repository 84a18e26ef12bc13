//! The choices of algorithms that a run on a GPU stores, and their use when it resumes.

use std::fs;
use std::path::Path;

use ddpm_train::training::run::{RunOptions, train};
use ddpm_train::training::stop::Requests;
use serde_json::Value;

use crate::hearing::hearing;
use crate::{TINY, gpu, plan};

fn run(dir: &Path, steps: u64) {
    let (dir, all) = (dir.to_str().unwrap(), steps.to_string());
    let quiet = [("log.tensorboard", "false"), ("sample.every", "0"), ("log.every", "1"), ("train.precision", "bf16")];
    let plan = plan(TINY, &[&quiet[..], &[("run.dir", dir), ("run.device", "cuda"), ("train.steps", &all)]].concat());
    let requests = Requests::default();
    let options = RunOptions { requests, ..RunOptions::default() };
    train(&plan, &options).unwrap();
}

fn lines(dir: &Path, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn losses(dir: &Path) -> Vec<u64> {
    let loss = |line: Value| line["loss"].as_f64().unwrap().to_bits();
    lines(dir, "metrics.jsonl").into_iter().filter(|line| line["loss"].is_number()).map(loss).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_run_goes_on_with_the_algorithms_it_began_with() {
    let (_, _turn) = gpu();
    let dir = tempfile::tempdir().unwrap();
    let [unbroken, stopped, strange] = ["unbroken", "stopped", "strange"].map(|name| dir.path().join(name));
    run(&unbroken, 5);
    for other in [&stopped, &strange] {
        // As if the timing had given the same choice.
        fs::create_dir_all(other).unwrap();
        fs::copy(unbroken.join("engines.json"), other.join("engines.json")).unwrap();
    }
    run(&stopped, 3);
    let kept = fs::read(stopped.join("engines.json")).unwrap();
    run(&stopped, 5);
    assert_eq!(fs::read(stopped.join("engines.json")).unwrap(), kept, "something was looked for again");
    assert_eq!(losses(&stopped), losses(&unbroken));
    assert_eq!(losses(&stopped).len(), 5);

    let mut engines: Value = serde_json::from_slice(&kept).unwrap();
    assert!(engines["choices"].as_object().unwrap().len() > 10, "{engines}");
    engines["proposers"] = "an older cuDNN".into();
    fs::write(strange.join("engines.json"), engines.to_string()).unwrap();
    run(&strange, 2);
    let anew: Value = serde_json::from_slice(&fs::read(strange.join("engines.json")).unwrap()).unwrap();
    assert_ne!(anew["proposers"], engines["proposers"]);

    fs::write(strange.join("engines.json"), "{").unwrap();
    let ((), warnings) = hearing(|| run(&strange, 4));
    let warned = warnings.iter().any(|text| text.contains("engines.json") && text.contains("looked for again"));
    assert!(warned, "a damaged engines.json must be reported: {warnings:?}");
    assert_eq!(losses(&strange).len(), 4);
}
