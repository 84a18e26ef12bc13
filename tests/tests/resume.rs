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
        .stderr_lacks("accept it")
        .stderr_lacks("train.steps:");
    assert!(run.files("runs") == before, "a refused start changed the run");
}

#[test]
fn an_accepted_change_holds_from_here_on_and_is_recorded() {
    let run = trained_run(&["train.steps=10", "log.every=1"]);
    let changed = |steps: &str| run.train().set(&format!("train.steps={steps}")).set("train.lr=5e-4");
    changed("14").fails_with(2).stderr_has("accept it from here on with --accept train.lr");
    let accepted = changed("14").arg("--accept").arg("train.lr");
    accepted.succeeds().resumes_at(10).stderr_has("accepted from step 10 on: train.lr: 0.001 -> 5e-4");
    let record = run.text("runs/tiny/run.json");
    assert!(record.contains("train.lr: 0.001 -> 5e-4"), "{record}");
    let metrics = run.metrics();
    assert!(metrics[9].contains("\"lr\":0.001") && metrics[10].contains("\"lr\":0.0005"), "{metrics:?}");
    assert!(metrics[10].contains("train.lr: 0.001 -> 5e-4") && !metrics[11].contains("->"), "{metrics:?}");
    // From the next checkpoint on it is the run's own, and the same command goes on.
    changed("16").succeeds().resumes_at(14);
    accepted.set("train.steps=18").succeeds().resumes_at(16).stderr_lacks("accepted");
}

#[test]
fn another_batch_size_goes_on_with_the_next_images() {
    let run = trained_run(&["train.steps=10", "log.every=1"]);
    let larger = run.train().set("train.batch_size=6").set("train.ema_decays=[0.95]").set("train.steps=13");
    let accepted =
        ["train.batch_size", "train.ema_decays"].iter().fold(larger, |run, key| run.arg("--accept").arg(*key));
    accepted.clone().max_steps(12).succeeds().resumes_at(10);
    assert_eq!(accepted.json()["images"], 10 * 4 + 3 * 6);
    let state = run.text("runs/tiny/checkpoints/step-000000013/state.json");
    assert!(state.contains("\"data_origin\""), "{state}");
}

#[test]
fn what_the_weights_have_learnt_with_cannot_be_accepted() {
    let run = trained_run(&["train.steps=10"]);
    let accept = |key: &str| run.train().arg("--accept").arg(key);
    accept("model.norm_eps").fails_with(2).stderr_has("--accept: model.norm_eps cannot change in a run");
    accept("train.lrr").fails_with(2).stderr_has("--accept: unknown key `train.lrr`").stderr_has("train.lr");
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
fn a_directory_on_the_command_line_is_the_run_whatever_its_config_remembers() {
    let run = trained_run(&["train.steps=10"]);
    let original = run.files("runs/tiny");
    original.iter().for_each(|(path, bytes)| run.write(&path.replace("runs/tiny", "copy"), bytes));
    run.ddpm("train copy --set train.steps=12").succeeds().resumes_at(10);
    assert!(run.files("runs/tiny") == original, "the copy's training changed the original");
    std::fs::rename(run.path("copy"), run.path("moved")).unwrap();
    run.ddpm("train moved/config.toml --set train.steps=14").succeeds().resumes_at(12);
    run.ddpm("train config.toml --set train.steps=16").in_folder("moved").succeeds().resumes_at(14);
    assert!(!run.path("copy").exists() && !run.path("moved/runs").exists());
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

#[test]
fn a_branch_begins_at_a_checkpoint_and_leaves_the_run_alone() {
    let run = trained_run(&["train.steps=20", "log.every=1"]);
    let before = run.files("runs/tiny");
    run.ddpm("fork runs/tiny --at 7 --to runs/branch")
        .fails_with(6)
        .stderr_has("--at: step 7: runs/tiny has no checkpoint of it");
    run.ddpm("fork runs/tiny --at 10 --to runs/branch").succeeds().stdout_has("ddpm train runs/branch");
    assert_eq!(run.text("runs/branch/metrics.jsonl").lines().count(), 10);
    let record = run.text("runs/branch/run.json");
    assert!(record.contains("a branch of runs/tiny (run ") && record.contains("from step 10 on"), "{record}");
    run.ddpm("fork runs/tiny --to runs/branch").fails_with(2).stderr_has("runs/branch: holds files already");
    run.ddpm("train runs/branch").succeeds().resumes_at(10);
    assert!(run.files("runs/tiny") == before, "the branch changed the run");
    for file in ["model.safetensors", "optimizer.safetensors", "ema-0.9.safetensors"] {
        let of = |name: &str| run.read(&format!("runs/{name}/checkpoints/step-000000020/{file}"));
        assert!(of("branch") == of("tiny"), "{file}");
    }
}

#[test]
fn a_check_says_what_a_start_would_say_about_the_run_that_is_there() {
    let run = trained_run(&["train.steps=10"]);
    let check = |settings: &str| run.ddpm(&format!("config check tiny.toml {settings}"));
    check("").succeeds().stdout_has("goes on from step 10 in runs/tiny");
    let new = check("--set run.dir=runs/new").succeeds();
    new.expect(!new.stdout.contains("goes on"), "there is no run in runs/new");
    let refused = check("--set train.lr=5e-4").run().has_code(2);
    refused.stderr_has("the configuration has changed").stdout_has("a run cannot go on from what is in its directory");
}

#[test]
fn what_is_accepted_needs_a_step_to_be_made_with_it() {
    let run = trained_run(&["checkpoint.every=0", "sample.every=0"]);
    let before = run.text("runs/tiny/config.toml");
    let refused = run.train().set("train.lr=1e-4").arg("--accept").arg("train.lr").fails_with(2);
    refused.stderr_has("no step is left after step 40").stderr_has("train.lr: 0.001 -> ").stderr_has("train.steps");
    assert_eq!(run.text("runs/tiny/config.toml"), before);
    run.train().succeeds();
}
