//! Checkpoints that are damaged or belong to another model: skipped or refused by name, never half believed.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::reseal;
use ddpm_tests::{Place, trained_run};

const NEWEST: &str = "runs/tiny/checkpoints/step-000000020";
const OLDER: &str = "runs/tiny/checkpoints/step-000000010";

fn run() -> Place {
    trained_run(&["train.steps=20"])
}

#[test]
fn each_way_to_damage_the_newest_checkpoint_leads_to_the_one_before() {
    let run = run();
    let sample = run.ddpm("sample runs/tiny --num 1 --steps 1");
    let whole = run.files(NEWEST);
    let file = |name: &str| format!("{NEWEST}/{name}");
    let damages: [(&str, &dyn Fn()); 6] = [
        ("model.safetensors", &|| run.truncate(&file("model.safetensors"))),
        ("optimizer.safetensors", &|| {
            let mut bytes = run.read(&file("optimizer.safetensors"));
            *bytes.last_mut().unwrap() ^= 1;
            run.write(&file("optimizer.safetensors"), bytes);
        }),
        ("state.json", &|| std::fs::remove_file(run.path(file("state.json"))).unwrap()),
        ("MANIFEST.json", &|| std::fs::remove_file(run.path(file("MANIFEST.json"))).unwrap()),
        ("MANIFEST.json", &|| run.truncate(&file("MANIFEST.json"))),
        ("format version 99", &|| {
            let text = run.text(&file("MANIFEST.json")).replace("\"format_version\": 1", "\"format_version\": 99");
            run.write(&file("MANIFEST.json"), text);
        }),
    ];
    for (named, damage) in damages {
        damage();
        sample.succeeds().stderr_has("step-000000020 is skipped").stderr_has(named);
        whole.iter().for_each(|(path, bytes)| run.write(path, bytes));
    }
    sample.succeeds().stderr_lacks("skipped");
}

#[test]
fn where_no_checkpoint_verifies_nothing_is_started_over_or_deleted() {
    let run = run();
    for checkpoint in [OLDER, NEWEST] {
        run.truncate(&format!("{checkpoint}/model.safetensors"));
    }
    let before = run.files("runs");
    let refused = run.train().fails_with(6).stderr_has("step-000000010").stderr_has("step-000000020");
    refused.stderr_has("none that verifies").stderr_has("--run-dir");
    run.ddpm("sample runs/tiny").fails_with(6).stderr_has("no checkpoint that verifies");
    run.ddpm(&format!("sample {NEWEST}")).fails_with(6).stderr_has("model.safetensors");
    assert!(run.files("runs") == before, "a refused start changed the run");
}

#[test]
fn a_checkpoint_of_another_model_is_refused_with_what_differs() {
    let (wide, narrow) = (trained_run(&["train.steps=10", "model.block_out_channels=[32, 32]"]), run());
    let other = wide.path(OLDER);
    let refused = narrow.train().arg("--run-dir").arg("runs/new").arg("--resume").arg(other.clone()).fails_with(2);
    refused.stderr_has("model.block_out_channels: [32, 32] in the checkpoint, [16, 16] now");
    // The state describes one model and the tensors belong to another: the manifest was resealed after they were mixed.
    for file in ["model.safetensors", "ema-0.9.safetensors", "ema-0.99.safetensors", "optimizer.safetensors"] {
        std::fs::copy(other.join(file), narrow.path(NEWEST).join(file)).unwrap();
    }
    reseal(&narrow.path(NEWEST));
    let refused = narrow.train().set("train.steps=30").fails_with(6).stderr_has("does not fit this model");
    refused.stderr_has("conv_in.weight").stderr_has("32").stderr_has("16");
    assert_eq!(narrow.checkpoints(), ["step-000000010", "step-000000020"]);
}

#[test]
fn a_checkpoint_without_an_average_is_refused_where_it_is_needed() {
    let run = run();
    let manifest = run.text(&format!("{NEWEST}/MANIFEST.json"));
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest["files"].as_array_mut().unwrap().retain(|entry| entry["name"] != "ema-0.9.safetensors");
    run.write(&format!("{NEWEST}/MANIFEST.json"), manifest.to_string());
    run.ddpm("sample runs/tiny --num 1 --steps 1").fails_with(6).stderr_has("holds no ema-0.9.safetensors");
    run.ddpm("sample runs/tiny --num 1 --steps 1 --raw").succeeds();
}
