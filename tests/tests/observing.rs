//! Looking at runs: their curves, their differences, a view that follows them.
#![allow(clippy::unwrap_used)]

use ddpm_tests::{Place, trained_run};
use serde_json::json;

/// A run of 40 steps, resumed at 40 and once more with another learning rate.
fn with_turns() -> Place {
    let run = trained_run(&["log.every=1"]);
    run.train().set("train.steps=44").succeeds();
    run.train().set("train.steps=48").set("train.lr=5e-4").arg("--accept=train.lr").succeeds();
    run
}

#[test]
fn a_plot_shows_a_run_with_its_turns_and_says_where_it_is() {
    let run = with_turns();
    let plotted = run.ddpm("plot runs/tiny").json();
    assert_eq!((&plotted["plot"], &plotted["key"]), (&json!("loss.png"), &json!("loss")));
    let curve = &plotted["curves"][0];
    assert_eq!((&curve["name"], &curve["points"], &curve["last_step"]), (&json!("tiny"), &json!(48), &json!(48.0)));
    let kinds: Vec<_> = curve["turns"].as_array().unwrap().iter().map(|turn| (&turn["step"], &turn["kind"])).collect();
    assert_eq!(kinds, [(&json!(40), &json!("resumed")), (&json!(44), &json!("accepted"))]);
    let picture = image::open(run.path("loss.png")).unwrap().into_rgb8();
    let blue = picture.pixels().filter(|pixel| pixel.0 == [0, 114, 178]).count();
    assert!(picture.width() == 1100 && blue > 1000, "{blue} pixels of the curve");
}

#[test]
fn a_plot_is_written_beside_the_last_one_unless_it_is_named() {
    let run = trained_run(&["train.steps=4", "log.every=1"]);
    run.write("loss.png", "mine");
    run.ddpm("plot runs/tiny").succeeds().stdout_has("plot: loss-2.png");
    assert_eq!(run.text("loss.png"), "mine");
    run.ddpm("plot runs/tiny --key timing.images_per_s").succeeds().stdout_has("plot: timing-images_per_s.png");
}

#[test]
fn several_runs_are_told_apart_by_name_in_a_drawing_that_any_viewer_reads() {
    let run = trained_run(&["train.steps=4", "log.every=1"]);
    let odd = "runs/a & <b>\x1b[2J";
    run.train().arg("--run-dir").arg(odd).succeeds();
    run.ddpm("plot runs/tiny --out both.svg").arg(odd).succeeds();
    let text = run.text("both.svg");
    assert!(
        text.starts_with("<svg")
            && text.contains("a &amp; &lt;b&gt;\\u{1b}[2J")
            && !text.contains('\x1b')
            && text.contains("tiny: "),
        "{text}"
    );
    assert!(text.contains("loss of 2 runs"));
}

#[test]
fn what_cannot_be_plotted_is_refused_with_what_would_do() {
    let run = trained_run(&["train.steps=4", "log.every=2"]);
    run.ddpm("plot nowhere").fails_with(2).stderr_has("nowhere: there is no run");
    run.ddpm("plot runs/tiny --key los").fails_with(2).stderr_has("`los`").stderr_has("logged are step, images, loss,");
    run.ddpm("plot runs/tiny --out loss.jpg").fails_with(2).stderr_has("ends in .png or .svg");
    assert_eq!(run.names(""), ["runs", "tiny.toml"]);
}

#[test]
fn a_loss_that_was_not_finite_leaves_a_gap() {
    let run = trained_run(&["train.steps=6", "log.every=1"]);
    let metrics = run.text("runs/tiny/metrics.jsonl");
    let line = metrics.lines().nth(2).unwrap();
    let loss = line.split("\"loss\":").nth(1).unwrap().split(',').next().unwrap();
    let gone = line.replace(&format!("\"loss\":{loss}"), "\"loss\":null");
    run.write("runs/tiny/metrics.jsonl", metrics.replace(line, &gone) + "{\"step\": 7, \"lo");
    assert_eq!(run.ddpm("plot runs/tiny").json()["curves"][0]["points"], 5);
}

#[test]
fn equal_runs_are_equal_to_the_bit_and_the_first_difference_of_others_is_named() {
    let run = trained_run(&["train.steps=20", "log.every=1"]);
    run.train().arg("--run-dir=runs/again").succeeds();
    let same = run.ddpm("compare runs/tiny runs/again").json();
    assert_eq!(same["config"], json!([]));
    assert_eq!((&same["data"]["same"], &same["data"]["a"]["images"]), (&json!(true), &json!(10_000)));
    assert_eq!(same["weights"], json!({"step": 20, "same": true}));
    let curves = &same["curves"];
    assert_eq!((&curves["common_steps"], &curves["first_difference"]), (&json!(20), &json!(null)));
    run.ddpm("compare runs/tiny runs/again")
        .succeeds()
        .stdout_has("configuration: the same")
        .stdout_has("metrics: equal to the bit at all 20 common steps, up to 20");

    // A branch of the run, which goes on in another way.
    run.ddpm("fork runs/again --at 10 --to runs/slower").succeeds();
    let slower = run.ddpm("train runs/slower --set train.lr=1e-4 --accept train.lr --set log.every=2");
    slower.succeeds();
    let other = run.ddpm("compare runs/tiny runs/slower").json();
    let keys: Vec<_> = other["config"].as_array().unwrap().iter().collect();
    let [lr, every] = keys[..] else { panic!("{other}") };
    let want = json!({"key": "train.lr", "a": 1e-3, "b": 1e-4, "default": 2e-4, "changes_results": true});
    assert_eq!((lr, &every["key"], &every["changes_results"]), (&want, &json!("log.every"), &json!(false)));
    assert_eq!((&other["weights"]["step"], &other["weights"]["same"]), (&json!(20), &json!(false)));
    assert_eq!(other["curves"]["first_difference"], 12, "what is logged every other step is a mean of two");
    assert_eq!(other["runs"][1]["accepted"], json!(["train.lr: 0.001 -> 1e-4"]));
    let text = run.ddpm("compare runs/tiny runs/slower").succeeds();
    text.stdout_has("* train.lr").stdout_has("they differ from step 12 on").stdout_has("weights: different at step 20");
}

#[test]
fn a_run_without_checkpoint_or_metrics_can_be_compared_too() {
    let run = trained_run(&["train.steps=4", "log.every=0"]);
    run.train().arg("--run-dir=runs/bad").set("train.lr=1e30").set("train.max_bad_steps=0").fails_with(5);
    let compared = run.ddpm("compare runs/tiny runs/bad").json();
    assert_eq!((&compared["data"]["same"], &compared["weights"]), (&json!(null), &json!(null)));
    run.ddpm("compare runs/tiny runs/bad").succeeds().stdout_has("metrics: no step that both have logged");
    run.ddpm("compare runs/tiny nowhere").fails_with(2).stderr_has("nowhere: there is no run");
}
