//! Indices of shards, kept in the user's cache directory, so that the headers of a shard are read once and not at every start.
//!
//! A kept index is used while the shard has the size and the version (time of change, etag) that it had; where the store
//! knows no version, nothing is kept. A file that is not whole is made again: nothing here can fail, only be slower.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::index::{Found, Index};
use crate::cache_file::write_beside;
use crate::format::files::Fingerprint;
use crate::format::ranges::{Names, Span};
use crate::store::{FileInfo, Store};

/// The first bytes of a file; another layout gets another number.
const MAGIC: &[u8] = b"ddpm tar index 3";
/// Of blake3, at the end.
const HASH: usize = 32;
/// Bytes of a span.
const SPAN: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    size: u64,
    version: u64,
    samples: usize,
    found: Found,
}

/// The index of the shard at `place`, if it is kept.
pub(super) fn load(folder: Option<&Path>, place: &Path, file: &FileInfo) -> Option<Index> {
    parse(&fs::read(kept_at(folder?, place, file)?).ok()?, file)
}

/// Keeps the index of the shard at `place`, as its headers say.
pub(super) fn keep(folder: Option<&Path>, place: &Path, file: &FileInfo, index: &Index) {
    let Some(kept) = folder.and_then(|folder| kept_at(folder, place, file)) else { return };
    if let Err(error) = write_beside(&kept, |mut to| to.write_all(&encode(index, file))) {
        tracing::debug!("the index of {} is not kept: {error}", place.display());
    }
}

/// Where the index of a shard is kept; `None` where it cannot be known whether the shard has changed.
fn kept_at(folder: &Path, place: &Path, file: &FileInfo) -> Option<PathBuf> {
    let place = absolute(place).filter(|_| file.version != 0)?;
    let name = blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex();
    Some(folder.join(format!("{name}.index")))
}

/// A place that is the same from whatever directory.
fn absolute(place: &Path) -> Option<PathBuf> {
    let far = place.to_string_lossy().contains("://");
    if far { Some(place.to_owned()) } else { std::path::absolute(place).ok() }
}

fn is_index(name: &Path) -> bool {
    name.extension().is_some_and(|extension| extension == "index")
}

/// Where the index of all of `files` together is kept, and what they are as they are now; `others` lie beside them. `None` where
/// nothing is kept.
pub(super) fn of_set(store: &dyn Store, files: &[FileInfo], others: &[FileInfo]) -> Option<(PathBuf, String)> {
    let folder = store.cache()?.join("sets");
    let place = absolute(&store.place(Path::new("")))?;
    let (mut name, mut identity) = (Fingerprint::default(), Fingerprint::default());
    name.add_path(&place);
    // What is not read changes nothing; of a store that is not far, that is also the indices.
    let read = |name: &Path| name.ends_with(super::CLASSES_FILE) || (store.is_far() && is_index(name));
    for file in files.iter().chain(others.iter().filter(|file| read(&file.name))) {
        if file.version == 0 {
            return None;
        }
        name.add_path(&file.name);
        identity.add_path(&file.name);
        identity.add(&[file.size.to_le_bytes(), file.version.to_le_bytes()].concat());
    }
    Some((folder.join(format!("{}.index", name.finish())), identity.finish()))
}

/// An index as the bytes of a file.
pub(super) fn encode(index: &Index, file: &FileInfo) -> Vec<u8> {
    let samples = index.spans.len();
    let found = serde_json::json!({
        "size": file.size, "version": file.version, "samples": samples, "found": index.found
    });
    let head = found.to_string();
    let mut bytes = [MAGIC, &(head.len() as u32).to_le_bytes(), head.as_bytes()].concat();
    for span in &index.spans {
        bytes.extend(span.offset.to_le_bytes());
        bytes.extend(span.size.to_le_bytes());
        bytes.extend(span.label.to_le_bytes());
    }
    index.names.ends.iter().for_each(|end| bytes.extend(end.to_le_bytes()));
    bytes.extend(index.names.text.as_bytes());
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    bytes
}

/// The index in `bytes`, if they are whole and belong to `file` as it is now.
pub(super) fn parse(bytes: &[u8], file: &FileInfo) -> Option<Index> {
    let (bytes, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
    if blake3::hash(bytes).as_bytes() != hash {
        return None;
    }
    let (length, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (head, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let Head { size, version, samples, found } = serde_json::from_slice(head).ok()?;
    if (size, version) != (file.size, file.version) {
        return None;
    }
    let (spans, rest) = rest.split_at_checked(samples.checked_mul(SPAN)?)?;
    let (ends, text) = rest.split_at_checked(samples.checked_mul(4)?)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let span = |bytes: &[u8]| Span {
        offset: number(&bytes[..8]),
        size: number(&bytes[8..12]) as u32,
        label: number(&bytes[12..]) as u32,
    };
    let names = Names {
        text: String::from_utf8(text.to_vec()).ok()?,
        ends: ends.chunks_exact(4).map(|end| number(end) as u32).collect(),
    };
    Some(Index { spans: spans.chunks_exact(SPAN).map(span).collect(), names, found })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tempfile::TempDir;

    fn index() -> Index {
        let mut index = Index { found: Found { texts: vec!["cat".into()], ..Found::default() }, ..Index::default() };
        for n in 0..3 {
            index.spans.push(Span { offset: 1 << 40, size: 7 + n, label: if n == 1 { Span::NONE } else { 0 } });
            index.names.push(&format!("ü{n}.jpg"));
        }
        index
    }

    /// Whether the index had to be made.
    fn made(folder: &Path, file: &FileInfo) -> bool {
        let (folder, place) = (Some(folder), Path::new("a.tar"));
        match load(folder, place, file) {
            Some(kept) => assert_eq!(kept, index()),
            None => {
                keep(folder, place, file, &index());
                return true;
            }
        }
        false
    }

    #[test]
    fn an_index_is_made_once_until_the_shard_changes() {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("deep/cache");
        let file = FileInfo { name: "a.tar".into(), size: 100, version: 5 };
        assert_eq!([made(&folder, &file), made(&folder, &file)], [true, false]);
        for changed in [FileInfo { size: 101, ..file.clone() }, FileInfo { version: 6, ..file.clone() }] {
            assert_eq!([made(&folder, &changed), made(&folder, &changed)], [true, false]);
        }
        let unknown = FileInfo { version: 0, ..file };
        assert_eq!([made(&folder, &unknown), made(&folder, &unknown)], [true, true], "no version, no cache");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "one file a shard, and nothing half-written");
    }

    #[test]
    fn a_damaged_cache_is_made_again_and_one_that_cannot_be_written_does_no_harm() {
        let dir = TempDir::new().unwrap();
        let file = FileInfo { name: "a.tar".into(), size: 100, version: 5 };
        assert!(made(dir.path(), &file));
        let kept = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&kept).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&kept, &damaged).unwrap();
            assert!(made(dir.path(), &file), "byte {at}");
            assert!(parse(&whole[..at], &file).is_none());
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let nowhere = dir.path().join("file/below");
        assert_eq!([made(&nowhere, &file), made(&nowhere, &file)], [true, true]);
    }
}
