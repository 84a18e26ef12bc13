//! Every file in `configs/` gives the stated network, and those whose data is shipped train.
#![allow(clippy::unwrap_used)]

use ddpm_tests::Place;

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
