//! Defaults, file, environment and command line, one over the other, with the origin of every value.
//!
//! Each assignment is put into the document alone and the whole is read again, so that an error is always that of one
//! key, whose line or variable is known. There are some eighty keys: this costs less than a millisecond.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ConfigError, Origin};
use super::explain::{type_error, unknown_key};
use super::presets;
use super::schema;
use super::toml_source::{Malformed, parse_file, parse_value};
use super::types::TrainConfig;

/// The longest config file that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// `--set a.b=c`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key, `a.b`.
    pub key: String,
    /// The value as it was written.
    pub value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, as in train.lr=1e-4")?;
        Ok(Self { key: key.trim().to_owned(), value: value.to_owned() })
    }
}

/// A configuration whose layers are merged, and where each value comes from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The values.
    pub config: TrainConfig,
    path: PathBuf,
    origins: BTreeMap<String, Origin>,
}

/// A key with its value and origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `section.key`.
    pub key: String,
    /// The value; `null` for an optional key that is not set.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

impl Resolved {
    /// Reads a config file (or the one in a run directory), the environment of this process and `--set` options.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML, or a layer has a key that does not exist or a value of another type.
    pub fn load(path: &Path, settings: &[Setting]) -> Result<Self, ConfigError> {
        Self::load_with(path, std::env::vars_os(), settings)
    }

    /// Reads a config file alone: the one a run directory keeps, whatever the environment says today.
    ///
    /// # Errors
    /// As [`Resolved::load`].
    pub fn load_file(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, std::iter::empty(), &[])
    }

    fn load_with(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        settings: &[Setting],
    ) -> Result<Self, ConfigError> {
        let path = if path.is_dir() { path.join(presets::RESOLVED) } else { path.to_owned() };
        let text = read_limited(&path).map_err(|source| ConfigError::Read {
            help: presets::help_for_missing(&path, &source),
            path: path.clone(),
            source,
        })?;
        Self::from_layers(&path, &text, environment, settings)
    }

    /// Merges the layers: `text` is what `path` holds.
    ///
    /// # Errors
    /// As [`Resolved::load`], except for reading.
    pub fn from_layers(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        settings: &[Setting],
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        layers.add_file(path, text)?;
        layers.add_environment(environment)?;
        for Setting { key, value } in settings {
            layers.add_text(key, value, Origin::CommandLine)?;
        }
        let mut resolved = Self { config: layers.config, path: path.to_owned(), origins: layers.origins };
        resolved.fill_dependent_defaults();
        Ok(resolved)
    }

    /// A configuration that was made, not read, and will be that of `path`.
    pub fn from_config(path: &Path, config: TrainConfig) -> Self {
        Self { config, path: path.to_owned(), origins: BTreeMap::new() }
    }

    /// Where the value of a key comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// The config file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key, in the order of the sections.
    pub fn entries(&self) -> Vec<Entry> {
        let document = json!(self.config);
        let entry = |key: String| {
            let pointer = format!("/{}", key.replace('.', "/"));
            let value = document.pointer(&pointer).cloned().unwrap_or(Value::Null);
            let origin = self.origin(&key).clone();
            Entry { key, value, origin }
        };
        schema::keys().map(entry).collect()
    }

    /// Keys whose default follows from other keys.
    fn fill_dependent_defaults(&mut self) {
        let classes = self.config.model_classes();
        let TrainConfig { run, data, model, diffusion, .. } = &mut self.config;
        if run.name.is_empty() {
            run.name =
                self.path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
        }
        if run.dir.is_empty() {
            run.dir = format!("runs/{}", run.name);
        }
        if data.num_classes == 0 {
            data.num_classes = classes;
        }
        model.sample_size.get_or_insert(data.image_size);
        model.in_channels.get_or_insert(data.channels);
        model.out_channels.get_or_insert(diffusion.variance_type.out_channels(data.channels));
    }
}

/// The text of a config file, which is a few kilobytes: whatever is longer was not meant.
fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        let message = format!("longer than {MAX_CONFIG_BYTES} bytes, so not a config file");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// The layers so far.
struct Layers {
    document: Value,
    config: TrainConfig,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn new() -> Self {
        let config = TrainConfig::default();
        Self { document: json!(config), config, origins: BTreeMap::new() }
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let origin = |line| Origin::File { path: path.to_owned(), line };
        let assignments = parse_file(text)
            .map_err(|Malformed { message, line }| ConfigError::Syntax { place: origin(line).to_string(), message })?;
        for assignment in assignments {
            let empty_section = assignment.value.as_object().is_some_and(serde_json::Map::is_empty);
            if empty_section && self.document.get(&assignment.key).is_some() {
                continue;
            }
            self.assign(&assignment.key, &[assignment.value], origin(assignment.line))?;
        }
        Ok(())
    }

    /// Takes variables of the form `DDPM_SECTION__KEY`; others that begin with `DDPM_` are none of its business.
    fn add_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        let named = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            let (section, key) = name.strip_prefix("DDPM_")?.split_once("__")?;
            Some((format!("{section}.{key}").to_lowercase(), name, value.to_string_lossy().into_owned()))
        };
        let mut assignments: Vec<_> = environment.into_iter().filter_map(named).collect();
        assignments.sort();
        for (key, variable, value) in assignments {
            self.add_text(&key, &value, Origin::Environment { variable })?;
        }
        Ok(())
    }

    /// A value from outside a file: what it means as TOML, or else the text itself.
    fn add_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        self.assign(key, &[parse_value(text), Value::String(text.to_owned())], origin)
    }

    /// Sets a key to the first of `readings` that its type takes; the error is that of the first.
    fn assign(&mut self, key: &str, readings: &[Value], origin: Origin) -> Result<(), ConfigError> {
        let Some((section, name)) = key.split_once('.').filter(|_| schema::keys().any(|known| known == key)) else {
            return Err(unknown_key(key, &origin));
        };
        let previous = self.document[section][name].take();
        // "none" unsets an optional key; TOML has no word for it.
        let unset = readings.iter().any(|value| value == "none") && self.attempt(section, name, &Value::Null).is_ok();
        let readings = if unset { &[Value::Null] } else { readings };
        let mut complaints = Vec::new();
        for reading in readings {
            match self.attempt(section, name, reading) {
                Ok(config) => {
                    self.config = config;
                    self.origins.insert(key.to_owned(), origin);
                    return Ok(());
                }
                Err(complaint) => complaints.push(complaint),
            }
        }
        let any_name = self.attempt(section, name, &json!("")).err();
        self.document[section][name] = previous;
        Err(type_error(key, &readings[0], &complaints[0], any_name.as_deref(), &origin))
    }

    /// The whole configuration with one more value, or what serde says against it.
    fn attempt(&mut self, section: &str, name: &str, value: &Value) -> Result<TrainConfig, String> {
        self.document[section][name] = value.clone();
        TrainConfig::deserialize(&self.document).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resolve(text: &str, environment: &[(&str, &str)], settings: &[&str]) -> Result<Resolved, ConfigError> {
        let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let settings: Vec<Setting> = settings.iter().map(|text| text.parse().unwrap()).collect();
        Resolved::from_layers(Path::new("configs/my.toml"), text, environment, &settings)
    }

    /// The whole text a user would see.
    fn refusal(text: &str, environment: &[(&str, &str)], settings: &[&str]) -> String {
        crate::error::Failure::from(resolve(text, environment, settings).unwrap_err()).to_string()
    }

    #[test]
    fn each_layer_covers_the_one_below_and_is_named_as_origin() {
        let file = "[train]\nlr = 1e-3\nsteps = 10\nbatch_size = 4\n";
        let environment =
            [("DDPM_TRAIN__STEPS", "20"), ("DDPM_TRAIN__BATCH_SIZE", "8"), ("DDPM_CACHE", "x"), ("HOME", "y")];
        let resolved = resolve(file, &environment, &["train.batch_size=16"]).unwrap();
        let train = &resolved.config.train;
        assert_eq!((train.lr, train.steps, train.batch_size), (1e-3, 20, 16));
        assert_eq!(resolved.origin("train.lr").to_string(), "configs/my.toml:2");
        assert_eq!(resolved.origin("train.steps").to_string(), "DDPM_TRAIN__STEPS");
        assert_eq!(resolved.origin("train.batch_size").to_string(), "command line");
        assert_eq!(resolved.origin("train.eps").to_string(), "default");
    }

    #[test]
    fn values_outside_a_file_need_no_quotes() {
        let settings =
            ["train.lr_schedule=cosine", "run.name=17", "train.betas=[0.8, 0.9]", "data.crop=none", "data.source=a=b"];
        let config = resolve("", &[], &settings).unwrap().config;
        assert_eq!(config.train.lr_schedule, super::super::types::LrSchedule::Cosine);
        assert_eq!((config.run.name.as_str(), config.data.source.as_str()), ("17", "a=b"));
        assert_eq!(config.train.betas, [0.8, 0.9]);
    }

    #[test]
    fn none_unsets_an_optional_key() {
        let file = "[model]\nnum_class_embeds = 10\n";
        let resolved = resolve(file, &[], &["model.num_class_embeds=none"]).unwrap();
        assert_eq!(resolved.config.model.num_class_embeds, None);
    }

    #[test]
    fn shape_classes_and_name_follow_from_the_rest() {
        let file = "[data]\nimage_size = 64\nchannels = 1\n[model]\nnum_class_embeds = 10\n";
        let config = resolve(file, &[], &[]).unwrap().config;
        assert_eq!(
            (config.model.sample_size, config.model.in_channels, config.model.out_channels),
            (Some(64), Some(1), Some(1))
        );
        assert_eq!(config.data.num_classes, 10);
        assert_eq!(resolve(file, &[], &["loss.label_dropout=0.1"]).unwrap().config.data.num_classes, 9);
        assert_eq!((config.run.name.as_str(), config.run.dir.as_str()), ("my", "runs/my"));
    }

    #[test]
    fn every_key_is_listed_with_its_origin() {
        let entries = resolve("[train]\nlr = 1e-3\n", &[], &[]).unwrap().entries();
        let lr = entries.iter().find(|entry| entry.key == "train.lr").unwrap();
        assert_eq!((&lr.value, lr.origin.kind()), (&json!(1e-3), "file"));
        assert!(entries.iter().any(|entry| entry.key == "model.num_class_embeds" && entry.value.is_null()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        assert_eq!(
            refusal("[train]\nbatchsize = 3\n", &[], &[]),
            "error: configs/my.toml:2: unknown key `train.batchsize`\n  help: did you mean `train.batch_size`?"
        );
        assert_eq!(
            refusal("[trian]\n", &[], &[]),
            "error: configs/my.toml:1: unknown key `trian`\n  help: did you mean the section [train]?"
        );
        assert_eq!(
            refusal("[train]\nseed = 3\n", &[], &[]),
            "error: configs/my.toml:2: unknown key `train.seed`\n  help: did you mean `run.seed`?"
        );
        assert_eq!(
            refusal("", &[("DDPM_TRAIN__LRR", "1")], &[]),
            "error: DDPM_TRAIN__LRR: unknown key `train.lrr`\n  help: did you mean `train.lr`?"
        );
        assert_eq!(
            refusal("", &[], &["lr=1"]),
            "error: command line: unknown key `lr`\n  help: did you mean `train.lr`?"
        );
        assert_eq!(
            refusal("", &[], &["train.zzzzzzzz=1"]),
            "error: command line: unknown key `train.zzzzzzzz`\n  help: keys of [train]: steps, batch_size, micro_batch, lr, betas, eps, weight_decay, lr_schedule, warmup_steps, clip_grad_norm, precision, gradient_checkpointing, deterministic, ema_decays"
        );
    }

    #[test]
    fn a_value_of_another_type_is_refused_with_what_the_key_takes() {
        assert_eq!(
            refusal("[train]\n\nsteps = 1.5\n", &[], &[]),
            "error: configs/my.toml:3: train.steps = 1.5: expected a whole number, 0 or more"
        );
        assert_eq!(refusal("", &[], &["train.lr=fast"]), "error: command line: train.lr = \"fast\": expected a number");
        assert_eq!(
            refusal("[train]\nlr_schedule = \"cosin\"\n", &[], &[]),
            "error: configs/my.toml:2: train.lr_schedule = \"cosin\": expected one of \"constant\", \"cosine\", \"linear\"\n  help: did you mean \"cosine\"?"
        );
        assert_eq!(
            refusal("[train]\nlr_schedule = 3\n", &[], &[]),
            "error: configs/my.toml:2: train.lr_schedule = 3: expected one of \"constant\", \"cosine\", \"linear\""
        );
        assert_eq!(
            refusal("[train]\nbetas = [0.9]\n", &[], &[]),
            "error: configs/my.toml:2: train.betas = [0.9]: expected a list of 2"
        );
        assert_eq!(
            refusal("[data]\nflip = \"yes\"\n", &[], &[]),
            "error: configs/my.toml:2: data.flip = \"yes\": expected true or false"
        );
        assert_eq!(
            refusal("[train]\nsteps = -3\n", &[], &[]),
            "error: configs/my.toml:2: train.steps = -3: expected a whole number, 0 or more"
        );
    }

    #[test]
    fn what_only_diffusers_has_is_refused_by_name() {
        assert_eq!(
            refusal("[model]\ndown_block_types = [\"DownBlock2D\", \"SkipDownBlock2D\"]\n", &[], &[]),
            "error: configs/my.toml:2: model.down_block_types = [\"DownBlock2D\", \"SkipDownBlock2D\"]: expected names that exist; \"SkipDownBlock2D\" is not one of \"DownBlock2D\", \"AttnDownBlock2D\", \"ResnetDownsampleBlock2D\"\n  help: SkipDownBlock2D: the blocks of score-based models, which carry the image along and filter it, are not supported"
        );
        assert_eq!(
            refusal("[model]\ntime_embedding_type = \"fourier\"\n", &[], &[]),
            "error: configs/my.toml:2: model.time_embedding_type = \"fourier\": expected \"positional\"\n  help: fourier: random Fourier features of the noise level belong to score-based models and are not supported"
        );
        assert_eq!(
            refusal("", &[], &["model.class_embed_type=identity"]),
            "error: command line: model.class_embed_type = \"identity\": expected \"timestep\"\n  help: identity: it takes classes as ready-made embeddings; labels here are numbers, so it is not supported"
        );
    }

    #[test]
    fn a_file_much_longer_than_a_config_is_refused_unread() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let refused = crate::error::Failure::from(Resolved::load_file(file.path()).unwrap_err()).to_string();
        assert!(refused.contains("longer than 1048576 bytes"), "{refused}");
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused_with_the_line() {
        let text = refusal("[train]\nlr = = 3\n", &[], &[]);
        assert!(text.starts_with("error: configs/my.toml:2: this is not TOML: "), "{text}");
    }
}
