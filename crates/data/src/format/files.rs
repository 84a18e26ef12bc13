//! Helpers of all formats: names of files, and what a source says of itself.

use std::path::{Path, PathBuf};

use crate::error::counted;

/// What a call of `read_many` reads at most, unless one file alone is larger: some ten photos, or thousands of icons.
pub(super) const READ_AT_ONCE_BYTES: u64 = 32 << 20;

/// Names in a sentence; more of them are counted.
const NAMED: usize = 3;

/// How many classes there are, after a comma; nothing where they have no names.
pub(super) fn and_classes(names: Option<&[String]>) -> String {
    names.map_or(String::new(), |names| format!(", {}", counted(names.len(), "class")))
}

/// Whether `path` ends in one of `extensions`, in any case.
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| extensions.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Hashes what identifies a source: each part with its length in front, so that two different lists never hash the same bytes.
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

/// A path for a person: one that holds control characters is quoted, so that it cannot break a line or clear a screen.
pub(super) fn shown(path: &Path) -> String {
    crate::error::shown(&slashed(path)).into_owned()
}

/// What a listing passed over, in a sentence.
pub(super) fn passed_over(entries: &[(PathBuf, String)]) -> Option<String> {
    let named = entries.iter().take(NAMED).map(|(name, reason)| format!("{} ({reason})", shown(name)));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match entries.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!entries.is_empty()).then(|| format!("passed over: {named}{more}"))
}
