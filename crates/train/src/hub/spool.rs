//! A push on this disk: everything that is to be sent, made once, kept until the hub has it.
//!
//! ```text
//! runs/NAME/hub/                        for a model that is no run's: ~/.cache/ddpm/hub/
//!   LOCK
//!   owner--name[--revision]/
//!     files/                            the diffusers folder
//!     push.json                         where it goes, and each file's hashes; written last
//! ```
//! A spool without `push.json` does not exist. One model per repository and revision: a newer one takes its place, for a
//! hub that was down for a day wants the newest model and not a day of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::Hub;
use super::commit::Wanted;
use super::digest::Digests;
use super::error::HubError;
use super::name::{RepoName, Revision};
use super::settings::Settings;
use crate::error::{ExitCode, Failure};
use crate::exchange::{ExportOptions, Measured, export};
use crate::training::model::Model;
use ddpm_run::checkpoint::parse_dir_name;
use ddpm_run::durable::replace_file;
use ddpm_run::{RunError, RunLock, RunPaths};

const FORMAT_VERSION: u32 = 1;
const RECORD: &str = "push.json";
const FILES: &str = "files";

/// Where a model is pushed to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The repository.
    pub repo: RepoName,
    /// The branch.
    pub revision: Revision,
    /// Make the repository private, if it has to be made.
    pub private: bool,
    /// What goes into the folder.
    pub samples: usize,
    /// Leave a learned variance out.
    pub epsilon_only: bool,
    /// The licence to state, as the hub names it.
    pub licence: Option<String>,
    /// What was measured of the model.
    pub measured: Option<Measured>,
}

/// `push.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format_version: u32,
    repo: String,
    revision: String,
    message: String,
    /// Of the model and of everything that shapes the folder.
    fingerprint: String,
    files: BTreeMap<String, Digests>,
}

/// See the module. The lock is held as long as this lives.
#[derive(Debug)]
pub struct Spool {
    place: PathBuf,
    target: Target,
    record: Record,
    /// It was there already, from a push that did not end well.
    pub was_there: bool,
    _lock: RunLock,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The commit that has the model.
    pub commit: String,
    /// The repository had it already, and nothing was sent.
    pub was_there: bool,
    /// Its page.
    pub url: String,
}

impl Spool {
    /// The spool of `model` for `target`: the one that is there, if it is of this model and undamaged, else a new one.
    ///
    /// # Errors
    /// Exit code 8 if another process pushes from there, 1 if it cannot be written.
    pub fn of(model: &Model, target: Target, progress: &mut dyn FnMut(usize)) -> Result<Self, Failure> {
        let root = root_of(&model.origin);
        fs::create_dir_all(&root).map_err(disk("made", &root))?;
        let lock = RunLock::acquire(&root).map_err(|error| match error {
            RunError::Locked { .. } => Failure::from_error(ExitCode::Locked, &error)
                .hint("another process pushes from there: wait until it has ended, or stop it"),
            other => other.into(),
        })?;
        let place = root.join(folder_name(&target));
        let fingerprint = fingerprint(model, &target)?;
        if let Some(record) = verified(&place, &fingerprint) {
            return Ok(Self { place, target, record, was_there: true, _lock: lock });
        }
        // The record first: files that are being replaced are no spool.
        for path in [place.join(RECORD), place.clone()] {
            remove(&path).map_err(disk("replaced", &path))?;
        }
        fs::create_dir_all(&place).map_err(disk("made", &place))?;
        let folder = place.join(FILES);
        let repo = target.repo.to_string();
        let options = ExportOptions {
            epsilon_only: target.epsilon_only,
            samples: target.samples,
            repo: Some(&repo),
            licence: target.licence.as_deref(),
            measured: target.measured.as_ref(),
        };
        let exported = export(model, &folder, options, progress)?;
        let mut files = BTreeMap::new();
        for file in &exported.files {
            let path = folder.join(file);
            let digests = Digests::of(&path).map_err(disk("read back", &path))?;
            files.insert(file.to_string_lossy().into_owned(), digests);
        }
        let revision = target.revision.to_string();
        let message = message(model);
        let record = Record { format_version: FORMAT_VERSION, repo, revision, message, fingerprint, files };
        let path = place.join(RECORD);
        replace_file(&path, json!(record).to_string().as_bytes()).map_err(disk("written", &path))?;
        Ok(Self { place, target, record, was_there: false, _lock: lock })
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The folder that is to be sent.
    pub fn folder(&self) -> PathBuf {
        self.place.join(FILES)
    }

    /// Its files, and the size of each.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.record.files.iter().map(|(path, digests)| (path.as_str(), digests.size))
    }

    /// Sends it, and removes it once the hub has it.
    ///
    /// # Errors
    /// Exit code 7, with the place of the spool, which stays.
    pub fn push(self, settings: Settings) -> Result<Pushed, Failure> {
        let (repo, endpoint) = (self.target.repo.clone(), settings.endpoint.clone());
        let wanted = Wanted {
            revision: &self.target.revision,
            private: self.target.private,
            folder: &self.folder(),
            files: &self.record.files,
            message: &self.record.message,
        };
        let applied = Hub::new(settings, repo.clone()).and_then(|hub| hub.commit(&wanted)).map_err(|error| {
            let failure = Failure::from(error);
            let hint = failure.hint.clone().unwrap_or_default();
            let place = self.place.display();
            failure.hint(format!("{hint}\nnothing is lost: {place} waits for the next push of this model"))
        })?;
        self.remove()?;
        Ok(Pushed { commit: applied.commit, was_there: applied.was_there, url: format!("{endpoint}/{repo}") })
    }

    /// Removes it, sent or not.
    ///
    /// # Errors
    /// Exit code 1.
    pub fn remove(self) -> Result<(), Failure> {
        remove(&self.place).map_err(disk("removed", &self.place))?;
        Ok(())
    }
}

/// Where the spools of a model's pushes are: in its run, if it has one.
fn root_of(origin: &Path) -> PathBuf {
    let is_checkpoint = origin.file_name().and_then(|name| name.to_str()).and_then(parse_dir_name).is_some();
    let run = origin.parent().and_then(Path::parent).map(RunPaths::new);
    match run.filter(|run| is_checkpoint && run.config().is_file()) {
        Some(run) => run.uploads(),
        None => Settings::user_cache().join("ddpm").join("hub"),
    }
}

fn folder_name(target: &Target) -> String {
    let repo = target.repo.folder();
    if target.revision == Revision::default() { repo } else { format!("{repo}--{}", target.revision.file_name()) }
}

/// "clothes at step 1500 (ddpm 0.1.0)"
fn message(model: &Model) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let name = Some(model.config.run.name.as_str()).filter(|name| !name.is_empty()).unwrap_or("a model");
    match &model.facts {
        Some(facts) => format!("{name} at step {} (ddpm {version})", facts.step),
        None => format!("{name} (ddpm {version})"),
    }
}

/// Two models of one fingerprint make the same folder.
fn fingerprint(model: &Model, target: &Target) -> Result<String, Failure> {
    let mut hasher = blake3::Hasher::new();
    for value in model.params.buffer().to_vec()? {
        hasher.update(&value.to_le_bytes());
    }
    let Target { repo, samples, epsilon_only, licence, measured, .. } = target;
    let facts = model.facts.clone().map(|facts| facts.with_run(&model.origin));
    let rest = json!([env!("CARGO_PKG_VERSION"), repo.to_string(), samples, epsilon_only, licence, measured, facts, {
        "model": model.config.model,
        "diffusion": model.config.diffusion,
    }]);
    hasher.update(rest.to_string().as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// The record of a spool of this fingerprint whose files are what it says.
fn verified(place: &Path, fingerprint: &str) -> Option<Record> {
    let bytes = fs::read(place.join(RECORD)).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    let is_this = record.format_version == FORMAT_VERSION && record.fingerprint == fingerprint;
    let folder = place.join(FILES);
    let is_whole = || {
        let same = |(path, digests): (&String, &Digests)| Digests::of(&folder.join(path)).is_ok_and(|d| d == *digests);
        record.files.iter().all(same)
    };
    (is_this && is_whole()).then_some(record)
}

/// Removes a file or a folder; one that is not there is removed already.
fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// For `map_err`: what could not be done, and where.
pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::Disk { action, path, source }
}
