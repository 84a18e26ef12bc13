//! Folders that are no model of ours, and places that are taken: refused by name, with nothing left behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use ddpm_tests::diffusers::{NamedTensor, WEIGHTS, change, edit_weights, forward_error, published};
use ddpm_tests::fixtures::safetensors_file;
use ddpm_tests::{Place, fresh_run, trained_run};
use serde_json::json;

fn trained() -> Place {
    trained_run(&["train.steps=1", "checkpoint.every=0", "sample.every=0"])
}

#[test]
fn nothing_is_overwritten() {
    let run = trained();
    run.write("taken/file", "mine");
    run.ddpm("export runs/tiny --to taken").fails_with(2).stderr_has("--to taken: holds files already");
    run.ddpm("export runs/tiny --to tiny.toml").fails_with(2).stderr_has("--to tiny.toml: is a file");
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    run.ddpm("import out --to runs/tiny").fails_with(2).stderr_has("holds files already");
    fs::create_dir(run.path("empty")).unwrap();
    run.ddpm("export runs/tiny --to empty --samples 0").succeeds();
    assert_eq!(run.names("taken"), ["file"]);
    assert!(run.names(".").iter().all(|name| !name.starts_with(".tmp")), "{:?}", run.names("."));
}

#[test]
fn what_is_no_model_of_ours_is_refused_by_name() {
    let place = published();
    fs::create_dir(place.path("nothing")).unwrap();
    place
        .ddpm("import nothing --to x")
        .fails_with(6)
        .stderr_has("no unet/config.json")
        .stderr_has("a diffusers folder");
    place.ddpm("import gone --to x").fails_with(6).stderr_has("gone: no such directory");
    place.ddpm("sample gone").fails_with(6).stderr_has("a diffusers folder");
    for command in
        ["import hf://google/ddpm-cifar10-32 --to x", "sample hf://google/ddpm-cifar10-32", "schedule hf://a/b"]
    {
        place.ddpm(command).fails_with(2).stderr_has("hf://").stderr_has("hf download");
    }
    assert!(!place.exists("x"), "a refused import left something");
}

#[test]
fn pickles_are_not_read_and_the_message_says_why() {
    let place = published();
    fs::rename(place.path(format!("theirs/{WEIGHTS}")), place.path("theirs/unet/diffusion_pytorch_model.bin")).unwrap();
    for command in ["import theirs --to x", "sample theirs"] {
        let refused = place.ddpm(command).fails_with(6).stderr_has("diffusion_pytorch_model.bin: a pickle");
        refused.stderr_has("run any code").stderr_has("save_pretrained");
    }
}

#[test]
fn a_config_that_this_version_cannot_run_is_refused_by_key_and_value() {
    let unet = "unet/config.json";
    let scheduler = "scheduler/scheduler_config.json";
    for (file, key, value, told) in [
        (unet, "down_block_types", json!(["SkipDownBlock2D", "DownBlock2D"]), "SkipDownBlock2D"),
        (unet, "time_embedding_type", json!("fourier"), "random Fourier features of the noise level"),
        (unet, "up_block_types", json!(["UpBlock2D", "SkipUpBlock2D"]), "the blocks of score-based models"),
        (unet, "class_embed_type", json!("identity"), "labels here are numbers"),
        (unet, "mid_block_type", json!("UNetMidBlock2DCrossAttn"), "mid_block_type"),
        (unet, "sample_size", json!([16, 32]), "sample_size = [16,32]"),
        (unet, "sample_size", json!(null), "sample_size = null"),
        (unet, "block_out_channels", json!([8, 9]), "norm_num_groups"),
        (
            unet,
            "block_out_channels",
            json!([8, 1_000_000_000_000_u64]),
            "block_out_channels = 1000000000000: expected at most",
        ),
        (unet, "layers_per_block", json!(-1), "layers_per_block = -1"),
        (unet, "new_in_diffusers_9", json!(true), "new_in_diffusers_9 = true: a key that this version does not know"),
        (unet, "_class_name", json!("UNet2DConditionModel"), "UNet2DConditionModel"),
        (unet, "out_channels", json!(6), "out_channels = 6: expected 3"),
        (scheduler, "variance_type", json!("fixed_large_log"), "variance_type = \"fixed_large_log\""),
        (scheduler, "variance_type", json!("learned"), "variance_type = \"learned\""),
        (scheduler, "trained_betas", json!([0.1, 0.2]), "trained_betas"),
        (scheduler, "rescale_betas_zero_snr", json!(true), "rescale_betas_zero_snr = true: expected false"),
        (scheduler, "beta_schedule", json!("laplace"), "beta_schedule = \"laplace\""),
        (scheduler, "beta_start", json!(2.0), "beta_start"),
        (scheduler, "_class_name", json!("EulerDiscreteScheduler"), "EulerDiscreteScheduler"),
    ] {
        let place = published();
        change(&place, &format!("theirs/{file}"), key, value);
        place.ddpm("import theirs --to x").fails_with(6).stderr_has("theirs").stderr_has(told);
        assert!(!place.exists("x"), "{key}");
    }
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    let place = published();
    for (file, key, value) in [
        ("unet/config.json", "num_train_timesteps", json!(1000)),
        ("unet/config.json", "a_new_key", json!(null)),
        ("scheduler/scheduler_config.json", "timestep_spacing", json!("trailing")),
        ("scheduler/scheduler_config.json", "_class_name", json!("DDIMScheduler")),
        ("scheduler/scheduler_config.json", "set_alpha_to_one", json!(false)),
        ("model_index.json", "_class_name", json!("DDIMPipeline")),
    ] {
        change(&place, &format!("theirs/{file}"), key, value);
    }
    assert!(forward_error(&place, "theirs") < 1e-5);
}

#[test]
fn weights_that_do_not_fit_are_refused_by_key() {
    let refused = |edit: &dyn Fn(&mut Vec<NamedTensor>), told: &[&str]| {
        let place = published();
        edit_weights(&place, edit);
        let failed = place.ddpm("import theirs --to x").fails_with(6).stderr_has("diffusion_pytorch_model.safetensors");
        told.iter().fold(failed, |failed, told| failed.stderr_has(told));
        assert!(!place.exists("x"));
    };
    refused(&|tensors| tensors.retain(|tensor| tensor.0 != "conv_in.bias"), &["`conv_in.bias` is missing", "[8]"]);
    refused(
        &|tensors| {
            for (_, shape, data) in tensors.iter_mut().filter(|tensor| tensor.0 == "conv_in.bias") {
                (*shape, *data) = (vec![4], vec![0.0; 4]);
            }
        },
        &["`conv_in.bias` has shape [4], expected [8]"],
    );
    refused(&|tensors| tensors.push(("more.weight".into(), vec![1], vec![0.0])), &["`more.weight` is none of"]);
}

#[test]
fn weights_of_another_type_are_refused_by_key() {
    let place = published();
    place.write(&format!("theirs/{WEIGHTS}"), safetensors_file(&[], &[("conv_in.bias", vec![8], vec![0; 8])]));
    let refused = place.ddpm("import theirs --to x").fails_with(6).stderr_has("\"conv_in.bias\" is I64, expected F32");
    refused.stderr_has("f32 weights as save_pretrained writes them");
}

#[test]
fn damaged_files_are_refused_by_name() {
    let files = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", WEIGHTS];
    for file in files {
        for bytes in [&b"{"[..], b"[]", b"\xff\xfe", b""] {
            let place = published();
            place.write(&format!("theirs/{file}"), bytes);
            place
                .ddpm("import theirs --to x")
                .fails_with(6)
                .stderr_has(Path::new(file).file_name().unwrap().to_str().unwrap());
        }
    }
    let run = trained();
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    change(&run, "out/ddpm.json", "step", json!("many"));
    run.ddpm("sample out").fails_with(6).stderr_has("out/ddpm.json").stderr_has("delete it");
}

#[test]
fn an_export_of_nothing_is_refused() {
    let run = fresh_run(&[]);
    run.ddpm("export runs/tiny --to out").fails_with(6).stderr_has("runs/tiny: no such directory");
    run.ddpm("export tiny.toml --to out").fails_with(6).stderr_has("tiny.toml");
    assert!(!run.exists("out"));
}
