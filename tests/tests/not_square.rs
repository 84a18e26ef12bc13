//! Networks of images that are higher or wider than the other side: data, training, drawing, measuring, exchange.
#![allow(clippy::unwrap_used)]

use ddpm_tests::diffusers::document;
use ddpm_tests::{Place, assert_same_run, fresh_run, trained_run};
use image::{Rgb, RgbImage};
use serde_json::json;

/// 12 pixels high and 20 wide.
const WIDE: [&str; 5] =
    ["data.image_size=[12, 20]", "data.source=wide", "data.channels=3", "train.steps=6", "sample.every=0"];

/// Images of several shapes.
fn images(place: &Place) {
    for (k, (width, height)) in [(20, 12), (40, 24), (48, 30), (20, 12), (25, 15), (20, 12)].into_iter().enumerate() {
        let image = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 6) as u8, (y * 8) as u8, (k * 40) as u8]));
        std::fs::create_dir_all(place.path("wide")).unwrap();
        image.save(place.path(format!("wide/{k}.png"))).unwrap();
    }
}

fn fresh(settings: &[&str]) -> Place {
    let run = fresh_run(&[&WIDE[..], settings].concat());
    images(&run);
    run
}

fn trained(settings: &[&str]) -> Place {
    let run = fresh(settings);
    run.train().succeeds();
    run
}

/// Width and height.
fn size_of(run: &Place, path: &str) -> (u32, u32) {
    image::image_dimensions(run.path(path)).unwrap()
}

#[test]
fn a_run_of_wide_images_resumes_to_the_bit() {
    let settings = ["train.steps=12", "sample.every=6", "checkpoint.every=6", "data.crop=random", "data.flip=true"];
    let parts = fresh(&settings);
    parts.train().max_steps(6).succeeds();
    parts.train().succeeds().resumes_at(6);
    let whole = trained(&settings);
    assert_same_run(&parts, &whole);
    // One image three times as large, in a margin of 2.
    assert_eq!(size_of(&whole, "runs/tiny/samples/step-000000012.png"), (3 * 20 + 4, 3 * 12 + 4));
    let other = parts.train().set("data.image_size=[20, 12]").fails_with(2);
    other.stderr_has("data.image_size: [12, 20] in the checkpoint, [20, 12] now");
}

#[test]
fn pictures_of_every_kind_have_the_networks_shape() {
    let run = trained(&[]);
    run.ddpm("sample runs/tiny --num 3 --steps 2 --out single/").succeeds();
    assert_eq!(size_of(&run, "single/00000.png"), (20, 12));
    let cell = |count: u32, side: u32| count * (3 * side + 2) + 2;
    run.ddpm("sample runs/tiny --num 4 --steps 2 --out grid.png --trajectory way.png").succeeds();
    assert_eq!(size_of(&run, "grid.png"), (cell(2, 20), cell(2, 12)));
    assert_eq!(size_of(&run, "way.png"), (cell(2, 20), cell(4, 12)));
    run.ddpm("sample runs/tiny --interpolate 1 2 --num 5 --steps 2 --out between.png").succeeds();
    assert_eq!(size_of(&run, "between.png"), (cell(5, 20), cell(1, 12)));
    run.ddpm("sample runs/tiny --invert wide --num 2 --steps 2 --out back.png").succeeds();
    assert_eq!(size_of(&run, "back.png"), (cell(2, 20), cell(3, 12)));
    let nll = run.ddpm("eval nll runs/tiny --data wide --num 2 --steps 3").json();
    assert!(nll["bits_per_dim"].as_f64().is_some_and(f64::is_finite), "{nll}");
}

#[test]
fn both_sides_go_to_diffusers_and_come_back() {
    let run = trained(&[]);
    run.ddpm("export runs/tiny --to out --samples 1").succeeds();
    assert_eq!(document(&run, "out/unet/config.json")["sample_size"], json!([12, 20]));
    let card = run.text("out/README.md");
    assert!(card.contains("A diffusion model (DDPM) of 20x12 images with 3 channels"), "{card}");
    assert!(card.contains("image_size = [12, 20]"), "{card}");
    let drawn = |model: &str, out: &str| {
        run.ddpm(&format!("sample {model} --num 2 --steps 3 --out {out}/")).succeeds();
        run.files(out).into_values().collect::<Vec<_>>()
    };
    run.ddpm("import out --to runs/back").succeeds().stdout_has("a run of 20x12 images with 3 channels");
    let (ours, back) = (drawn("runs/tiny", "a"), drawn("runs/back", "b"));
    assert!(ours == back && ours == drawn("out", "c"));
    let tuned = run.ddpm("train runs/back/config.toml --set data.source=wide --max-steps 1 --set sample.every=0");
    tuned.succeeds();
}

#[test]
fn a_conditional_models_card_draws_both_sides() {
    let classes = ["data.num_classes=2", "model.num_class_embeds=2", "data.source=classes"];
    let run = fresh(&classes);
    for (class, k) in [("a", 0), ("b", 1)] {
        std::fs::create_dir_all(run.path(format!("classes/{class}"))).unwrap();
        std::fs::copy(run.path(format!("wide/{k}.png")), run.path(format!("classes/{class}/{k}.png"))).unwrap();
    }
    run.train().succeeds();
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    let card = run.text("out/README.md");
    assert!(card.contains("torch.randn(4, unet.config.in_channels, *unet.config.sample_size)"), "{card}");
}

#[test]
fn wrong_sizes_are_refused_with_one_that_works() {
    let run = fresh(&[]);
    for (size, error, help) in [
        ("[12, 21]", "images of 21 x 12 pixels cannot be halved 1 times", "set data.image_size = [12, 22]"),
        ("[0, 20]", "data.image_size = [0, 20]: expected at least 1", "32 trains fast"),
        ("[12, 20, 3]", "data.image_size = [12, 20, 3]: expected a whole number, or [height, width]", ""),
        ("12x20", "data.image_size = \"12x20\": expected a whole number, or [height, width]", ""),
        ("[12, 99999]", "data.image_size = [12, 99999]: expected at most 4096", "a digit too many"),
    ] {
        let refused = run.train().set(&format!("data.image_size={size}")).fails_with(2);
        refused.stderr_has(error).stderr_has(help);
    }
    run.train().set("data.crop=none").fails_with(2).stderr_has("expects at most 20x12");
}

#[test]
fn a_run_is_checked_measured_and_packed_at_both_sides() {
    let run = fresh(&[]);
    let settings = WIDE.iter().map(|setting| format!(" --set {}", setting.replace(' ', ""))).collect::<String>();
    run.ddpm(&format!("config check tiny.toml{settings}")).succeeds().stdout_has("a run can start");
    run.ddpm(&format!("bench step tiny.toml --repeat 1{settings}")).succeeds();
    run.ddpm("data pack wide --size 12,20 --to packed").succeeds().stdout_has("6 images");
    run.ddpm("data inspect packed").succeeds().stdout_has("20x12 (6)");
    run.ddpm("data pack wide --size 12x20 --to other").fails_with(2).stderr_has("expected a number, or height,width");
    // Packed images are what training would have made of the others.
    let trained_on = |source: &str| {
        let run = trained(&[&format!("data.source={source}")]);
        run.read("runs/tiny/checkpoints/step-000000006/model.safetensors")
    };
    let from_photos = trained_on("wide");
    assert!(from_photos == trained_on(&run.path("packed").display().to_string()));
}

#[test]
fn equal_sides_are_the_same_run_as_one_number() {
    let run = trained_run(&["train.steps=10", "sample.every=0"]);
    run.train().set("data.image_size=[16, 16]").set("train.steps=20").succeeds().resumes_at(10);
}
