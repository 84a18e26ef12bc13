//! Every network that `scripts/make-fixtures.py` had diffusers compute, through `ddpm forward` on a diffusers folder: the
//! way any user would compare.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;

use ddpm_tests::fixtures::{Tensor, read_safetensors, safetensors_file};
use ddpm_tests::{Place, empty_place, repository};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Of the largest output.
const OUTPUT_TOLERANCE: f64 = 1e-5;
/// Of a layer's largest gradient.
const GRADIENT_TOLERANCE: f64 = 1e-4;

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

struct Fixture {
    name: String,
    config: Value,
    floats: Tensors,
    integers: Vec<(String, Vec<usize>, Vec<i64>)>,
}

fn fixtures() -> Vec<Fixture> {
    let folder = repository().join("crates/model/tests/fixtures");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| read(path.file_stem().unwrap().to_str().unwrap(), &fs::read(path).unwrap())).collect()
}

fn read(name: &str, bytes: &[u8]) -> Fixture {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let fixture: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["fixture"]).unwrap();
    let file = SafeTensors::deserialize(bytes).unwrap();
    let integers = file.iter().filter(|(_, view)| view.dtype() == Dtype::I64).map(|(key, view)| {
        let values = view.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        (key.to_owned(), view.shape().to_vec(), values)
    });
    let (config, integers) = (fixture["config"].clone(), integers.collect());
    Fixture { name: name.to_owned(), config, floats: read_safetensors(bytes), integers }
}

/// Writes the model as a diffusers folder `NAME` and its input as `NAME.safetensors`.
fn publish(place: &Place, fixture: &Fixture) {
    let Fixture { name, config, floats, integers } = fixture;
    let tensors = |wanted: &dyn Fn(&str) -> Option<String>| -> Vec<u8> {
        let named: Vec<_> = floats.iter().filter_map(|(key, value)| Some((wanted(key)?, value))).collect();
        let floats: Vec<Tensor<'_, f32>> =
            named.iter().map(|(key, (shape, data))| (key.as_str(), shape.clone(), data.clone())).collect();
        let integers: Vec<Tensor<'_, i64>> =
            integers.iter().map(|(key, shape, data)| (key.as_str(), shape.clone(), data.clone())).collect();
        let is_input = wanted("sample").is_some();
        safetensors_file(&floats, if is_input { &integers } else { &[] })
    };
    let learned = config["out_channels"] != config["in_channels"];
    let scheduler = json!({"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
        "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": true,
        "variance_type": if learned { "learned_range" } else { "fixed_small" }});
    let mut unet = config.clone();
    unet["_class_name"] = "UNet2DModel".into();
    place.write(&format!("{name}/unet/config.json"), unet.to_string());
    place.write(&format!("{name}/scheduler/scheduler_config.json"), scheduler.to_string());
    place.write(
        &format!("{name}/model_index.json"),
        json!({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]})
            .to_string(),
    );
    let weight = |key: &str| key.strip_prefix("weight.").map(str::to_owned);
    place.write(&format!("{name}/unet/diffusion_pytorch_model.safetensors"), tensors(&weight));
    let input = |key: &str| ["sample", "target"].contains(&key).then(|| key.to_owned());
    place.write(&format!("{name}.safetensors"), tensors(&input));
}

/// Largest difference, as a share of `largest`.
fn error(got: &[f32], want: &[f32], largest: f32) -> f64 {
    assert!(got.len() == want.len() && got.iter().all(|value| value.is_finite()));
    let worst = got.iter().zip(want).fold(0.0f64, |worst, (a, b)| worst.max(f64::from((a - b).abs())));
    worst / f64::from(largest)
}

fn largest<'a>(values: impl IntoIterator<Item = &'a f32>) -> f32 {
    values.into_iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// Queries, keys and values as one layer: the bias of the keys cancels in the softmax, so its own gradient is rounding error.
fn layer(key: &str) -> String {
    ["to_q", "to_k", "to_v"].iter().fold(key.to_owned(), |key, part| key.replace(part, "qkv"))
}

#[test]
fn diffusers_networks_give_diffusers_numbers_through_the_command_line() {
    let place = empty_place();
    let fixtures = fixtures();
    assert!(fixtures.len() >= 25, "some fixtures are gone");
    // A network of 6 channels in and 3 out is no diffusion model; the model crate's own test runs it.
    let channels = |fixture: &Fixture, key: &str| fixture.config[key].as_u64().unwrap();
    let is_model = |fixture: &&Fixture| {
        let (inputs, outputs) = (channels(fixture, "in_channels"), channels(fixture, "out_channels"));
        matches!(inputs, 1 | 3) && (outputs == inputs || outputs == 2 * inputs)
    };
    let models: Vec<&Fixture> = fixtures.iter().filter(is_model).collect();
    assert!(models.len() >= 20, "only {} of {} fixtures are models", models.len(), fixtures.len());
    for fixture in models {
        publish(&place, fixture);
        let (name, gradients) = (&fixture.name, fixture.floats.contains_key("loss"));
        let forward = place.ddpm(&format!("forward {name} --input {name}.safetensors --to out.safetensors"));
        if gradients {
            forward.arg("--gradients").succeeds()
        } else {
            forward.succeeds()
        };
        let got = read_safetensors(&place.read("out.safetensors"));
        let want = &fixture.floats["output"].1;
        let off = error(&got["output"].1, want, largest(want));
        assert!(off < OUTPUT_TOLERANCE, "{name}: output off by {off:e}");
        if !gradients {
            continue;
        }
        let loss = &fixture.floats["loss"].1;
        assert!(error(&got["loss"].1, loss, loss[0]) < OUTPUT_TOLERANCE, "{name}: loss");
        let theirs = fixture.floats.iter().filter(|(key, _)| key.starts_with("grad."));
        for (key, (_, want)) in theirs.clone() {
            let whole =
                theirs.clone().filter(|(other, _)| layer(other) == layer(key)).flat_map(|(_, (_, values))| values);
            let off = error(&got[key].1, want, largest(whole));
            assert!(off < GRADIENT_TOLERANCE, "{name}: {key} off by {off:e}");
        }
    }
}
