//! Samplers, latents, and their pictures.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::{image_folder, read_safetensors};
use ddpm_tests::{Place, fresh_run, trained_run};

fn trained() -> Place {
    trained_run(&["train.steps=2", "checkpoint.every=0", "sample.every=0"])
}

fn draw(run: &Place, options: &str, out: &str) -> Vec<Vec<u8>> {
    run.ddpm(&format!("sample runs/tiny {options} --out {out}/")).succeeds();
    run.files(out).into_values().collect()
}

#[test]
fn an_image_does_not_depend_on_the_size_of_its_batch() {
    let run = trained();
    for (name, options) in [
        ("ddpm", "--sampler ddpm --steps 4"),
        ("ddim", "--sampler ddim --steps 4 --eta 0.7"),
        ("dpm", "--sampler dpm --steps 4"),
        ("respaced", "--sampler ddpm --spacing 3,2"),
    ] {
        let whole = draw(&run, &format!("--num 7 --batch-size 7 {options}"), name);
        for size in [1, 3] {
            let parts = draw(&run, &format!("--num 7 --batch-size {size} {options}"), &format!("{name}{size}"));
            assert!(parts == whole, "{options}, {size} at a time");
        }
    }
}

#[test]
fn samplers_spacings_and_variances_make_different_images() {
    let run = trained();
    let options = [
        "--sampler ddpm --steps 4",
        "--sampler ddpm --steps 4 --variance fixed_large",
        "--sampler ddpm --steps 4 --spacing trailing",
        "--sampler ddim --steps 4",
        "--sampler ddim --spacing ddim4 --eta 1",
        "--sampler dpm --steps 4",
        "--sampler dpm --steps 4 --spacing linspace",
    ];
    let images: Vec<_> = options
        .iter()
        .enumerate()
        .map(|(k, options)| draw(&run, &format!("--num 1 {options}"), &k.to_string()))
        .collect();
    for (k, image) in images.iter().enumerate() {
        assert!(!images[..k].contains(image), "{} changes nothing", options[k]);
    }
    let document = run.ddpm("sample runs/tiny --num 1 --sampler ddpm --spacing 3,2").json();
    assert_eq!((&document["steps"], &document["sampler"]), (&5.into(), &"ddpm".into()));
    assert_eq!(run.ddpm("sample runs/tiny --num 1 --sampler dpm").json()["steps"], 20);
}

#[test]
fn a_trajectory_shows_the_way_of_the_first_images() {
    let run = trained();
    let document = run.ddpm("sample runs/tiny --num 3 --batch-size 2 --steps 5 --trajectory way.png").json();
    assert_eq!(document["files"], serde_json::json!(["samples.png", "way.png"]));
    let way = run.read("way.png");
    let number = |at: usize| u32::from_be_bytes(way[at..at + 4].try_into().unwrap());
    run.ddpm("sample runs/tiny --steps 2 --out way.png --trajectory way.png")
        .fails_with(2)
        .stderr_has("a place of its own");
    run.ddpm("sample runs/tiny --steps 2 --trajectory way.jpg").fails_with(2).stderr_has(".png");
    assert_eq!((number(16), number(20)), (5 * 66 + 2, 3 * 66 + 2), "5 stages of 3 images of 64 pixels");
}

#[test]
fn an_interpolation_begins_at_one_seed_and_ends_at_the_other() {
    let run = trained();
    let way = draw(&run, "--interpolate 3 8 --num 5 --steps 3 --batch-size 2", "way");
    let ends = [3, 8].map(|seed| draw(&run, &format!("--seed {seed} --num 1 --steps 3"), &format!("seed{seed}")));
    assert_eq!(way.len(), 5);
    assert!(way[0] == ends[0][0] && way[4] == ends[1][0] && way[2] != way[0] && way[2] != way[4]);
    let noisy = run.ddpm("sample runs/tiny --interpolate 3 8 --sampler ddpm --steps 3").fails_with(2);
    noisy.stderr_has("--interpolate 3 8").stderr_has("--sampler ddim");
    run.ddpm("sample runs/tiny --interpolate 3").fails_with(2).stderr_has("--interpolate");
}

#[test]
fn images_go_to_latents_and_back() {
    let run = trained();
    image_folder(&run, "images", 5);
    let invert = |options: &str| {
        run.ddpm(&format!("sample runs/tiny --invert images --num 5 --batch-size 2 --steps 10 --out way.png {options}"))
    };
    let document = invert("--refine 6 --latents latents.safetensors").json();
    let mse = document["mse"].as_f64().unwrap();
    assert!(mse < 1e-6, "{document}");
    assert!(document["psnr_db"].as_f64().unwrap() > 60.0, "{document}");
    assert_eq!((&document["images"], &document["steps"], &document["refinements"]), (&5.into(), &10.into(), &6.into()));
    let latents = read_safetensors(&run.read("latents.safetensors"));
    assert_eq!(latents["latents"].0, [5, 1, 16, 16]);
    let rough = invert("--refine 0").json()["mse"].as_f64().unwrap();
    assert!(rough > mse, "{rough} without refinements, {mse} with");
    invert("").succeeds().stdout_has("to latents and back").stdout_has("dB").stdout_has("way.png");

    invert("--sampler dpm").fails_with(2).stderr_has("--sampler ddim");
    invert("--eta 0.5").fails_with(2).stderr_has("leave eta out");
    invert("--guidance 1").fails_with(2).stderr_has("leave --guidance out");
    invert("--num 6").fails_with(2).stderr_has("--num");
    invert("--latents way.png").fails_with(2).stderr_has("--latents way.png: --out writes there too");
    assert_eq!(run.ddpm("sample runs/tiny --invert images --steps 2").json()["images"], 5, "all there are, below 16");
    run.ddpm("sample runs/tiny --refine 3").fails_with(2).stderr_has("--invert");
    run.ddpm("sample runs/tiny --invert images --num 5 --out folder/").fails_with(2).stderr_has(".png");
}

#[test]
fn a_sampler_that_cannot_be_is_refused_with_the_fix() {
    let run = trained();
    let sample = |options: &str| run.ddpm(&format!("sample runs/tiny --num 1 {options}")).fails_with(2);
    sample("--eta 1.5").stderr_has("eta = 1.5: expected a number from 0 to 1").stderr_has("help: ");
    sample("--eta -0.1").stderr_has("eta = -0.1");
    sample("--sampler ddpm --eta 0.5").stderr_has("expected 0 with the ddpm sampler").stderr_has("ddim");
    sample("--steps 1001").stderr_has("1 to 1000").stderr_has("ask for fewer steps");
    sample("--spacing 600,600").stderr_has("1 to 500 steps from section 1").stderr_has("fewer steps in that section");
    sample("--spacing ddim999").stderr_has("integer stride").stderr_has("try a divisor of 1000");
    sample("--spacing 20 --steps 30").stderr_has("expected 20").stderr_has("not both");
    sample("--spacing evenly").stderr_has("leading, trailing, linspace");
    sample("--sampler euler").stderr_has("ddpm, ddim or dpm");
    sample("--class 3").stderr_has("has no classes").stderr_has("leave --class out");
    sample("--guidance 2").stderr_has("was not trained for it").stderr_has("loss.label_dropout");
    sample("--class -1").stderr_has("--class -1: runs/tiny has no classes");
    sample("--guidance 1e300").stderr_has("--guidance");
    sample("--variance learned_range").stderr_has("fixed_small or fixed_large");
}

#[test]
fn an_interpolation_between_classes_is_refused_until_one_is_chosen() {
    let run = trained_run(&["train.steps=2", "model.num_class_embeds=10", "sample.every=0"]);
    run.ddpm("sample runs/tiny --interpolate 1 2 --num 3 --steps 2").fails_with(2).stderr_has("--class");
    run.ddpm("sample runs/tiny --interpolate 1 2 --num 3 --steps 2 --class 4").succeeds();
}

#[test]
fn eps_from_the_clamped_image_is_another_way_of_ddim_alone() {
    let run = trained();
    let plain = draw(&run, "--num 1 --steps 4", "plain");
    assert!(plain != draw(&run, "--num 1 --steps 4 --use-clipped-model-output", "clipped"));
    let refused = run.ddpm("sample runs/tiny --sampler dpm --use-clipped-model-output").fails_with(2);
    refused.stderr_has("use_clipped_model_output = true: expected false with the dpm sampler");
    let train = run.train().set("sample.sampler=ddpm").set("sample.use_clipped_model_output=true");
    train.fails_with(2).stderr_has("sample.use_clipped_model_output = true: expected false");
}

#[test]
fn two_commands_do_not_draw_into_one_folder() {
    let run = trained();
    let first = "sample runs/tiny --sampler ddpm --num 5000 --batch-size 1 --out images/";
    let mut drawing = run.ddpm(first).spawn();
    assert!(drawing.wait_until(|| run.exists("images/00000.png")));
    let second = run.ddpm("sample runs/tiny --num 5000 --seed 3 --out images/").fails_with(8);
    second.stderr_has("--out images/: held by process").stderr_has("another process draws into it");
    assert!(drawing.kill());
    run.ddpm("sample runs/tiny --num 2 --steps 2 --out other/").succeeds();
    assert_eq!(run.names("other"), ["00000.png", "00001.png"], "a lock was left");
}

/// The data of a run counts from where it was started, wherever the command is typed.
#[test]
fn nothing_is_written_into_the_data_of_a_run() {
    let run = fresh_run(&["data.source=photos", "train.steps=2", "checkpoint.every=0", "sample.every=0"]);
    image_folder(&run, "photos", 8);
    run.write("elsewhere/notes.txt", "");
    run.train().succeeds();
    for line in [
        "sample ../runs/tiny --num 1 --steps 2 --out ../photos/one.png",
        "export ../runs/tiny --samples 0 --to ../photos/model",
        "fork ../runs/tiny --to ../photos/fork",
        "plot ../runs/tiny --out ../photos/loss.png",
    ] {
        run.ddpm(line).in_folder("elsewhere").fails_with(2).stderr_has("lies inside the data");
    }
    run.ddpm("export runs/tiny --samples 0 --to photos/model")
        .fails_with(2)
        .stderr_has("--to photos/model: lies inside the data");
    assert_eq!(run.names("photos").len(), 8);
    run.ddpm("fork ../runs/tiny --to ../runs/fork").in_folder("elsewhere").succeeds();
}
