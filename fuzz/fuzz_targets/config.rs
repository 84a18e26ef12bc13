//! A configuration, and behind a line `--set` such options, a line each; read, checked, shown and explained.
#![no_main]

use std::path::Path;

use ddpm_train::config::{Resolved, Setting, TrainPlan, config_hash, diff, to_toml};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ddpm_fuzz::begin(), |text: &str| {
    let (text, settings) = text.split_once("\n--set\n").unwrap_or((text, ""));
    let settings: Vec<Setting> = settings.lines().filter_map(|line| line.parse().ok()).collect();
    ddpm_fuzz::survives(|| {
        let resolved = match Resolved::from_layers(Path::new("my.toml"), text, std::iter::empty(), &settings) {
            Err(error) => return drop(error.to_string()),
            Ok(resolved) => resolved,
        };
        for entry in resolved.entries() {
            to_toml(&entry.value);
        }
        config_hash(&resolved.config);
        diff(&resolved.config, &ddpm_train::config::TrainConfig::default());
        match TrainPlan::new(&resolved) {
            Err(error) => drop(error.to_string()),
            Ok(plan) => drop(plan.warnings().len()),
        }
    });
});
