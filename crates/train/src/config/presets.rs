//! The shipped configurations, compiled in so that an installed binary has them too.

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

/// All presets, the one for newcomers first. The last four are published models, with the papers' settings.
pub const PRESETS: [Preset; 7] = [
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
    Preset {
        name: "fashion",
        summary: "Fashion-MNIST, 32x32, class-conditional, 35.7 million parameters: minutes on a GPU",
        text: include_str!("../../../../configs/fashion.toml"),
    },
    Preset {
        name: "cifar10-ddpm",
        summary: "Ho et al. 2020 on CIFAR-10: 35.7 million parameters, for a GPU",
        text: include_str!("../../../../configs/cifar10-ddpm.toml"),
    },
    Preset {
        name: "cifar10-iddpm",
        summary: "Nichol & Dhariwal 2021 on CIFAR-10: 52.5 million parameters, learned variance, for a GPU",
        text: include_str!("../../../../configs/cifar10-iddpm.toml"),
    },
    Preset {
        name: "imagenet64-iddpm",
        summary: "Nichol & Dhariwal 2021 on ImageNet at 64x64: 121 million parameters, a long run for a GPU",
        text: include_str!("../../../../configs/imagenet64-iddpm.toml"),
    },
    Preset {
        name: "church256",
        summary: "Ho et al. 2020 on LSUN churches at 256x256: 114 million parameters, a long run for a large GPU",
        text: include_str!("../../../../configs/church256.toml"),
    },
];

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// Their names, for a help text.
pub fn names() -> String {
    PRESETS.map(|preset| preset.name).join(", ")
}

/// The configuration that every run directory holds.
pub(super) const RESOLVED: &str = "config.toml";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use ddpm_model::unet::UNet;

    use super::*;
    use crate::config::{Resolved, TrainPlan};

    fn plan(preset: &Preset) -> TrainPlan {
        let path = format!("configs/{}.toml", preset.name);
        TrainPlan::new(&Resolved::from_layers(Path::new(&path), preset.text, [], &[]).unwrap()).unwrap()
    }

    /// The published models are for GPUs: without one, their precision causes the only warning.
    #[test]
    fn every_shipped_config_makes_a_plan_without_warnings() {
        for preset in &PRESETS {
            let plan = plan(preset);
            let wrong: Vec<_> = plan.warnings().iter().filter(|warning| warning.key != "train.precision").collect();
            assert!(wrong.is_empty(), "{}: {wrong:?}", preset.name);
        }
    }

    /// The counts of google/ddpm-cifar10-32, openai/improved-diffusion (twice) and google/ddpm-church-256.
    #[test]
    fn the_published_models_have_the_published_numbers_of_parameters() {
        for (name, parameters) in [
            ("cifar10-ddpm", 35_746_307),
            ("cifar10-iddpm", 52_546_438),
            ("imagenet64-iddpm", 121_063_942),
            ("church256", 113_673_219),
        ] {
            let unet = UNet::new(&plan(find(name).unwrap()).config().model).unwrap();
            assert_eq!(unet.layout().parameters(), parameters, "{name}");
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
