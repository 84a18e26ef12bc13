//! [`UNetConfig`] and [`DiffusionConfig`] to and from diffusers' `config.json` and `scheduler_config.json`.
//!
//! Our keys have diffusers' names, so reading and writing copy key by key: a new key of `UNetConfig` needs no line here. A value
//! that our types do not have is refused by name. A key that is not ours is left aside and reported, as diffusers does, unless it
//! decides what the weights have learnt with: then any value but the one that changes nothing is refused. A key that a file leaves
//! out has diffusers' default, not ours: they differ (`attention_head_dim` is 8 there).

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::diffusion::DiffusionConfig;
use crate::fields::field_names;
use crate::unet::{UNetConfig, unsupported};

/// The version whose format is written.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

/// Why a config of diffusers cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiffusersConfigError {
    /// No JSON at all.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Another kind of document.
    #[error("expected a JSON object, a config of diffusers' {class}")]
    NotAnObject {
        /// The class that was expected.
        class: &'static str,
    },
    /// A config of another class.
    #[error("_class_name = {found}, expected {expected}")]
    Class {
        /// What the file says, as JSON.
        found: String,
        /// The class that is read.
        expected: String,
    },
    /// A key that is not ours, with a value that would change something.
    #[error("{key} = {value}: expected {expected}")]
    Foreign {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The value that changes nothing.
        expected: String,
    },
    /// A key of ours that a `UNet2DModel` does not have, with a value that it needs.
    #[error("model.{key} = {value}, expected {expected}: diffusers' UNet2DModel has no such key")]
    Own {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What could be written.
        expected: &'static str,
    },
    /// A value that our types do not have.
    #[error("{key} = {value}: {error}")]
    Value {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What is wrong with it.
        error: String,
        /// Why we do not have it, where it is a name that diffusers knows.
        reason: Option<&'static str>,
    },
}

type Object = Map<String, Value>;

/// A config class of diffusers.
struct Class {
    /// The name that is written, then others that are read in the same way.
    names: &'static [&'static str],
    /// Defaults of the keys that are ours, as JSON.
    defaults: fn() -> Value,
    /// Keys that are not ours, with the values that change nothing; the first is written.
    neutral: fn() -> Value,
    /// Keys of ours that the class does not have: never written, and foreign where a file has them.
    own: &'static [&'static str],
    /// Keys that are not ours and that only a sampler of diffusers reads; they do not change the model.
    inference: &'static [&'static str],
    /// Keys that are not ours are left aside, unless they are among these and have another value than the one that changes
    /// nothing.
    decisive: fn() -> Value,
}

impl Class {
    /// The keys that it shares with ours, `T`.
    fn fields<T: DeserializeOwned>(&self) -> Vec<&'static str> {
        field_names::<T>().iter().copied().filter(|key| !self.own.contains(key)).collect()
    }
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
    own: &["num_attention_heads", "timestep_scale"],
    // The number of timesteps matters to the learned time embedding alone, which is refused.
    inference: &["num_train_timesteps"],
    decisive: || json!({"num_attention_heads": null, "timestep_scale": 1.0}),
};

/// `DDPMScheduler`; the others noise images as it does, and differ in sampling only.
const SCHEDULER: Class = Class {
    names: &[
        "DDPMScheduler",
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "DDPMParallelScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DPMSolverSDEScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    ],
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
    own: &[],
    inference: &[
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "set_alpha_to_one",
        "skip_prk_steps",
        "steps_offset",
        "timestep_spacing",
    ],
    decisive: || {
        json!({
            "trained_betas": null, "rescale_betas_zero_snr": false, "use_flow_sigmas": false, "timestep_type": "discrete",
        })
    },
};

/// Schedulers that clip the predicted image by default.
const WITH_CLIPPING: [&str; 4] = ["DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"];

/// Schedulers whose betas begin and end elsewhere by default.
const OF_STABLE_DIFFUSION: [&str; 4] =
    ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"];

/// The defaults of the class that a config names, where they are not those of the class that is written.
fn own_defaults(class: Option<&str>, values: &mut Value) {
    let Some(class) = class.filter(|class| *class != UNET.names[0]) else { return };
    if !WITH_CLIPPING.contains(&class) {
        values["clip_sample"] = json!(false);
    }
    if OF_STABLE_DIFFUSION.contains(&class) {
        values["beta_start"] = json!(0.00085);
        values["beta_end"] = json!(0.012);
    }
}

/// The same network in the keys of a `UNet2DModel`.
///
/// # Errors
/// It has no keys for it.
pub fn in_keys_of_unet2d(config: &UNetConfig) -> Result<UNetConfig, DiffusersConfigError> {
    let own = |key, value: String, expected| Err(DiffusersConfigError::Own { key, value, expected });
    if config.timestep_scale != 1.0 {
        return own("timestep_scale", config.timestep_scale.to_string(), "1");
    }
    let Some(heads) = config.num_attention_heads else { return Ok(config.clone()) };
    let attending = (0..config.levels()).filter(|&level| config.attends(level));
    let mut widths: Vec<usize> = attending.map(|level| config.block_out_channels[level]).collect();
    widths.dedup();
    let attention_head_dim = match widths[..] {
        [] => None,
        [width] => Some(width / heads),
        _ => return own("num_attention_heads", heads.to_string(), "attention at levels of one width"),
    };
    Ok(UNetConfig { attention_head_dim, num_attention_heads: None, ..config.clone() })
}

/// The text of `unet/config.json`.
pub fn unet_json(config: &UNetConfig) -> String {
    write(config, &UNET)
}

/// The text of `scheduler/scheduler_config.json`.
pub fn scheduler_json(config: &DiffusionConfig) -> String {
    write(config, &SCHEDULER)
}

/// What the text of a `UNet2DModel`'s `config.json` says.
///
/// # Errors
/// It is no JSON, or as [`read_unet`].
pub fn parse_unet(text: &str) -> Result<UNetConfig, DiffusersConfigError> {
    read_unet(&serde_json::from_str(text)?).map(|(config, _)| config)
}

/// What a `UNet2DModel` config says, and the keys that it sets and that were left aside, as `key = value`: those that no
/// `UNet2DModel` of [`DIFFUSERS_VERSION`] has, which diffusers leaves aside too.
///
/// # Errors
/// A value that this version does not have; another class of model.
pub fn read_unet(document: &Value) -> Result<(UNetConfig, Vec<String>), DiffusersConfigError> {
    read(document, &UNET)
}

/// What a scheduler config says of training, and the keys that were left aside: those that only a sampler of diffusers reads.
///
/// # Errors
/// As [`read_unet`].
pub fn read_scheduler(document: &Value) -> Result<(DiffusionConfig, Vec<String>), DiffusersConfigError> {
    read(document, &SCHEDULER)
}

/// JSON as Python's `json.dumps(..., indent=2, sort_keys=True)` lays it out, and a line feed.
pub fn pretty(document: &Value) -> String {
    format!("{:#}\n", sorted(document))
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
    for key in class.fields::<T>() {
        document.insert(key.to_owned(), ours.get(key).cloned().unwrap_or(Value::Null));
    }
    pretty(&Value::Object(document))
}

fn read<T: Serialize + DeserializeOwned + Default>(
    document: &Value,
    class: &Class,
) -> Result<(T, Vec<String>), DiffusersConfigError> {
    let Some(found) = document.as_object() else {
        return Err(DiffusersConfigError::NotAnObject { class: class.names[0] });
    };
    match found.get("_class_name") {
        Some(Value::String(name)) if class.names.contains(&name.as_str()) => {}
        None => {}
        Some(other) => {
            let (found, expected) = (other.to_string(), class.names[0].to_owned());
            return Err(DiffusersConfigError::Class { found, expected });
        }
    }
    let ours = class.fields::<T>();
    let mut left_aside = Vec::new();
    for (key, value) in found.iter().filter(|(key, _)| !key.starts_with('_') && !ours.contains(&key.as_str())) {
        left_aside.extend(look_at_foreign(key, value, class)?);
    }
    let mut values = (class.defaults)();
    own_defaults(found.get("_class_name").and_then(Value::as_str), &mut values);
    // A sampler that predicts no variance says null; the default is that of a scheduler that does not say.
    let says_nothing = |key: &str, value: &Value| key == "variance_type" && value.is_null();
    let said = found.iter().filter(|(key, value)| !says_nothing(key, value));
    said.for_each(|(key, value)| values[key] = value.clone());
    let mut reader = OneByOne { document: json!(T::default()), config: T::default() };
    for key in ours {
        if let Some(value) = values.get(key) {
            reader.assign(key, value)?;
        }
    }
    Ok((reader.config, left_aside))
}

/// A key that is not ours: nothing where it changes nothing; `key = value` where it is left aside.
fn look_at_foreign(key: &str, value: &Value, class: &Class) -> Result<Option<String>, DiffusersConfigError> {
    let neutral = (class.neutral)();
    let accepted = neutral.get(key).and_then(Value::as_array);
    if class.inference.contains(&key) || value.is_null() || accepted.is_some_and(|values| values.contains(value)) {
        return Ok(None);
    }
    match (class.decisive)().get(key) {
        // An option of another scheduler that is off, such as `use_karras_sigmas`.
        None if *value == false => Ok(None),
        None => Ok(Some(format!("{key} = {value}"))),
        Some(changes_nothing) if changes_nothing == value => Ok(None),
        Some(expected) => {
            let (key, value, expected) = (key.to_owned(), value.to_string(), expected.to_string());
            Err(DiffusersConfigError::Foreign { key, value, expected })
        }
    }
}

/// Why a name in `value` that diffusers knows is refused here, where that is known.
fn reason(key: &str, value: &Value) -> Option<&'static str> {
    match value {
        _ if key == "variance_type" => {
            Some("the variance is fixed (fixed_small, fixed_large) or learnt within its range (learned_range)")
        }
        Value::String(name) => unsupported(name),
        Value::Array(values) => values.iter().find_map(|value| reason(key, value)),
        _ => None,
    }
}

/// A config read one key at a time, so that an error is that of one key.
struct OneByOne<T> {
    document: Value,
    config: T,
}

impl<T: DeserializeOwned> OneByOne<T> {
    fn assign(&mut self, key: &str, value: &Value) -> Result<(), DiffusersConfigError> {
        self.document[key] = value.clone();
        self.config = T::deserialize(&self.document).map_err(|error| DiffusersConfigError::Value {
            key: key.to_owned(),
            value: value.to_string(),
            error: error.to_string().replace('`', "\""),
            reason: reason(key, value),
        })?;
        Ok(())
    }
}
