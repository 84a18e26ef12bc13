//! Reads a diffusers folder and checks it before it is used.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use ddpm_model::diffusion::{DiffusionProcess, LossKind, VarianceType};
use ddpm_model::params::{ParamSpec, Params};
use ddpm_model::unet::{UNet, UNetConfig};
use ddpm_run::checkpoint::NamedTensor;
use serde_json::Value;

use super::config::{read_scheduler, read_unet};
use super::json::{DAMAGED, read_json};
use super::{FACTS_FILE, Facts, INDEX_FILE, SCHEDULER_CONFIG, SCHEDULER_DIR, UNET_CONFIG, UNET_DIR, weights};
use crate::config::TrainConfig;
use crate::config::types::{DataConfig, DiffusionConfig, LossConfig};
use crate::error::Error;
use crate::weights::flat_from_tensors;

/// Beyond every published model, and small enough that products of them cannot overflow.
const LIMITS: [(&str, u64); 7] = [
    ("sample_size", 4096),
    ("in_channels", 4096),
    ("out_channels", 8192),
    ("layers_per_block", 128),
    ("num_class_embeds", 1 << 20),
    ("time_embedding_dim", 1 << 20),
    ("block_out_channels", 65_536),
];
const MAX_LEVELS: usize = 12;

/// A model in diffusers' layout.
#[derive(Debug)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// The configuration of a run with this model: its network and process, and the rest from its facts.
    pub config: TrainConfig,
    /// How it was trained, if that is recorded.
    pub facts: Option<Facts>,
    pub(super) weights: PathBuf,
    pub(super) tensors: Vec<NamedTensor>,
}

impl Folder {
    /// Whether `path` looks like such a folder.
    pub(crate) fn is_one(path: &Path) -> bool {
        path.join(INDEX_FILE).is_file() || path.join(UNET_DIR).is_dir() || path.join(UNET_CONFIG).is_file()
    }

    /// Reads the folder, and checks everything except the weights' values.
    ///
    /// # Errors
    /// A file or a key is missing, damaged, or unknown to this version.
    pub fn read(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            let what = if path.exists() { "not a directory" } else { "no such directory" };
            return Err(Error::NotAModel { path: path.to_owned(), what: what.to_owned() });
        }
        check_index(path)?;
        let unet_dir = part_dir(path, UNET_DIR, UNET_CONFIG)?;
        let unet_path = unet_dir.join(UNET_CONFIG);
        let unet = read_unet(&unet_path, &read_json(&unet_path)?)?;
        check_limits(&unet_path, &unet)?;
        let scheduler_path = scheduler_dir(path)?.join(SCHEDULER_CONFIG);
        let diffusion = read_scheduler(&scheduler_path, &read_json(&scheduler_path)?)?;
        check_channels(&unet_path, &unet, &scheduler_path, &diffusion)?;
        let facts = read_facts(&path.join(FACTS_FILE))?;
        let config = configuration(unet, diffusion, facts.as_ref());
        let (weights, tensors) = weights::read(&unet_dir)?;
        let tensors = tensors.into_iter().map(modern).collect();
        Ok(Self { path: path.to_owned(), config, facts, weights, tensors })
    }

    /// The network.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn unet(&self) -> Result<UNet, Error> {
        UNet::new(&self.config.model).map_err(|error| self.impossible(&error))
    }

    /// The diffusion process.
    ///
    /// # Errors
    /// The schedule is invalid.
    pub fn process(&self) -> Result<DiffusionProcess, Error> {
        DiffusionProcess::new(&self.config.diffusion).map_err(|error| self.impossible(&error))
    }

    /// Our message about the key, with the folder.
    fn impossible(&self, what: &dyn std::fmt::Display) -> Error {
        let advice = "this version cannot run such a model; run it with diffusers, or choose another one";
        Error::unreadable(&self.path, what, advice)
    }

    /// Its weights.
    ///
    /// # Errors
    /// A tensor is missing, has a wrong shape, or does not belong to the network.
    pub fn params(&self, unet: &UNet, device: &Device) -> Result<Params, Error> {
        let layout = unet.layout();
        let refuse = |what: String| Error::unreadable(&self.weights, what, MISMATCH);
        let held: HashMap<&str, &[usize]> =
            self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
        // Shapes are checked before memory is allocated: a hostile config could ask for any amount.
        let expected: HashMap<String, Vec<usize>> = layout.specs().iter().flat_map(ParamSpec::file_shapes).collect();
        for (key, shape) in layout.specs().iter().flat_map(ParamSpec::file_shapes) {
            match held.get(key.as_str()) {
                None => return Err(refuse(format!("`{key}` is missing, expected of shape {shape:?}"))),
                Some(found) if *found != shape => {
                    return Err(refuse(format!("`{key}` has shape {found:?}, expected {shape:?}")));
                }
                Some(_) => {}
            }
        }
        let mut extra = self.tensors.iter().map(|tensor| &tensor.name).filter(|name| !expected.contains_key(*name));
        if let Some(first) = extra.next() {
            let count = 1 + extra.count();
            return Err(refuse(format!("`{first}` is none of the network's tensors ({count} such), expected none")));
        }
        if held.len() < self.tensors.len() {
            return Err(refuse("a tensor is there under its old and its new name, expected one".to_owned()));
        }
        if let Some(bad) = self.tensors.iter().find(|tensor| tensor.data.iter().any(|value| !value.is_finite())) {
            return Err(refuse(format!("`{}` holds values that are no numbers, expected finite ones", bad.name)));
        }
        let flat = flat_from_tensors(layout, &self.tensors, "")?;
        Ok(Params::from_vec(layout, flat, device)?)
    }
}

const MISMATCH: &str = "the weights belong to another config.json: download both again";

/// Diffusers renamed the attention's layers in 0.12 (`Attention._convert_deprecated_attention_blocks`); the first
/// published models still have the old names.
fn modern(mut tensor: NamedTensor) -> NamedTensor {
    if tensor.name.contains("attentions.") {
        for (old, new) in [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")] {
            tensor.name = tensor.name.replace(&format!(".{old}."), &format!(".{new}."));
        }
    }
    tensor
}

/// Checks which class the folder says it is, if it says so.
fn check_index(path: &Path) -> Result<(), Error> {
    let index = path.join(INDEX_FILE);
    if !index.is_file() {
        return Ok(());
    }
    let document = read_json(&index)?;
    let unet = document.pointer("/unet/1").and_then(Value::as_str).unwrap_or("none");
    if unet == "UNet2DModel" {
        return Ok(());
    }
    let class = document.get("_class_name").and_then(Value::as_str).unwrap_or("unnamed pipeline");
    let what = format!("{class} with unet = {unet}, expected a pipeline of a UNet2DModel");
    Err(Error::unreadable(&index, what, "only unconditional and class-conditional pixel models are read"))
}

/// The path of a part's config: in its folder, or beside `model_index.json` as in the first published models.
fn part_dir(path: &Path, part: &str, file: &str) -> Result<PathBuf, Error> {
    let own = path.join(part);
    [own.clone(), path.to_owned()].into_iter().find(|dir| dir.join(file).is_file()).ok_or_else(|| Error::NotAModel {
        path: path.to_owned(),
        what: format!("no {part}/{file}, so this is no diffusers folder"),
    })
}

/// The path of the scheduler's config. What `train_unconditional.py` saves on its way, `checkpoint-500/unet` and `unet_ema`, has
/// none: that of the finished model lies in a folder above.
fn scheduler_dir(path: &Path) -> Result<PathBuf, Error> {
    let own = part_dir(path, SCHEDULER_DIR, SCHEDULER_CONFIG);
    if own.is_ok() {
        return own;
    }
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let above = absolute.ancestors().skip(1).take(2).map(|dir| dir.join(SCHEDULER_DIR));
    above.into_iter().find(|dir| dir.join(SCHEDULER_CONFIG).is_file()).ok_or_else(|| Error::NotAModel {
        path: path.to_owned(),
        what: format!(
            "no {SCHEDULER_DIR}/{SCHEDULER_CONFIG} here or in the two folders above: copy that of the pipeline, which a training \
             with diffusers writes at its end"
        ),
    })
}

fn read_facts(path: &Path) -> Result<Option<Facts>, Error> {
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_value(read_json(path)?).map(Some).map_err(|error| {
        let advice = "it only tells of the training, perhaps of a newer ddpm: delete it to use the model without";
        Error::unreadable_for(path, "not understood", advice, error.into())
    })
}

pub(super) fn check_limits(path: &Path, unet: &UNetConfig) -> Result<(), Error> {
    let document = serde_json::json!(unet);
    for (key, limit) in LIMITS {
        let values = match &document[key] {
            Value::Array(values) => values.iter().filter_map(Value::as_u64).collect(),
            value => value.as_u64().into_iter().collect::<Vec<_>>(),
        };
        if let Some(value) = values.iter().find(|&&value| value > limit) {
            return Err(Error::unreadable(path, format!("{key} = {value}: expected at most {limit}"), DAMAGED));
        }
    }
    if unet.levels() > MAX_LEVELS {
        let what = format!("{} levels, expected at most {MAX_LEVELS}", unet.levels());
        return Err(Error::unreadable(path, what, DAMAGED));
    }
    if unet.sample_size.is_none() {
        let what = "sample_size = null: expected the size of the images in pixels";
        return Err(Error::unreadable(path, what, "write the size the model was trained at into the file"));
    }
    Ok(())
}

pub(super) fn check_channels(
    unet_path: &Path,
    unet: &UNetConfig,
    scheduler_path: &Path,
    diffusion: &DiffusionConfig,
) -> Result<(), Error> {
    let (channels, found) = (unet.in_channels.unwrap_or_default(), unet.out_channels.unwrap_or_default());
    let expected = diffusion.variance_type.out_channels(channels);
    if !matches!(channels, 1 | 3) {
        let what = format!("in_channels = {channels}: expected 1 (grey) or 3 (RGB)");
        let advice = "only models of pixels are read; run this one with diffusers";
        return Err(Error::unreadable(unet_path, what, advice));
    }
    if found == expected {
        return Ok(());
    }
    let variance = diffusion.variance_type.name();
    let what = format!(
        "out_channels = {found}: expected {expected}, for in_channels = {channels} and variance_type = \
         \"{variance}\" in {}",
        scheduler_path.display()
    );
    let advice = "a model that learns its variance has variance_type \"learned_range\" and 2C channels";
    Err(Error::unreadable(unet_path, what, advice))
}

/// The network and process of the folder; the rest from its facts, as far as it fits.
pub(super) fn configuration(unet: UNetConfig, diffusion: DiffusionConfig, facts: Option<&Facts>) -> TrainConfig {
    let mut config = facts.map(|facts| facts.config.clone()).unwrap_or_default();
    let learned = diffusion.variance_type == VarianceType::LearnedRange;
    let teaches = matches!(config.loss.kind, LossKind::Hybrid | LossKind::Vlb);
    if learned != teaches {
        let kind = if learned { LossKind::Hybrid } else { LossKind::Simple };
        config.loss = LossConfig { kind, ..config.loss };
    }
    if unet.num_class_embeds.is_none() {
        config.loss.label_dropout = 0.0;
    }
    config.data = DataConfig {
        image_size: unet.sample_size.unwrap_or_default(),
        channels: unet.in_channels.unwrap_or_default(),
        ..config.data
    };
    config.model = unet;
    config.diffusion = diffusion;
    config.data.num_classes = config.model_classes();
    config
}
