//! `[model]` and `[diffusion]` to and from diffusers' `config.json` and `scheduler_config.json`.
//!
//! Our keys have diffusers' names, so both ways are a copy, key by key: whatever `UNetConfig` learns is read and
//! written without a line here. What diffusers has beside them is accepted with the one value that means nothing, and
//! refused by name with any other; so is every value our types do not know. What a file leaves out has diffusers'
//! default, not ours: they differ (`attention_head_dim` is 8 there).

use std::path::Path;

use ddpm_model::diffusion::DiffusionConfig;
use ddpm_model::unet::{UNetConfig, unsupported};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{DIFFUSERS_VERSION, unreadable};
use crate::config::field_names;
use crate::error::Failure;

type Object = Map<String, Value>;

/// A config class of diffusers.
struct Class {
    /// The name written, then others that read alike.
    names: &'static [&'static str],
    /// Defaults of the keys that are ours, as JSON.
    defaults: fn() -> Value,
    /// Keys that are not ours, with the values that change nothing; the first is written.
    neutral: fn() -> Value,
    /// Keys that are not ours and only a sampler of diffusers reads; whatever they say, the model is the same.
    inference: &'static [&'static str],
}

/// `UNet2DModel`, as of [`DIFFUSERS_VERSION`].
const UNET: Class = Class {
    names: &["UNet2DModel"],
    defaults: || {
        json!({
            "sample_size": null, "in_channels": 3, "out_channels": 3,
            "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "add_attention": true, "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": null,
            "norm_eps": 1e-5, "dropout": 0.0, "act_fn": "silu", "resnet_time_scale_shift": "default",
            "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "flip_sin_to_cos": true,
            "freq_shift": 0, "num_class_embeds": null, "center_input_sample": false, "class_embed_type": null,
            "mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1, "time_embedding_dim": null,
            "time_embedding_type": "positional",
        })
    },
    neutral: || json!({"num_train_timesteps": [null]}),
    // The number of timesteps matters to the learned time embedding alone, which is refused.
    inference: &["num_train_timesteps"],
};

/// `DDPMScheduler`; `DDIMScheduler` noises alike and differs in sampling only.
const SCHEDULER: Class = Class {
    names: &["DDPMScheduler", "DDIMScheduler"],
    defaults: || {
        json!({
            "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
            "prediction_type": "epsilon", "variance_type": "fixed_small", "clip_sample": true,
        })
    },
    neutral: || {
        json!({
            "clip_sample_range": [1.0, 1], "dynamic_thresholding_ratio": [0.995], "rescale_betas_zero_snr": [false],
            "sample_max_value": [1.0, 1], "thresholding": [false], "trained_betas": [null],
            "steps_offset": [0], "timestep_spacing": ["leading"],
        })
    },
    inference: &[
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "set_alpha_to_one",
        "skip_prk_steps",
        "steps_offset",
        "timestep_spacing",
    ],
};

/// The text of `unet/config.json`.
pub(super) fn unet_json(config: &UNetConfig) -> String {
    write(config, &UNET)
}

/// The text of `scheduler/scheduler_config.json`.
pub(super) fn scheduler_json(config: &DiffusionConfig) -> String {
    write(config, &SCHEDULER)
}

/// What a `UNet2DModel` config says, from the document that `path` holds.
///
/// # Errors
/// The key that this version does not know or a value it does not have; another class of model.
pub(super) fn read_unet(path: &Path, document: &Value) -> Result<UNetConfig, Failure> {
    read(path, document, &UNET)
}

/// What a scheduler config says of training.
///
/// # Errors
/// As [`read_unet`].
pub(super) fn read_scheduler(path: &Path, document: &Value) -> Result<DiffusionConfig, Failure> {
    read(path, document, &SCHEDULER)
}

/// JSON as Python's `json.dumps(..., indent=2, sort_keys=True)` lays it out, and a line feed.
pub(super) fn pretty(document: &Value) -> String {
    // A value of ours is a tree of maps with text keys: it has a text.
    format!("{}\n", serde_json::to_string_pretty(&sorted(document)).unwrap_or_default())
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn write<T: Serialize + DeserializeOwned>(config: &T, class: &Class) -> String {
    let ours = json!(config);
    let mut document = Object::new();
    document.insert("_class_name".to_owned(), json!(class.names[0]));
    document.insert("_diffusers_version".to_owned(), json!(DIFFUSERS_VERSION));
    for (key, values) in (class.neutral)().as_object().into_iter().flatten() {
        document.insert(key.clone(), values[0].clone());
    }
    for &key in field_names::<T>() {
        document.insert(key.to_owned(), ours.get(key).cloned().unwrap_or(Value::Null));
    }
    pretty(&Value::Object(document))
}

fn read<T: Serialize + DeserializeOwned + Default>(path: &Path, document: &Value, class: &Class) -> Result<T, Failure> {
    let place = path.display();
    let expected = class.names[0];
    let Some(found) = document.as_object() else {
        return Err(unreadable(format!("{place}: expected a JSON object, a config of diffusers' {expected}"))
            .hint("the file is damaged: download the model again"));
    };
    match found.get("_class_name") {
        Some(Value::String(name)) if class.names.contains(&name.as_str()) => {}
        None => {}
        Some(other) => {
            return Err(unreadable(format!("{place}: _class_name = {other}, expected {}", class.names.join(" or ")))
                .hint("only unconditional and class-conditional pixel models (UNet2DModel) are read"));
        }
    }
    let ours = field_names::<T>();
    for (key, value) in found.iter().filter(|(key, _)| !key.starts_with('_') && !ours.contains(&key.as_str())) {
        accept_neutral(path, key, value, class)?;
    }
    let mut values = (class.defaults)();
    found.iter().for_each(|(key, value)| values[key] = value.clone());
    let mut reader = OneByOne { document: json!(T::default()), config: T::default() };
    for &key in ours {
        if let Some(value) = values.get(key) {
            reader.assign(path, key, value)?;
        }
    }
    Ok(reader.config)
}

fn accept_neutral(path: &Path, key: &str, value: &Value, class: &Class) -> Result<(), Failure> {
    let neutral = (class.neutral)();
    let accepted = neutral.get(key).and_then(Value::as_array);
    if class.inference.contains(&key) || value.is_null() || accepted.is_some_and(|values| values.contains(value)) {
        return Ok(());
    }
    let expected = match accepted {
        Some(values) => format!("expected {}", values[0]),
        None => "a key that this version does not know".to_owned(),
    };
    Err(unreadable(format!("{}: {key} = {value}: {expected}", path.display()))
        .hint("this version cannot run such a model; run it with diffusers, or choose another one"))
}

/// Why a name in `value` that diffusers knows is refused here, where that is known.
fn reason(value: &Value) -> Option<&'static str> {
    match value {
        Value::String(name) => unsupported(name),
        Value::Array(values) => values.iter().find_map(reason),
        _ => None,
    }
}

/// A config read one key at a time, so that an error is that of one key.
struct OneByOne<T> {
    document: Value,
    config: T,
}

impl<T: DeserializeOwned> OneByOne<T> {
    fn assign(&mut self, path: &Path, key: &str, value: &Value) -> Result<(), Failure> {
        self.document[key] = value.clone();
        self.config = T::deserialize(&self.document).map_err(|error| {
            let message = format!("{}: {key} = {value}: {}", path.display(), error.to_string().replace('`', "\""));
            unreadable(message).hint(match reason(value) {
                Some(why) => format!("{why}; run such a model with diffusers, or choose another one"),
                None => "this version cannot run such a model; run it with diffusers, or choose another one".to_owned(),
            })
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
