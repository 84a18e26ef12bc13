//! Every file in `configs/` gives the stated network, and those whose data is shipped train; and the commands about configurations.
#![allow(clippy::unwrap_used)]

use ddpm_tests::fixtures::read_safetensors;
use ddpm_tests::{Place, assert_fields, empty_place, fresh_run, trained_run};
use serde_json::Value;

#[test]
fn every_shipped_config_whose_data_is_shipped_makes_a_dry_run_without_warnings() {
    let place = Place::of_repository();
    let is_shipped = |preset: &String| {
        let document = place.ddpm(&format!("config show configs/{preset}")).json();
        let source = document["data.source"]["value"].as_str().unwrap();
        source.starts_with("builtin:") || place.exists(source)
    };
    let presets: Vec<String> = place.names("configs").into_iter().filter(is_shipped).collect();
    assert!(presets.contains(&"quickstart.toml".to_owned()) && presets.contains(&"emoji32.toml".to_owned()));
    for preset in presets {
        let train = place.ddpm(&format!("train configs/{preset} --dry-run --set train.batch_size=2"));
        train.succeeds().stdout_has("all well").stderr_lacks("warning");
    }
    assert!(!place.exists("runs"));
}

#[test]
fn every_shipped_config_resolves_to_what_its_file_says() {
    let place = Place::of_repository();
    for preset in place.names("configs") {
        let document = place.ddpm(&format!("config show configs/{preset}")).json();
        let name = preset.strip_suffix(".toml").unwrap();
        assert_eq!(document["run.name"]["value"], name);
        assert_eq!(document["run.dir"]["value"], format!("runs/{name}"));
        assert_eq!(document["train.steps"]["origin"], "file");
    }
}

#[test]
fn the_quick_start_trains_in_less_than_a_gigabyte() {
    let document = Place::of_repository().ddpm("bench step configs/quickstart.toml --repeat 1").json();
    let peak = document["peak_bytes"].as_u64().unwrap();
    assert!(peak < 1 << 30, "{peak} bytes");
}

#[test]
fn config_show_names_the_origin_of_every_value() {
    let place = fresh_run(&[]);
    let show = place.ddpm("config show tiny.toml --set train.betas=[0.9,0.99]").set("train.lr=3e-4");
    let show = show.env("DDPM_TRAIN__LR", "2e-4").env("DDPM_DATA__FLIP", "true").env("DDPM_TRAIN__STEPS", "7");
    let document = show.json();
    for (key, value, origin) in [
        ("train.lr", "0.0003", "command line"),
        ("train.betas", "[0.9,0.99]", "command line"),
        ("data.flip", "true", "environment"),
        ("train.steps", "7", "environment"),
        ("train.batch_size", "4", "file"),
        ("train.weight_decay", "0.0", "default"),
        ("run.dir", "\"runs/tiny\"", "default"),
    ] {
        let entry = &document[key];
        assert_eq!((entry["value"].to_string().as_str(), entry["origin"].as_str()), (value, Some(origin)), "{key}");
    }
    show.succeeds()
        .stdout_has("[train]")
        .stdout_has("# DDPM_DATA__FLIP")
        .stdout_has("# tiny.toml:")
        .stdout_has("# command line");
}

#[test]
fn config_init_writes_presets_that_check_and_never_overwrites() {
    let place = empty_place();
    let printed = place.ddpm("config init").succeeds().stdout;
    place.ddpm("config init --to my.toml").succeeds().stdout_has("ddpm train my.toml");
    assert_eq!(place.text("my.toml").trim_end(), printed.trim_end());
    assert_eq!(place.ddpm("config init --preset emoji32").json()["preset"], "emoji32");
    place.ddpm("config init --to my.toml").fails_with(2).stderr_has("exists already");
    place.ddpm("config init --preset quick").fails_with(2).stderr_has("quickstart").stderr_has("emoji32");
    assert_eq!(place.ddpm("config show my.toml").json()["run.name"]["value"], "my", "a run is named after its file");
}

#[test]
fn config_check_says_what_a_run_would_need() {
    let place = fresh_run(&[]);
    let check = place.ddpm("config check tiny.toml --set train.warmup_steps=50");
    let document = check.json();
    assert_fields(
        &document,
        "parameters, tensors, memory_bytes, checkpoint_bytes, disk_bytes, step_ms, eta_s, warnings",
    );
    assert_eq!(document["warnings"][0]["key"], "train.warmup_steps");
    check.succeeds().stdout_has("a run can start").stdout_has("parameters").stdout_has("warning: train.warmup_steps");
    place.train().max_steps(1).succeeds();
    let weights = read_safetensors(&place.read("runs/tiny/checkpoints/step-000000001/model.safetensors"));
    assert_eq!(document["tensors"], weights.len());
    assert_eq!(document["parameters"], weights.values().map(|(_, values)| values.len()).sum::<usize>());
    let on_disk: usize = place.files("runs/tiny/checkpoints").values().map(Vec::len).sum();
    let ratio = on_disk as f64 / document["checkpoint_bytes"].as_f64().unwrap();
    assert!((0.95..1.2).contains(&ratio), "{on_disk} bytes on disk: {document}");
}

#[test]
fn config_check_tells_the_parameters_of_a_model_whose_data_is_missing() {
    let place = fresh_run(&[]);
    let check = place.ddpm("config check tiny.toml --set data.source=nowhere");
    let checked = check.run().has_code(3).stdout_has("a run cannot start with this data").stdout_has("parameters");
    checked.stderr_has("error: data.source = nowhere: no such file or folder").stderr_has("help: ");
    let written = check.arg("--json").run().has_code(3);
    written.expect(written.stderr.is_empty(), "the error once, on stdout");
    let document = written.json();
    let fields = "parameters, tensors, memory_bytes, checkpoint_bytes, disk_bytes, step_ms, eta_s, measured, warnings";
    assert_fields(&document, fields);
    assert_eq!((&document["measured"], &document["images"]), (&"batch".into(), &Value::Null));
    assert_fields(&document["error"], "code, message, causes, hint");
    assert_eq!(document["error"]["code"], 3);
}

#[test]
fn config_check_foretells_a_batch_that_would_take_too_long() {
    let place = fresh_run(&[]);
    let check = place.ddpm("config check tiny.toml --set train.batch_size=1000000");
    let document = check.json();
    assert_eq!((&document["measured"], &document["images"]), (&"extrapolated".into(), &10_000.into()));
    assert!(document["step_ms"].as_f64().unwrap() > 5000.0, "{document}");
    check.succeeds().stdout_has("estimated from steps of 1 and 2 images");
}

#[test]
fn config_check_looks_at_the_run_directory_and_at_what_is_accepted_as_train_does() {
    let run = trained_run(&["checkpoint.every=0", "sample.every=0"]);
    let check = |options: &str| run.ddpm(&format!("config check tiny.toml --set train.lr=1e-4 {options}"));
    check("").fails_with_a_result(2).stderr_has("train.lr");
    let _ = check("--accept train.lr").fails_with_a_result(2).stderr_has("no step is left after step 40");
    assert_eq!(check("--accept train.lr --set train.steps=50").json()["goes_on_from"], 40);
    assert_eq!(check("--run-dir runs/other").json()["goes_on_from"], Value::Null);
    check("--accept model.freq_shift").fails_with_a_result(2).stderr_has("model.freq_shift cannot change in a run");
}
