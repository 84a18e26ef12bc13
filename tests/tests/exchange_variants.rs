//! Models as they are found: half precision, several files, variants, folders that a training left, other schedulers, keys of other
//! versions. Each is the published model in another form, so its output is the same.
#![allow(clippy::unwrap_used)]

use std::fs;

use ddpm_tests::Place;
use ddpm_tests::diffusers::{NamedTensor, WEIGHTS, change, document, edit_weights, forward_error, published};
use ddpm_tests::fixtures::{read_safetensors, safetensors_of};
use safetensors::Dtype;
use serde_json::json;

/// The published model with weights that have the bits of bf16 alone, and its output's error.
fn rounded() -> (Place, f32) {
    let place = published();
    edit_weights(&place, |tensors| {
        tensors
            .iter_mut()
            .flat_map(|tensor| &mut tensor.2)
            .for_each(|value| *value = f32::from_bits(value.to_bits() & 0xFFFF_0000));
    });
    let error = forward_error(&place, "theirs");
    (place, error)
}

fn weights(place: &Place) -> Vec<NamedTensor> {
    let mut tensors: Vec<_> =
        read_safetensors(&place.read(&format!("theirs/{WEIGHTS}"))).into_iter().map(|(n, (s, d))| (n, s, d)).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// A file of some of the weights in bf16.
fn in_bf16(tensors: &[NamedTensor]) -> Vec<u8> {
    let bytes =
        |values: &[f32]| values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> =
        tensors.iter().map(|(name, shape, data)| (name.as_str(), shape.clone(), bytes(data))).collect();
    safetensors_of(Dtype::BF16, &tensors)
}

#[test]
fn weights_in_half_precision_are_read_exactly_under_any_variants_name() {
    let (place, error) = rounded();
    let bytes = in_bf16(&weights(&place));
    fs::remove_file(place.path(format!("theirs/{WEIGHTS}"))).unwrap();
    place.write("theirs/unet/diffusion_pytorch_model.fp16.safetensors", &bytes);
    assert_eq!(forward_error(&place, "theirs"), error);
    fs::rename(
        place.path("theirs/unet/diffusion_pytorch_model.fp16.safetensors"),
        place.path(format!("theirs/{WEIGHTS}")),
    )
    .unwrap();
    assert_eq!(forward_error(&place, "theirs"), error);
}

#[test]
fn weights_in_several_files_are_read_by_their_index() {
    let (place, error) = rounded();
    let tensors = weights(&place);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let names =
        ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (name, part) in names.into_iter().zip([first, second]) {
        place.write(&format!("theirs/unet/{name}"), in_bf16(part));
        map.extend(part.iter().map(|tensor| (tensor.0.clone(), json!(name))));
    }
    fs::remove_file(place.path(format!("theirs/{WEIGHTS}"))).unwrap();
    let index = "theirs/unet/diffusion_pytorch_model.safetensors.index.json";
    place.write(index, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string());
    assert_eq!(forward_error(&place, "theirs"), error);
    map.insert("conv_in.bias".to_owned(), json!("../../in.safetensors"));
    place.write(index, json!({"weight_map": map}).to_string());
    place
        .ddpm("sample theirs")
        .fails_with(6)
        .stderr_has("`conv_in.bias` is in \"../../in.safetensors\", expected a file of this folder");
    map.insert("conv_in.bias".to_owned(), json!(names[1]));
    map.insert("more.bias".to_owned(), json!(names[1]));
    place.write(index, json!({"weight_map": map}).to_string());
    place.ddpm("sample theirs").fails_with(6).stderr_has("`more.bias` is in none of the files");
}

#[test]
fn what_a_training_with_diffusers_saves_on_its_way_is_a_model() {
    let place = published();
    for name in ["unet", "unet_ema"] {
        for (path, bytes) in place.files("theirs/unet") {
            place.write(&path.replace("theirs/unet", &format!("theirs/checkpoint-500/{name}")), bytes);
        }
    }
    for (key, value) in [("decay", json!(0.9999)), ("inv_gamma", json!(1.0)), ("optimization_step", json!(10))] {
        change(&place, "theirs/checkpoint-500/unet_ema/config.json", key, value);
    }
    for model in ["theirs/checkpoint-500", "theirs/checkpoint-500/unet_ema", "theirs/unet"] {
        assert!(forward_error(&place, model) < 1e-5, "{model}");
    }
    place.ddpm("sample theirs/checkpoint-500/unet_ema --num 1 --steps 1").succeeds().stderr_lacks("left aside");
    fs::rename(place.path("theirs/checkpoint-500/unet"), place.path("alone")).unwrap();
    let refused = place.ddpm("sample alone").fails_with(6);
    refused.stderr_has("no scheduler/scheduler_config.json here or in the two folders above");
}

#[test]
fn schedulers_that_noise_as_ddpm_does_are_read() {
    let place = published();
    let scheduler = "theirs/scheduler/scheduler_config.json";
    for name in ["PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"] {
        change(&place, scheduler, "_class_name", json!(name));
        change(&place, scheduler, "variance_type", json!(null));
        change(&place, scheduler, "solver_order", json!(2));
        let sampled = place.ddpm("sample theirs --num 1 --steps 2").succeeds();
        sampled.stderr_has("solver_order = 2 is left aside: it is no part of what the weights have learnt");
    }
    for (key, value, expected) in
        [("use_flow_sigmas", json!(true), "false"), ("timestep_type", json!("continuous"), "\"discrete\"")]
    {
        change(&place, scheduler, key, value.clone());
        place.ddpm("sample theirs").fails_with(6).stderr_has(&format!("{key} = {value}: expected {expected}"));
        change(&place, scheduler, key, json!(null));
    }
    change(&place, scheduler, "_class_name", json!("EDMEulerScheduler"));
    let refused = place
        .ddpm("sample theirs")
        .fails_with(6)
        .stderr_has("_class_name = \"EDMEulerScheduler\", expected DDPMScheduler");
    refused.stderr_has("only schedulers that noise images as DDPM does are read");
}

#[test]
fn keys_of_other_versions_and_of_samplers_are_left_aside_by_name() {
    let place = published();
    change(&place, "theirs/unet/config.json", "new_in_diffusers_9", json!(true));
    let size = document(&place, "theirs/unet/config.json")["sample_size"].clone();
    change(&place, "theirs/unet/config.json", "sample_size", json!([size, size]));
    change(&place, "theirs/scheduler/scheduler_config.json", "thresholding", json!(true));
    let sampled = place.ddpm("sample theirs --num 1 --steps 1").succeeds();
    sampled
        .stderr_has("theirs/unet/config.json: new_in_diffusers_9 = true is left aside")
        .stderr_has("thresholding = true");
    assert!(forward_error(&place, "theirs") < 1e-5);
}

#[test]
fn options_of_other_schedulers_that_are_off_are_no_news() {
    let (place, _) = rounded();
    let scheduler = "theirs/scheduler/scheduler_config.json";
    change(&place, scheduler, "_class_name", json!("DPMSolverMultistepScheduler"));
    for key in ["use_karras_sigmas", "use_lu_lambdas", "thresholding", "use_flow_sigmas"] {
        change(&place, scheduler, key, json!(false));
    }
    place.ddpm("sample theirs --num 1 --steps 2").succeeds().stderr_lacks("left aside");
    change(&place, scheduler, "use_karras_sigmas", json!(true));
    place.ddpm("sample theirs --num 1 --steps 2").succeeds().stderr_has("use_karras_sigmas = true is left aside");
}
