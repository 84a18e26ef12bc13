//! The shipped configurations, compiled in so that an installed binary has them too.

use std::io;
use std::path::Path;

/// A shipped configuration.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name, that of the file in `configs/`.
    pub name: &'static str,
    /// One line for `config init --help` and for messages.
    pub summary: &'static str,
    /// The file.
    pub text: &'static str,
}

/// All of them, the one for newcomers first.
pub const PRESETS: [Preset; 2] = [
    Preset {
        name: "quickstart",
        summary: "Fashion images, 32x32, one channel: minutes on a CPU",
        text: include_str!("../../../../configs/quickstart.toml"),
    },
    Preset {
        name: "emoji32",
        summary: "Twemoji, 32x32 RGB, class-conditional",
        text: include_str!("../../../../configs/emoji32.toml"),
    },
];

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// The configuration that every run directory holds.
pub(super) const RESOLVED: &str = "config.toml";

/// What to do about a config file that could not be read.
pub(super) fn help_for_missing(path: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound && path.file_name().is_some_and(|name| name == RESOLVED) {
        return "name a config file, or a run directory, which has a config.toml".to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match (error.kind(), find(&stem)) {
        (io::ErrorKind::NotFound, Some(preset)) => {
            format!("`ddpm config init --preset {} --to {}` writes it", preset.name, path.display())
        }
        (io::ErrorKind::NotFound, None) => {
            "check the path; `ddpm config init --to my.toml` writes a config to start from".to_owned()
        }
        _ => "check that it is a text file and that you may read it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{Resolved, TrainPlan};

    #[test]
    fn every_shipped_config_makes_a_plan_without_warnings() {
        for preset in &PRESETS {
            let path = format!("configs/{}.toml", preset.name);
            let resolved = Resolved::from_layers(Path::new(&path), preset.text, [], &[]).unwrap();
            let plan = TrainPlan::new(&resolved).unwrap();
            assert!(plan.warnings().is_empty(), "{path}: {:?}", plan.warnings());
        }
    }

    #[test]
    fn every_file_in_configs_is_a_preset() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
            assert!(find(&name).is_some(), "{name} is missing from PRESETS");
        }
    }
}
