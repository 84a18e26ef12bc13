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
    let odd = "runs/a & <b>";
    run.train().arg("--run-dir").arg(odd).succeeds();
    run.ddpm("plot runs/tiny --out both.svg").arg(odd).succeeds();
    let text = run.text("both.svg");
    assert!(text.starts_with("<svg") && text.contains("a &amp; &lt;b&gt;: ") && text.contains("tiny: "), "{text}");
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
