//! The same command resumes, and the result is that of a run that never stopped.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::{image_folder, reseal};
use ddpm_tests::{Place, assert_same_run, fresh_run, trained_run};

#[test]
fn a_run_in_two_parts_equals_a_run_in_one_to_the_bit() {
    // 13 is no multiple of any cadence: the means since the last logged step must survive too.
    let settings = ["sample.every=10", "checkpoint.keep_every=10"];
    let parts = fresh_run(&settings);
    for steps in [13, 20, 40] {
        parts.train().max_steps(steps).succeeds();
    }
    let whole = trained_run(&settings);
    std::fs::remove_file(parts.path("runs/tiny/samples/step-000000013.png")).unwrap();
    assert_same_run(&parts, &whole);
    assert_eq!(parts.metrics().len(), 13);
}

#[test]
fn dropout_classes_and_micro_batches_resume_to_the_bit_too() {
    let settings = [
        "model.dropout=0.2",
        "model.num_class_embeds=11",
        "data.flip=true",
        "loss.label_dropout=0.3",
        "train.micro_batch=3",
        "train.steps=20",
        "sample.every=10",
        "log.every=1",
    ];
    let parts = fresh_run(&settings);
    parts.train().max_steps(10).succeeds();
    parts.train().succeeds().resumes_at(10);
    assert_same_run(&parts, &trained_run(&settings));
}

#[test]
fn max_steps_counts_the_steps_of_all_starts() {
    let run = fresh_run(&[]);
    assert_eq!(run.train().max_steps(20).json()["step"], 20);
    let document = run.train().max_steps(30).json();
    assert_eq!(
        (&document["step"], &document["images"], &document["status"]),
        (&30.into(), &120.into(), &"done".into())
    );
    assert_eq!(run.checkpoints(), ["step-000000020", "step-000000030"]);
    run.train().max_steps(25).succeeds().resumes_at(30);
}

#[test]
fn the_emoji_preset_goes_on_where_it_stopped() {
    let place = Place::of_repository();
    let train =
        place.ddpm("train configs/emoji32.toml --set train.batch_size=2 --set sample.num=1 --set sample.steps=1");
    train.clone().max_steps(2).succeeds().stderr_has("3786 images");
    train.max_steps(4).succeeds().resumes_at(2);
    assert_eq!(place.names("runs/emoji32/checkpoints"), ["step-000000002", "step-000000004"]);
}

#[test]
fn a_changed_config_is_refused_and_every_change_is_named_with_both_values() {
    let run = trained_run(&["train.steps=10"]);
    let before = run.files("runs");
    let refused = run.train().set("train.steps=20").set("train.lr=5e-4").set("model.norm_eps=1e-3").fails_with(2);
    refused
        .stderr_has("configuration has changed")
        .stderr_has("train.lr: 0.001 in the checkpoint, 5e-4 now")
        .stderr_has("model.norm_eps: ")
        .stderr_has("--run-dir")
        .stderr_lacks("train.steps:");
    assert!(run.files("runs") == before, "a refused start changed the run");
}

#[test]
fn keys_that_cannot_change_the_past_may_change() {
    let run = trained_run(&["train.steps=10"]);
    let resumed = ["train.steps=12", "log.every=1", "checkpoint.every=1", "sample.every=0", "data.workers=1"]
        .into_iter()
        .fold(run.train(), |train, setting| train.set(setting));
    resumed.arg("--device").arg("cpu").succeeds().resumes_at(10);
}

#[test]
fn data_that_changed_is_refused_and_data_that_moved_is_not() {
    let run = fresh_run(&["train.steps=10"]);
    image_folder(&run, "images", 6);
    run.train().set("data.source=images").succeeds();
    std::fs::rename(run.path("images"), run.path("moved")).unwrap();
    run.train().set("data.source=moved").set("train.steps=12").succeeds().resumes_at(10);
    image_folder(&run, "moved", 7);
    run.train()
        .set("data.source=moved")
        .set("train.steps=14")
        .fails_with(2)
        .stderr_has("data.source = moved holds other images than then (7 now, 6 then)")
        .stderr_has("--accept-data");
}

#[test]
fn data_that_grew_is_accepted_where_asked_for_and_the_run_keeps_its_step() {
    let run = fresh_run(&["train.steps=10", "data.source=images"]);
    image_folder(&run, "images", 6);
    let train = |steps: &str| run.train().set(&format!("train.steps={steps}"));
    train("10").arg("--accept-data").succeeds().stderr_lacks("accepted");
    image_folder(&run, "images", 9);
    let accepted = train("20").arg("--accept-data").succeeds().resumes_at(10);
    accepted.stderr_has("warning: data.source: other images than in the checkpoint (9 now, 6 then) are accepted");
    let record: serde_json::Value = serde_json::from_slice(&run.read("runs/tiny/run.json")).unwrap();
    let change = &record["restarts"][0]["changed_data"];
    assert_eq!((&change["images_then"], &change["images"]), (&6.into(), &9.into()), "{record}");
    // From there on these are the run's images.
    train("24").succeeds().resumes_at(20).stderr_lacks("accepted");
    std::fs::remove_file(run.path("images/000.png")).unwrap();
    train("26").fails_with(2).stderr_has("(8 now, 9 then)");
}

#[test]
fn resume_never_does_not_overwrite_a_run() {
    let run = trained_run(&["train.steps=10"]);
    let before = run.files("runs/tiny/checkpoints");
    let never = run.train().arg("--resume").arg("never");
    never.fails_with(2).stderr_has("runs/tiny holds checkpoints up to step 10").stderr_has("--run-dir");
    assert!(run.files("runs/tiny/checkpoints") == before);
    never.arg("--run-dir").arg("runs/other").succeeds().stderr_lacks("going on");
}

#[test]
fn resume_takes_the_checkpoint_it_is_given() {
    let run = trained_run(&["train.steps=20"]);
    let given =
        |dir: &str| run.train().arg("--resume").arg("runs/tiny/checkpoints/step-000000010").arg("--run-dir").arg(dir);
    given("runs/tiny").fails_with(2).stderr_has("holds checkpoints up to step 20");
    given("runs/branch").succeeds().resumes_at(10);
    let weights = |dir: &str| run.read(&format!("runs/{dir}/checkpoints/step-000000020/model.safetensors"));
    assert!(weights("branch") == weights("tiny"));
}

#[test]
fn a_truncated_newest_checkpoint_is_skipped_and_named() {
    let run = trained_run(&["train.steps=20"]);
    let whole = run.read("runs/tiny/checkpoints/step-000000020/model.safetensors");
    run.truncate("runs/tiny/checkpoints/step-000000020/model.safetensors");
    run.train().succeeds().stderr_has("checkpoint step-000000020 is skipped").resumes_at(10);
    assert!(run.read("runs/tiny/checkpoints/step-000000020/model.safetensors") == whole);
}

#[test]
fn a_run_directory_may_be_moved_and_its_config_used_again() {
    let run = trained_run(&["train.steps=10"]);
    std::fs::rename(run.path("runs/tiny"), run.path("elsewhere")).unwrap();
    run.ddpm("train elsewhere/config.toml --run-dir elsewhere --max-steps 12 --set train.steps=12")
        .succeeds()
        .resumes_at(10);
}

/// A checkpoint as an older version wrote it: it lacks newer keys, and so has another hash.
#[test]
fn a_run_goes_on_under_a_program_that_knows_more_keys() {
    let run = trained_run(&["train.steps=10"]);
    let checkpoint = "runs/tiny/checkpoints/step-000000010";
    let mut state: serde_json::Value = serde_json::from_slice(&run.read(&format!("{checkpoint}/state.json"))).unwrap();
    assert!(state["extra"]["config"]["model"].as_object_mut().unwrap().remove("mid_block_scale_factor").is_some());
    state["config_hash"] = "of fewer keys".into();
    run.write(&format!("{checkpoint}/state.json"), state.to_string());
    reseal(&run.path(checkpoint));
    run.train().set("train.steps=12").succeeds().resumes_at(10);
    // A key that is present and differs is still refused.
    run.train()
        .set("train.steps=14")
        .set("model.mid_block_scale_factor=2")
        .fails_with(2)
        .stderr_has("mid_block_scale_factor");
}
