//! diffusers' `config.json` and `scheduler_config.json`, as [`ddpm_model::diffusers`] reads them; here a refusal becomes an
//! error that names the file and what to do.

use std::path::Path;

use ddpm_model::diffusers::{self, DiffusersConfigError};
use ddpm_model::diffusion::DiffusionConfig;
use ddpm_model::unet::UNetConfig;
use serde_json::Value;

use crate::error::Error;

/// The network's settings from a `UNet2DModel` config, the document at `path`.
///
/// # Errors
/// A key or a value is unknown to this version, or the config is of another class of model.
pub(super) fn read_unet(path: &Path, document: &Value) -> Result<UNetConfig, Error> {
    diffusers::read_unet(document).map(|read| told(path, read)).map_err(|error| refused(path, &error))
}

/// The training settings from a scheduler config.
///
/// # Errors
/// As [`read_unet`].
pub(super) fn read_scheduler(path: &Path, document: &Value) -> Result<DiffusionConfig, Error> {
    diffusers::read_scheduler(document).map(|read| told(path, read)).map_err(|error| refused(path, &error))
}

/// What was read; warns about keys that were left aside. diffusers writes its own averages' settings beside the network's.
fn told<T>(path: &Path, (config, left_aside): (T, Vec<String>)) -> T {
    let ema = |key: &str| EMA_KEYS.iter().any(|known| key.starts_with(&format!("{known} = ")));
    for key in left_aside.iter().filter(|key| !ema(key)) {
        tracing::warn!(key, "{}: {key} is left aside: it is no part of what the weights have learnt", path.display());
    }
    config
}

/// The keys of an average in `unet_ema/config.json` (diffusers' `EMAModel`).
const EMA_KEYS: [&str; 8] =
    ["decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power", "foreach"];

fn refused(path: &Path, error: &DiffusersConfigError) -> Error {
    let advice = match error {
        DiffusersConfigError::NotAnObject { .. } => "the file is damaged: download the model again".to_owned(),
        DiffusersConfigError::Class { expected, .. } if expected == "DDPMScheduler" => {
            "only schedulers that noise images as DDPM does are read".to_owned()
        }
        DiffusersConfigError::Class { .. } => {
            "only unconditional and class-conditional pixel models (UNet2DModel) are read".to_owned()
        }
        DiffusersConfigError::Value { reason: Some(why), .. } => {
            format!("{why}; run such a model with diffusers, or choose another one")
        }
        _ => "this version cannot run such a model; run it with diffusers, or choose another one".to_owned(),
    };
    Error::unreadable(path, error, advice)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ddpm_model::diffusers::{scheduler_json, unet_json};
    use ddpm_model::unet::UNet;

    use super::*;
    use crate::config::Resolved;
    use crate::config::presets::PRESETS;

    /// As published with google/ddpm-cat-256, whose network is that of google/ddpm-church-256.
    const UNET_256: &str = r#"{
        "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": null,
        "block_out_channels": [128, 128, 256, 256, 512, 512], "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 256,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]}"#;
    const SCHEDULER_256: &str = r#"{
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "clip_sample": true, "num_train_timesteps": 1000, "trained_betas": null,
        "variance_type": "fixed_small"}"#;

    fn unet(text: &str) -> UNetConfig {
        read_unet(Path::new("config.json"), &serde_json::from_str(text).unwrap()).unwrap()
    }

    fn scheduler(text: &str) -> DiffusionConfig {
        read_scheduler(Path::new("scheduler_config.json"), &serde_json::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn a_published_model_of_the_first_hour_is_the_preset_that_names_it() {
        let preset = PRESETS.iter().find(|preset| preset.name == "church256").unwrap();
        let config = Resolved::from_layers(Path::new("church256.toml"), preset.text, [], &[]).unwrap().config;
        assert_eq!(unet(UNET_256), config.model);
        assert_eq!(scheduler(SCHEDULER_256), config.diffusion);
        assert_eq!(UNet::new(&unet(UNET_256)).unwrap().layout().parameters(), 113_673_219);
    }

    #[test]
    fn what_a_file_leaves_out_has_the_default_of_diffusers() {
        let config = unet("{}");
        assert_eq!((config.attention_head_dim, config.sample_size), (Some(8), None));
        assert_eq!(config.block_out_channels, [224, 448, 672, 896]);
        assert_eq!(scheduler("{}"), DiffusionConfig::default());
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        for preset in &PRESETS {
            let config = Resolved::from_layers(Path::new("my.toml"), preset.text, [], &[]).unwrap().config;
            assert_eq!(unet(&unet_json(&config.model)), config.model, "{}", preset.name);
            assert_eq!(scheduler(&scheduler_json(&config.diffusion)), config.diffusion, "{}", preset.name);
        }
    }
}
