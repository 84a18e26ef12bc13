//! A fresh directory to run commands in, gone when the test ends.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::binary::repository;
use crate::command::Ddpm;

/// The smallest useful network and run: a step takes some 10 ms and contains everything.
pub const TINY: &str = r#"
[run]
name = "tiny"
seed = 1
device = "cpu"

[data]
source = "builtin:fashion10k"
image_size = 16
channels = 1

[model]
block_out_channels = [16, 16]
layers_per_block = 1
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
attention_head_dim = 8
norm_num_groups = 4
attn_norm_num_groups = 4

[train]
steps = 40
batch_size = 4
lr = 1e-3
warmup_steps = 4
ema_decays = [0.9, 0.99]

[checkpoint]
every = 10
keep_last = 2

[sample]
every = 20
num = 1
steps = 2

[log]
every = 3
"#;

/// See the module.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    /// `--set` of [`Place::train`].
    settings: Vec<String>,
    /// Its environment.
    environment: Vec<(String, String)>,
}

/// A directory with nothing in it.
pub fn empty_place() -> Place {
    Place { dir: tempfile::tempdir().unwrap(), settings: Vec::new(), environment: Vec::new() }
}

/// A directory with `tiny.toml`, and a run that has not begun; `settings` (`key=value`) go with every [`Place::train`].
pub fn fresh_run(settings: &[&str]) -> Place {
    let place = Place { settings: settings.iter().map(ToString::to_string).collect(), ..empty_place() };
    place.write("tiny.toml", TINY);
    place
}

/// The same, trained to its end.
#[track_caller]
pub fn trained_run(settings: &[&str]) -> Place {
    let run = fresh_run(settings);
    run.train().succeeds();
    run
}

impl Place {
    /// A directory that has the `configs` and the `assets` of the repository, as a fresh clone has.
    pub fn of_repository() -> Self {
        let place = empty_place();
        for folder in ["configs", "assets"] {
            std::os::unix::fs::symlink(repository().join(folder), place.path(folder)).unwrap();
        }
        place
    }

    /// The absolute path of `path` here.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A command, with its arguments separated by spaces, to be run here.
    pub fn ddpm(&self, line: &str) -> Ddpm {
        Ddpm::new(self.dir.path(), line.split_whitespace())
    }

    /// `ddpm train tiny.toml` with the settings of the run.
    pub fn train(&self) -> Ddpm {
        let train = self.settings.iter().fold(self.ddpm("train tiny.toml"), |train, setting| train.set(setting));
        self.environment.iter().fold(train, |train, (name, value)| train.env(name, value))
    }

    /// One more setting for every [`Place::train`].
    #[must_use]
    pub fn with_setting(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// An environment variable for every [`Place::train`].
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes a file, and the folders it lies in.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A file's bytes.
    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A file's text.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.read(path)).unwrap()
    }

    /// Whether something is there.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The names in a folder, sorted; none if there is no folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Cuts a file to half its length.
    pub fn truncate(&self, path: &str) {
        let bytes = self.read(path);
        self.write(path, &bytes[..bytes.len() / 2]);
    }

    /// The names of the checkpoints of `runs/tiny`, and whatever lies beside them.
    pub fn checkpoints(&self) -> Vec<String> {
        self.names("runs/tiny/checkpoints")
    }

    /// Every file below a folder with its bytes, except `LOCK`, which names the last process.
    #[track_caller]
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for name in self.names(folder) {
            let path = format!("{folder}/{name}");
            if self.path(&path).is_dir() {
                files.extend(self.files(&path));
            } else if name != "LOCK" {
                files.insert(path.clone(), self.read(&path));
            }
        }
        files
    }

    /// The lines of `runs/tiny/metrics.jsonl` without `timing`, which differs in every run. Numbers are written as the shortest
    /// text that reads back to the same bits, so equal lines mean equal bits.
    #[track_caller]
    pub fn metrics(&self) -> Vec<String> {
        let without_timing = |line: &str| {
            let mut record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            record.as_object_mut().unwrap().remove("timing").unwrap();
            record.to_string()
        };
        self.text("runs/tiny/metrics.jsonl").lines().map(without_timing).collect()
    }
}

/// Asserts that the runs in two places have equal results to the bit: checkpoints (weights, averages, moments, state), pictures
/// and metrics.
#[track_caller]
pub fn assert_same_run(a: &Place, b: &Place) {
    assert_eq!(a.metrics(), b.metrics());
    for folder in ["runs/tiny/checkpoints", "runs/tiny/samples"] {
        let (a, b) = (a.files(folder), b.files(folder));
        assert!(!a.is_empty(), "{folder} is empty");
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, bytes) in &a {
            assert!(*bytes == b[name], "{name} differs");
        }
    }
}
