//! Merges defaults, file, environment and command line, and records the origin of every value.
//!
//! Assignments are added one at a time, and the whole document is read again each time, so that an error always belongs to one
//! key, whose line or variable is known. There are some eighty keys: this costs less than a millisecond.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ddpm_run::{RunPaths, shell};
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
    /// Reads a config file (or the one in a run directory), the environment of this process and `--set` options. The file that a
    /// run directory keeps means the run in this directory: a copy or a moved run is not the run that the file remembers.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML, or a layer has a key that does not exist or a value of another type.
    pub fn load(path: &Path, settings: &[Setting]) -> Result<Self, ConfigError> {
        Self::load_with(path, std::env::vars_os(), settings)
    }

    /// Reads only a config file, such as the one that a run directory keeps, without the environment.
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
        let text = read_limited(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let here = directory_of_run(&path).map(|dir| Setting { key: "run.dir".to_owned(), value: dir });
        let settings: Vec<Setting> = here.into_iter().chain(settings.iter().cloned()).collect();
        Self::from_layers(&path, &text, environment, &settings)
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
        resolved.expand_paths()?;
        resolved.fill_dependent_defaults();
        Ok(resolved)
    }

    /// Replaces `~` and variables at the start of paths.
    fn expand_paths(&mut self) -> Result<(), ConfigError> {
        let place = |key: &str| self.origins.get(key).unwrap_or(&Origin::Default).to_string();
        let TrainConfig { run, data, .. } = &mut self.config;
        for (key, path) in
            [("run.dir", &mut run.dir), ("data.source", &mut data.source), ("data.cache_dir", &mut data.cache_dir)]
        {
            *path = shell::expanded(path).map_err(|error| ConfigError::Impossible {
                place: place(key),
                message: format!("{key} = {error}"),
                help: error.help(),
            })?;
        }
        Ok(())
    }

    /// A configuration that was built, not read, and is to be written to `path`.
    pub(crate) fn from_config(path: &Path, config: TrainConfig) -> Self {
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

/// The run directory that keeps this config file, if one does.
fn directory_of_run(path: &Path) -> Option<String> {
    let dir = path.parent().filter(|_| path.file_name().is_some_and(|name| name == presets::RESOLVED))?;
    let run = RunPaths::new(dir);
    let is_run = run.record().exists() || run.checkpoints().is_dir();
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    is_run.then(|| dir.display().to_string())
}

/// The text of a config file. It is a few kilobytes; a much longer file was named by mistake.
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

    /// Reads variables of the form `DDPM_SECTION__KEY`; other variables that begin with `DDPM_` are ignored.
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

    /// A value from outside a file: parsed as TOML, or else the text itself.
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

    /// The whole configuration with one more value, or serde's error.
    fn attempt(&mut self, section: &str, name: &str, value: &Value) -> Result<TrainConfig, String> {
        self.document[section][name] = value.clone();
        TrainConfig::deserialize(&self.document).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests;
