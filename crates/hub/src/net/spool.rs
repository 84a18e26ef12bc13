//! A push on this disk: all files that are to be sent, written once and kept until the hub has them.
//!
//! ```text
//! runs/NAME/hub/                        for a model that is no run's: ~/.cache/ddpm/hub/
//!   LOCK
//!   owner--name[--revision]/
//!     files/                            the diffusers folder
//!     push.json                         where it goes, and each file's hashes; written last
//! ```
//! A folder without `push.json` is no spool. There is one model per repository and revision, and a newer one replaces it: after a
//! day without a hub only the newest model should be sent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ddpm_run::durable::replace_file;
use ddpm_run::{RunError, RunLock};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::Hub;
use super::commit::Wanted;
use super::convert::disk;
use super::digest::Digests;
use crate::error::HubError;
use crate::name::Revision;
use crate::parcel::{Content, Pushed, Target};
use crate::settings::Settings;

const FORMAT_VERSION: u32 = 1;
const RECORD: &str = "push.json";
const FILES: &str = "files";

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

/// See the module. Holds the lock until it is dropped.
#[derive(Debug)]
pub struct Spool {
    place: PathBuf,
    target: Target,
    record: Record,
    was_there: bool,
    _lock: RunLock,
}

impl Spool {
    /// The spool in `root` for `target`: the one that is there, if it is of this content and undamaged, else a new one,
    /// whose folder `write` makes; it returns the files, relative to the folder.
    ///
    /// # Errors
    /// Another process pushes from there, or it cannot be written; what `write` returns.
    pub fn open<E: From<HubError>>(
        root: &Path,
        target: Target,
        content: Content,
        write: impl FnOnce(&Path) -> Result<Vec<PathBuf>, E>,
    ) -> Result<Self, E> {
        let lock = take(root)?;
        let place = root.join(folder_name(&target));
        let Content { fingerprint, message } = content;
        if let Some(record) = verified(&place, &fingerprint) {
            return Ok(Self { place, target, record, was_there: true, _lock: lock });
        }
        make_room(&place)?;
        let folder = place.join(FILES);
        let mut files = BTreeMap::new();
        for file in write(&folder)? {
            let path = folder.join(&file);
            let digests = Digests::of(&path).map_err(disk("read back", &path))?;
            files.insert(file.to_string_lossy().into_owned(), digests);
        }
        let (repo, revision) = (target.repo.to_string(), target.revision.to_string());
        let record = Record { format_version: FORMAT_VERSION, repo, revision, message, fingerprint, files };
        let path = place.join(RECORD);
        replace_file(&path, json!(record).to_string().as_bytes()).map_err(disk("written", &path))?;
        Ok(Self { place, target, record, was_there: false, _lock: lock })
    }

    /// Whether it was there already, from a push that did not end well.
    pub fn was_there(&self) -> bool {
        self.was_there
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
    /// The hub does not take it: then it stays, and the error names its place.
    pub fn push(self, settings: Settings) -> Result<Pushed, HubError> {
        let (repo, endpoint) = (self.target.repo.clone(), settings.endpoint.clone());
        let wanted = Wanted {
            revision: &self.target.revision,
            private: self.target.private,
            folder: &self.folder(),
            files: &self.record.files,
            message: &self.record.message,
        };
        let applied = Hub::new(settings, repo.clone())
            .and_then(|hub| hub.commit(&wanted))
            .map_err(|error| HubError::Waiting { error: Box::new(error), place: self.place.clone() })?;
        self.remove()?;
        Ok(Pushed { commit: applied.commit, was_there: applied.was_there, url: format!("{endpoint}/{repo}") })
    }

    /// Removes it, sent or not.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove(self) -> Result<(), HubError> {
        remove(&self.place).map_err(disk("removed", &self.place))
    }
}

/// Makes and locks the folder of spools.
fn take(root: &Path) -> Result<RunLock, HubError> {
    fs::create_dir_all(root).map_err(disk("made", root))?;
    RunLock::acquire(root).map_err(|error| match error {
        RunError::Locked { path, holder } => HubError::Held { path, holder },
        other => other.into(),
    })
}

/// Removes what is at `place`, and makes it anew. The record goes first: without it, half-replaced files are no spool.
fn make_room(place: &Path) -> Result<(), HubError> {
    for path in [place.join(RECORD), place.to_owned()] {
        remove(&path).map_err(disk("replaced", &path))?;
    }
    fs::create_dir_all(place).map_err(disk("made", place))
}

fn folder_name(target: &Target) -> String {
    let repo = target.repo.folder();
    if target.revision == Revision::default() { repo } else { format!("{repo}--{}", target.revision.file_name()) }
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
