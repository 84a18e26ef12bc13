//! A model as diffusers publishes it (`tests/fixtures/diffusers`, made by `scripts/make-exchange-fixture.py`), and helpers for
//! it and for exports.

use std::fs;

use serde_json::Value;

use crate::binary::repository;
use crate::fixtures::{read_safetensors, safetensors_file};
use crate::place::{Place, empty_place};

/// A tensor of a file: name, shape, values.
pub type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// Where the weights are in a folder.
pub const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn fixture(path: &str) -> Vec<u8> {
    fs::read(repository().join("tests/fixtures/diffusers").join(path)).unwrap()
}

/// A JSON file of the fixture.
pub fn fixture_json(path: &str) -> Value {
    serde_json::from_slice(&fixture(path)).unwrap()
}

/// A place with the folder that diffusers wrote, as `theirs`, and the images `images`.
pub fn published() -> Place {
    let place = empty_place();
    for file in ["model_index.json", "unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"] {
        place.write(&format!("theirs/{file}"), fixture(&format!("model/{file}")));
    }
    place.write("in.safetensors", fixture("forward.safetensors"));
    for index in 0..fixture_json("expected.json")["batch_size"].as_u64().unwrap() {
        place.write(&format!("images/{index}.png"), fixture("image.png"));
    }
    place
}

/// A JSON file.
pub fn document(place: &Place, path: &str) -> Value {
    serde_json::from_slice(&place.read(path)).unwrap()
}

/// Changes one key of a JSON file.
pub fn change(place: &Place, path: &str, key: &str, value: Value) {
    let mut document = document(place, path);
    document[key] = value;
    place.write(path, document.to_string());
}

/// The files below a folder, by their name in it.
pub fn files(place: &Place, folder: &str) -> Vec<(String, Vec<u8>)> {
    let inside = |path: String| path[folder.len() + 1..].to_owned();
    place.files(folder).into_iter().map(|(path, bytes)| (inside(path), bytes)).collect()
}

/// Asserts that two folders hold the same files.
#[track_caller]
pub fn assert_same_files(place: &Place, a: &str, b: &str) {
    let (a, b) = (files(place, a), files(place, b));
    assert_eq!(a.iter().map(|file| &file.0).collect::<Vec<_>>(), b.iter().map(|file| &file.0).collect::<Vec<_>>());
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert!(a == b, "{name} differs:\n{}\n{}", String::from_utf8_lossy(a), String::from_utf8_lossy(b));
    }
}

/// The network's output for the fixture's input, and the error relative to what diffusers computed.
#[track_caller]
pub fn forward_error(place: &Place, model: &str) -> f32 {
    place.ddpm(&format!("forward {model} --input in.safetensors --to out.safetensors")).succeeds();
    let got = read_safetensors(&place.read("out.safetensors"))["output"].1.clone();
    let want = read_safetensors(&fixture("forward.safetensors"))["output"].1.clone();
    let largest = want.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    assert!(got.len() == want.len() && got.iter().all(|value| value.is_finite()));
    got.iter().zip(&want).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// Writes the weights of `theirs` again after `edit`.
pub fn edit_weights(place: &Place, edit: impl Fn(&mut Vec<NamedTensor>)) {
    let path = format!("theirs/{WEIGHTS}");
    let mut tensors: Vec<_> = read_safetensors(&place.read(&path)).into_iter().map(|(n, (s, d))| (n, s, d)).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    edit(&mut tensors);
    let named: Vec<_> =
        tensors.iter().map(|(name, shape, data)| (name.as_str(), shape.clone(), data.clone())).collect();
    place.write(&path, safetensors_file(&named, &[]));
}
