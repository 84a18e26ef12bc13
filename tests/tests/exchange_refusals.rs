//! Folders that are not a supported model, and places that are taken: refused by name, with nothing left behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use ddpm_tests::diffusers::{NamedTensor, WEIGHTS, change, edit_weights, forward_error, published};
use ddpm_tests::fixtures::safetensors_file;
use ddpm_tests::{Place, fresh_run, trained_run};
use serde_json::{Value, json};

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
    for (file, key, value, message) in [
        (unet, "down_block_types", json!(["SkipDownBlock2D", "DownBlock2D"]), "SkipDownBlock2D"),
        (unet, "time_embedding_type", json!("fourier"), "random Fourier features of the noise level"),
        (unet, "up_block_types", json!(["UpBlock2D", "SkipUpBlock2D"]), "the blocks of score-based models"),
        (unet, "class_embed_type", json!("identity"), "labels here are numbers"),
        (unet, "mid_block_type", json!("UNetMidBlock2DCrossAttn"), "mid_block_type"),
        (
            unet,
            "sample_size",
            json!([16, 32, 3]),
            "sample_size = [16,32,3]: invalid length 3, expected a whole number, or [height, width]",
        ),
        (unet, "sample_size", json!([16, 9000]), "sample_size = 9000: expected at most 4096"),
        (unet, "sample_size", json!([16, 17]), "images of 17 x 16 pixels cannot be halved"),
        (unet, "sample_size", json!(null), "sample_size = null"),
        (unet, "block_out_channels", json!([8, 9]), "norm_num_groups"),
        (
            unet,
            "block_out_channels",
            json!([8, 1_000_000_000_000_u64]),
            "block_out_channels = 1000000000000: expected at most",
        ),
        (unet, "layers_per_block", json!(-1), "layers_per_block = -1"),
        (unet, "_class_name", json!("UNet2DConditionModel"), "UNet2DConditionModel"),
        (unet, "out_channels", json!(6), "out_channels = 6: expected 3"),
        (scheduler, "variance_type", json!("fixed_large_log"), "variance_type = \"fixed_large_log\""),
        (scheduler, "variance_type", json!("learned"), "variance_type = \"learned\""),
        (scheduler, "trained_betas", json!([0.1, 0.2]), "trained_betas"),
        (scheduler, "rescale_betas_zero_snr", json!(true), "rescale_betas_zero_snr = true: expected false"),
        (scheduler, "beta_schedule", json!("laplace"), "beta_schedule = \"laplace\""),
        (scheduler, "beta_start", json!(2.0), "beta_start"),
        (scheduler, "_class_name", json!("EDMEulerScheduler"), "EDMEulerScheduler"),
    ] {
        let place = published();
        change(&place, &format!("theirs/{file}"), key, value);
        place.ddpm("import theirs --to x").fails_with(6).stderr_has("theirs").stderr_has(message);
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
    let refused = |edit: &dyn Fn(&mut Vec<NamedTensor>), messages: &[&str]| {
        let place = published();
        edit_weights(&place, edit);
        let failed = place.ddpm("import theirs --to x").fails_with(6).stderr_has("diffusion_pytorch_model.safetensors");
        messages.iter().fold(failed, |failed, message| failed.stderr_has(message));
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
    refused.stderr_has("f32, f16 or bf16 weights as save_pretrained writes them");
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

#[test]
fn weights_that_are_no_numbers_or_there_twice_are_refused() {
    let place = published();
    edit_weights(&place, |tensors| {
        tensors.iter_mut().filter(|t| t.0 == "conv_in.bias").for_each(|t| t.2[1] = f32::NAN);
    });
    place.ddpm("import theirs --to x").fails_with(6).stderr_has("`conv_in.bias` holds values that are no numbers");
    let place = published();
    edit_weights(&place, |tensors| {
        let old: Vec<NamedTensor> = tensors
            .iter()
            .filter(|t| t.0.contains("to_q."))
            .map(|(name, shape, data)| (name.replace("to_q.", "query."), shape.clone(), data.clone()))
            .collect();
        assert!(!old.is_empty());
        tensors.extend(old);
    });
    place.ddpm("import theirs --to x").fails_with(6).stderr_has("under its old and its new name");
}

#[test]
fn models_that_cannot_be_trained_here_are_refused_at_the_import() {
    let place = published();
    change(&place, "theirs/unet/config.json", "in_channels", json!(4));
    place.ddpm("import theirs --to x").fails_with(6).stderr_has("in_channels = 4: expected 1 (grey) or 3 (RGB)");
    let place = published();
    change(&place, "theirs/unet/config.json", "class_embed_type", json!("timestep"));
    place.ddpm("import theirs --to x").fails_with(6);
    assert!(!place.exists("x"));
}

/// A folder from the hub belongs to someone else: nothing of its record that names a device, a place or an address is used.
#[test]
fn the_record_of_a_folder_sets_no_device_place_or_address_and_no_impossible_value() {
    let run = trained_run(&["train.steps=2", "sample.every=0"]);
    run.ddpm("export runs/tiny --to out --samples 0").succeeds();
    let with = |section: &str, key: &str, value: Value| {
        let mut facts: Value = serde_json::from_slice(&run.read("out/ddpm.json")).unwrap();
        facts["config"][section][key] = value;
        run.write("out/ddpm.json", facts.to_string());
    };
    with("run", "device", json!("cuda:7"));
    with("log", "metrics_addr", json!("0.0.0.0:9999"));
    with("run", "name", json!("<b>\n# big `x`"));
    run.ddpm("import out --to clean").succeeds();
    let config = run.text("clean/config.toml");
    assert!(!config.contains("cuda:7") && !config.contains("9999") && !config.contains("<b>"), "{config}");
    run.ddpm("export clean --to again --samples 0").succeeds();
    let card = run.text("again/README.md");
    assert!(card.contains("# &lt;b&gt; \\# big \\`x\\`\n"), "{card}");
    with("train", "ema_decays", json!([0.9, 0.9]));
    run.ddpm("import out --to bad").fails_with(6).stderr_has("train.ema_decays").stderr_has("different numbers");
    assert!(!run.exists("bad"));
}

#[test]
fn an_import_is_not_left_behind_without_a_word() {
    let place = published();
    place.ddpm("import theirs --to runs/mine").succeeds();
    let train = |options: &str| {
        let settings = "--set data.source=images --set train.batch_size=2 --max-steps 1 --set sample.every=0";
        place.ddpm(&format!("train runs/mine/config.toml {settings} {options}"))
    };
    train("--run-dir other").fails_with(2).stderr_has("lies beside imported weights").stderr_has("--run-dir runs/mine");
    assert!(!place.exists("other"));
    train("--run-dir other --resume runs/mine/checkpoints/step-000000000").succeeds().resumes_at(0);
    std::fs::rename(place.path("runs/mine"), place.path("moved")).unwrap();
    // A directory that was moved is the run where it is now.
    let moved =
        "train moved/config.toml --set data.source=images --set train.batch_size=2 --max-steps 1 --set sample.every=0";
    place.ddpm(moved).succeeds().resumes_at(0).stderr_has("moved/checkpoints/step-000000000");
}
