//! What all formats do with the names of files: by extension, by split, as part of a fingerprint.

use std::ffi::OsStr;
use std::path::Path;

use crate::error::DataError;
use crate::store::FileInfo;

/// Whether `path` ends in one of `extensions`, in any case.
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| extensions.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Whether a file or folder name belongs to `split`: "train", "train.parquet", "train-00000-of-00002.parquet".
pub(super) fn names_split(name: &OsStr, split: &str) -> bool {
    let rest = name.to_str().and_then(|n| n.strip_prefix(split));
    rest.is_some_and(|r| r.is_empty() || r.starts_with(['-', '_', '.']))
}

/// Keeps what belongs to `split`: files in a folder of that name, or named after it. `place` names the source in errors.
pub(super) fn keep_split(place: &str, files: Vec<FileInfo>, split: Option<&str>) -> Result<Vec<FileInfo>, DataError> {
    let Some(split) = split else { return Ok(files) };
    let belongs = |file: &FileInfo| file.name.iter().any(|part| names_split(part, split));
    let (kept, others): (Vec<_>, Vec<_>) = files.into_iter().partition(belongs);
    if kept.is_empty() {
        let found = others.iter().take(3).map(|file| file.name.display().to_string()).collect();
        return Err(DataError::UnknownSplit { split: split.into(), place: place.to_owned(), found });
    }
    Ok(kept)
}

/// Hashes what identifies a source: each part with its length in front, so that no two lists run into one another.
#[derive(Default)]
pub(super) struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    pub(super) fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Adds a path in a form that is the same on every system.
    pub(super) fn add_path(&mut self, path: &Path) {
        self.add(slashed(path).as_bytes());
    }

    pub(super) fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// A relative path with `/` between its parts.
pub(super) fn slashed(path: &Path) -> String {
    path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}
