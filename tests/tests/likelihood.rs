//! Learned variances, importance sampling of t, and bits per dimension, as a user sees them.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::{image_folder, png, read_safetensors};
use ddpm_tests::{Place, assert_same_run, fresh_run, trained_run};
use serde_json::Value;

/// A schedule short enough for ten losses at every t in a few steps.
const IMPORTANCE: [&str; 6] = [
    "diffusion.variance_type=learned_range",
    "diffusion.num_train_timesteps=8",
    "diffusion.beta_end=0.9",
    "loss.kind=vlb",
    "loss.timestep_sampler=loss_second_moment",
    "sample.steps=4",
];

fn evaluate(run: &Place, options: &str) -> Value {
    run.ddpm(&format!("eval nll runs/tiny --data builtin:fashion10k --num 4 {options}")).json()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn importance_sampling_of_t_resumes_to_the_bit() {
    let more = ["train.steps=60", "train.micro_batch=3", "checkpoint.keep_last=1"];
    let settings: Vec<&str> = IMPORTANCE.into_iter().chain(more).collect();
    let parts = fresh_run(&settings);
    // Once while the history fills, once after.
    for steps in [13, 47] {
        parts.train().max_steps(steps).succeeds();
        std::fs::remove_file(parts.path(format!("runs/tiny/samples/step-{steps:09}.png"))).unwrap();
    }
    parts.train().succeeds().resumes_at(47);
    let whole = trained_run(&settings);
    assert_same_run(&parts, &whole);
    let file = "runs/tiny/checkpoints/step-000000060/timestep_sampler.safetensors";
    let history = read_safetensors(&whole.read(file));
    assert_eq!(history["losses"].0, [8, 10]);
    assert!(history["counts"].1.iter().all(|count| *count == 10.0), "the history never filled: {history:?}");
    assert!(parts.read(file) == whole.read(file));
    // Once it is full, t is not drawn as it would be uniformly.
    let uniform: Vec<&str> = settings.iter().copied().filter(|s| !s.starts_with("loss.timestep_sampler")).collect();
    let uniform = trained_run(&uniform);
    let first_difference = whole.metrics().iter().zip(uniform.metrics()).position(|(a, b)| *a != b);
    assert!(first_difference.is_some_and(|line| line > 0), "{first_difference:?}");
}

#[test]
fn a_checkpoint_that_lost_its_loss_history_is_refused() {
    let settings: Vec<&str> = IMPORTANCE.into_iter().chain(["train.steps=4"]).collect();
    let run = trained_run(&settings);
    let checkpoint = "runs/tiny/checkpoints/step-000000004";
    std::fs::remove_file(run.path(format!("{checkpoint}/timestep_sampler.safetensors"))).unwrap();
    run.train().set("train.steps=6").fails_with(6).stderr_has("timestep_sampler.safetensors");
}

#[test]
fn bits_per_dimension_are_the_sum_of_their_parts_and_no_batch_size_changes_them() {
    let run =
        trained_run(&["train.steps=2", "checkpoint.every=0", "diffusion.num_train_timesteps=50", "sample.steps=5"]);
    let document = evaluate(&run, "--plot terms.png");
    let (vb, mse) = (numbers(&document["vb"]), numbers(&document["mse"]));
    assert_eq!((vb.len(), mse.len(), numbers(&document["xstart_mse"]).len()), (50, 50, 50));
    assert_eq!((&document["images"], &document["steps"]), (&4.into(), &50.into()));
    let total = document["bits_per_dim"].as_f64().unwrap();
    assert!((vb.iter().sum::<f64>() + document["prior"].as_f64().unwrap() - total).abs() < 1e-9, "{document}");
    let of_images = numbers(&document["image_bits_per_dim"]);
    assert!((of_images.iter().sum::<f64>() / 4.0 - total).abs() < 1e-9);
    assert!(document["standard_error"].as_f64().unwrap() > 0.0);
    assert!(run.read("terms.png").starts_with(b"\x89PNG"));

    let smaller = evaluate(&run, "--batch-size 3");
    assert!((smaller["bits_per_dim"].as_f64().unwrap() / total - 1.0).abs() < 1e-6);
    let seeded = evaluate(&run, "--seed 1");
    assert!(seeded["bits_per_dim"] != document["bits_per_dim"], "the seed does nothing");
    let respaced = evaluate(&run, "--spacing 10");
    assert_eq!((&respaced["steps"], numbers(&respaced["vb"]).len()), (&10.into(), 10));
    assert_eq!(respaced["timesteps"], serde_json::json!([0, 5, 11, 16, 22, 27, 33, 38, 44, 49]));
    let large = evaluate(&run, "--variance fixed_large");
    assert!(large["bits_per_dim"] != document["bits_per_dim"] && large["mse"] == document["mse"]);
    let text = run.ddpm("eval nll runs/tiny --data builtin:fashion10k --split [9000:] --num 2 --steps 3").succeeds();
    text.stdout_has("bits/dim").stdout_has("L_0").stdout_has("standard error").stdout_has("3 of the timesteps");
}

#[test]
fn a_learned_variance_trains_samples_and_is_evaluated() {
    let run = trained_run(&["train.steps=4", "diffusion.variance_type=learned_range", "loss.kind=hybrid"]);
    let line: Value = serde_json::from_str(run.metrics().last().unwrap()).unwrap();
    assert!(line["loss_parts"]["vlb"].is_number() && line["loss_parts"]["mse"].is_number(), "{line}");
    assert!(evaluate(&run, "--steps 5")["bits_per_dim"].as_f64().unwrap().is_finite());
    for options in ["--sampler ddpm --steps 3", "--sampler ddim --steps 3", "--sampler dpm --steps 3"] {
        run.ddpm(&format!("sample runs/tiny --num 2 {options}")).succeeds();
    }
    for command in ["sample runs/tiny --num 1", "eval nll runs/tiny --data builtin:fashion10k --num 1"] {
        let refused = run.ddpm(&format!("{command} --variance fixed_large")).fails_with(2);
        refused.stderr_has("variance = fixed_large").stderr_has("the model decides");
    }
}

#[test]
fn a_class_conditional_model_is_evaluated_with_the_labels_of_the_images() {
    let run = trained_run(&["train.steps=2", "model.num_class_embeds=10", "sample.every=0"]);
    assert_eq!(evaluate(&run, "--steps 2")["images"], 4);
    for number in 0..3 {
        run.write(&format!("unlabelled/{number}.png"), png(16, number));
    }
    run.ddpm("eval nll runs/tiny --data unlabelled --steps 2")
        .fails_with(2)
        .stderr_has("the model is class-conditional");
}

#[test]
fn an_unreadable_image_is_not_judged_by_another_in_its_place() {
    let run = trained_run(&["train.steps=1", "sample.every=0"]);
    image_folder(&run, "images", 4);
    run.truncate("images/002.png");
    let nll = run.ddpm("eval nll runs/tiny --data images --steps 2").fails_with(3);
    nll.stderr_has("002.png").stderr_has("repair it or take it out");
}

#[test]
fn a_plot_that_cannot_be_is_refused_before_the_work() {
    let run = trained_run(&["train.steps=1", "sample.every=0"]);
    run.write("file", "");
    let nll =
        |plot: &str| run.ddpm(&format!("eval nll runs/tiny --data builtin:fashion10k --num 1 --steps 2 --plot {plot}"));
    nll("file/x.png").fails_with(1).stderr_has("--plot file/x.png").stderr_has("may write to");
    nll("x.jpg").fails_with(2).stderr_has("--plot x.jpg").stderr_has(".png");
    nll("new/x.png").succeeds();
    assert!(run.exists("new/x.png"));
}

#[test]
fn an_evaluation_that_cannot_be_is_refused() {
    let run = trained_run(&["train.steps=1", "sample.every=0"]);
    let nll = |options: &str| run.ddpm(&format!("eval nll runs/tiny {options}"));
    nll("--data nowhere").fails_with(3).stderr_has("nowhere");
    nll("--data builtin:fashion10k --num 20000")
        .fails_with(2)
        .stderr_has("10000 images")
        .stderr_has("ask for 10000 or fewer");
    nll("--data builtin:fashion10k --split test").fails_with(2).stderr_has("data.split = test");
    nll("--data builtin:fashion10k --split [9:5]").fails_with(2).stderr_has("no sample lies there");
    nll("--data builtin:fashion10k --steps 1001").fails_with(2).stderr_has("1 to 1000");
    nll("--data builtin:fashion10k --spacing 600,600").fails_with(2).stderr_has("1 to 500 steps");
    nll("--data builtin:fashion10k --variance other").fails_with(2).stderr_has("fixed_small or fixed_large");
    run.ddpm("eval nll nowhere --data builtin:fashion10k").fails_with(6).stderr_has("nowhere");
    run.ddpm("eval nll runs/tiny").fails_with(2).stderr_has("--data");
}

#[test]
fn a_learned_variance_needs_its_channels_and_its_loss() {
    let run = fresh_run(&[]);
    let learned = || run.train().set("diffusion.variance_type=learned_range");
    let channels = learned().set("loss.kind=hybrid").set("model.out_channels=1").fails_with(2);
    channels.stderr_has("model.out_channels = 1").stderr_has("make 2").stderr_has("leave model.out_channels out");
    learned().fails_with(2).stderr_has("loss.kind = simple").stderr_has("set loss.kind = \"hybrid\"");
    run.train().set("loss.kind=vlb").fails_with(2).stderr_has("loss.kind = vlb").stderr_has("learned_range");
}

#[test]
fn images_are_held_out_with_a_slice() {
    let run = trained_run(&["train.steps=1", "sample.every=0", "data.split=train[:9000]"]);
    let again = run.train().set("train.steps=2").succeeds();
    again.stderr_has("10000 images").stderr_has("(images 0 to 8999 of them)");
    let other = run.train().set("train.steps=2").set("data.split=[:8000]").fails_with(2);
    other.stderr_has("data.split: ");
    run.train().set("data.split=train[5").fails_with(2).stderr_has("expected NAME[FROM:TO]");
}
