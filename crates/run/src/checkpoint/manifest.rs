//! MANIFEST.json: which files a checkpoint consists of, with their sizes and blake3 hashes.
//!
//! It is the only file that no hash protects, so every byte of it has to matter: unknown and repeated fields are
//! refused, names are plain file names, and the text ends with its closing brace, without a line feed that could be lost
//! unseen.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CheckpointError, FORMAT_VERSION, MANIFEST_FILE, STATE_FILE};

/// A manifest is a few hundred bytes; this bounds what a hostile one can make us read.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// The parsed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub(super) format_version: u32,
    /// Every other file of the checkpoint.
    pub(super) files: Vec<FileEntry>,
}

/// One file's proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    /// Plain file name.
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// Of the content, 64 hexadecimal digits.
    pub(super) blake3: String,
}

/// Only the version, to tell a newer layout from a damaged one.
#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

impl Manifest {
    /// Reads and checks the manifest of the checkpoint in `dir`; the files themselves are [`verify_file`]'s.
    pub(super) fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join(MANIFEST_FILE);
        let text = match read_small(&path, MAX_MANIFEST_BYTES) {
            Err(CheckpointError::MissingFile { .. }) => return Err(CheckpointError::NoManifest { path: dir.into() }),
            other => other?,
        };
        let manifest = Self::parse(&text, &path)?;
        manifest.check(&path)?;
        Ok(manifest)
    }

    /// The bytes of the file.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }

    /// The entry called `name`.
    pub(super) fn entry(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|entry| entry.name == name)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let unreadable = |error: serde_json::Error| CheckpointError::Manifest {
            path: path.into(),
            reason: format!("not a manifest: {error}"),
        };
        let VersionOnly { format_version } = serde_json::from_slice(text).map_err(unreadable)?;
        if format_version != FORMAT_VERSION {
            return Err(CheckpointError::FormatVersion { path: path.into(), found: format_version });
        }
        serde_json::from_slice(text).map_err(unreadable)
    }

    fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        let wrong = |reason: String| Err(CheckpointError::Manifest { path: path.into(), reason });
        let mut seen = HashSet::new();
        for FileEntry { name, .. } in &self.files {
            if let Err(reason) = check_file_name(name) {
                return wrong(reason);
            }
            if !seen.insert(name) {
                return wrong(format!("lists {name:?} twice"));
            }
        }
        if self.entry(STATE_FILE).is_none() {
            return wrong(format!("lists no {STATE_FILE}"));
        }
        Ok(())
    }
}

/// Accepts names that stay inside the checkpoint on every system: letters, digits, `.`, `_`, `-`, no leading dot.
pub(super) fn check_file_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(format!("{name:?} is not a plain file name"));
    }
    if name == MANIFEST_FILE {
        return Err(format!("{MANIFEST_FILE} cannot list itself"));
    }
    Ok(())
}

/// Checks that the file of `entry` exists in `dir` with that size and hash.
pub(super) fn verify_file(dir: &Path, entry: &FileEntry) -> Result<(), CheckpointError> {
    let path = check_size(dir, entry)?;
    let mut hasher = blake3::Hasher::new();
    File::open(&path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(CheckpointError::io("read the file", &path))?;
    let found = hasher.finalize().to_hex().to_string();
    if found != entry.blake3 {
        return Err(CheckpointError::Hash { path, found, expected: entry.blake3.clone() });
    }
    Ok(())
}

/// The cheap half of [`verify_file`], without reading: returns the file's path.
pub(super) fn check_size(dir: &Path, entry: &FileEntry) -> Result<PathBuf, CheckpointError> {
    let path = dir.join(&entry.name);
    let found = regular_file_size(&path)?;
    if found != entry.size {
        return Err(CheckpointError::Size { path, found, expected: entry.size });
    }
    Ok(path)
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let size = regular_file_size(path)?;
    if size > limit {
        return Err(CheckpointError::Size { path: path.into(), found: size, expected: limit });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(CheckpointError::io("read the file", path))?;
    Ok(bytes)
}

fn regular_file_size(path: &Path) -> Result<u64, CheckpointError> {
    // Not `metadata`: a link could lead out of the checkpoint, or to a device that never ends.
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(_) => Err(CheckpointError::NotAFile { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(CheckpointError::MissingFile { path: path.into() })
        }
        Err(error) => Err(CheckpointError::io("look at the file", path)(error)),
    }
}
