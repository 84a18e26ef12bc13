//! Where the samples of a very large data set lie, in a file: 100 million of them would take 4 GB of memory, and minutes to load.
//!
//! ```text
//! chunks       of ROWS samples each: spans (16 bytes), where each name ends (4), the names, and a hash (8)
//! head         what is known of all of them together, as JSON: lengths of the shards, classes, fingerprint, notices
//! places       of the chunks, 8 bytes each, one more for the end of the last
//! tail         lengths of head and places, their hash, what the file is
//! ```
//! Opening reads the end; a sample is looked up by one read of its chunk, and the newest chunks stay in memory. The file is written
//! beside its place, synced and renamed. It is one of the cache: where its end is not whole, or of other shards, opening makes it
//! again. Its chunks are first looked at when they are needed. A damaged one ends the command and removes the file, so that the same
//! command makes it again.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::ranges::{About, Shard, Span};
use crate::cache_file::write_beside;
use crate::error::DataError;

/// The last bytes of a file; another layout gets another number.
const MAGIC: &[u8; 16] = b"ddpm set index 2";
/// Samples of a chunk: some 20 KB, which take as long to read as one.
const ROWS: usize = 512;
const SPAN: usize = 16;
/// Of a chunk's hash.
const HASH: usize = 8;
const TAIL: usize = 8 + 8 + 32 + MAGIC.len();
/// Chunks in memory, 3 MB: a window of the order has 64 runs, which lie in as many chunks or one more each.
const RECENT: usize = 160;

/// What is known of all samples together.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Of the shards as they were.
    identity: String,
    /// Samples of each shard.
    lens: Vec<usize>,
    has_labels: bool,
    unlabelled: usize,
    class_names: Option<Vec<String>>,
    fingerprint: String,
    notices: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    file: File,
    /// Where each chunk begins; the end of the last one behind them.
    places: Vec<u64>,
    len: usize,
    /// The newest last.
    recent: Mutex<VecDeque<(usize, Arc<Chunk>)>>,
}

/// What a file gives for shards that it is about.
pub(super) struct Found {
    pub(super) kept: Kept,
    pub(super) lens: Vec<usize>,
    pub(super) about: About,
}

#[derive(Debug)]
struct Chunk {
    rows: usize,
    bytes: Vec<u8>,
}

/// The index at `path`, if it is whole and of these shards.
pub(super) fn open(path: &Path, identity: &str, place: &str, kind: &'static str) -> Option<Found> {
    let file = File::open(path).ok()?;
    let whole = file.metadata().ok()?.len();
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, whole.checked_sub(TAIL as u64)?).ok()?;
    let (head_len, rest) = tail.split_first_chunk::<8>()?;
    let (places_len, rest) = rest.split_first_chunk::<8>()?;
    let (hash, magic) = rest.split_first_chunk::<32>()?;
    let (head_len, places_len) = (u64::from_le_bytes(*head_len), u64::from_le_bytes(*places_len));
    let length = head_len.checked_add(places_len)?;
    let begin = (whole - TAIL as u64).checked_sub(length).filter(|_| magic == MAGIC)?;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut bytes, begin).ok()?;
    if blake3::hash(&bytes).as_bytes() != hash {
        return None;
    }
    let (head, places) = bytes.split_at_checked(usize::try_from(head_len).ok()?)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let places: Vec<u64> = places.as_chunks().0.iter().map(|place| u64::from_le_bytes(*place)).collect();
    let len = head.lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len))?;
    if head.identity != identity || places.len() != len.div_ceil(ROWS) + 1 {
        return None;
    }
    let about = About {
        place: place.to_owned(),
        kind,
        odd: None,
        has_labels: head.has_labels,
        unlabelled: head.unlabelled,
        class_names: head.class_names,
        fingerprint: head.fingerprint,
        notices: head.notices,
    };
    let kept = Kept { path: path.to_owned(), file, places, len, recent: Mutex::default() };
    Some(Found { kept, lens: head.lens, about })
}

/// Writes an index, beside its place and renamed.
pub(super) fn write(path: &Path, identity: &str, shards: &[Shard], about: &About) -> io::Result<()> {
    let head = Head {
        identity: identity.to_owned(),
        lens: shards.iter().map(|shard| shard.spans.len()).collect(),
        has_labels: about.has_labels,
        unlabelled: about.unlabelled,
        class_names: about.class_names.clone(),
        fingerprint: about.fingerprint.clone(),
        notices: about.notices.clone(),
    };
    let rows = shards.iter().flat_map(|shard| {
        let name = |number: usize| shard.names.as_ref().and_then(|names| names.get(number)).unwrap_or_default();
        shard.spans.iter().enumerate().map(move |(number, &span)| (span, name(number)))
    });
    write_rows(path, &head, rows)
}

fn write_rows<N: AsRef<str>>(path: &Path, head: &Head, rows: impl Iterator<Item = (Span, N)>) -> io::Result<()> {
    write_beside(path, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let places = write_chunks(&mut file, rows)?;
        let head = serde_json::to_vec(head).map_err(io::Error::other)?;
        let places: Vec<u8> = places.iter().flat_map(|place| place.to_le_bytes()).collect();
        let hash = blake3::Hasher::new().update(&head).update(&places).finalize();
        let lengths = [head.len() as u64, places.len() as u64].map(u64::to_le_bytes).concat();
        for part in [&head, &places, &lengths, &hash.as_bytes()[..], MAGIC] {
            file.write_all(part)?;
        }
        // Renamed alone, it could be there without its bytes after a power cut.
        file.into_inner()?.sync_all()
    })
}

/// Where each chunk begins, and where the last one ends.
fn write_chunks<N: AsRef<str>>(to: &mut impl Write, rows: impl Iterator<Item = (Span, N)>) -> io::Result<Vec<u64>> {
    let (mut places, mut rows) = (vec![0], rows.peekable());
    while rows.peek().is_some() {
        let (mut spans, mut ends, mut text) =
            (Vec::with_capacity(ROWS * SPAN), Vec::with_capacity(4 * ROWS), String::new());
        for (span, name) in rows.by_ref().take(ROWS) {
            spans.extend(span.offset.to_le_bytes());
            spans.extend(span.size.to_le_bytes());
            spans.extend(span.label.to_le_bytes());
            text.push_str(name.as_ref());
            ends.extend((text.len() as u32).to_le_bytes());
        }
        let chunk = [spans, ends, text.into_bytes()].concat();
        to.write_all(&chunk)?;
        to.write_all(&blake3::hash(&chunk).as_bytes()[..HASH])?;
        places.push(places.last().copied().unwrap_or(0) + (chunk.len() + HASH) as u64);
    }
    Ok(places)
}

impl Kept {
    /// Where the sample `index` lies, and its name.
    pub(super) fn row(&self, index: usize) -> Result<(Span, String), DataError> {
        if index >= self.len {
            return Err(DataError::NoSuchSample { index, len: self.len });
        }
        let chunk = self.chunk(index / ROWS)?;
        chunk.row(index % ROWS).ok_or_else(|| self.damaged())
    }

    fn chunk(&self, number: usize) -> Result<Arc<Chunk>, DataError> {
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recent = lock();
        if let Some(at) = recent.iter().rposition(|(held, _)| *held == number)
            && let Some((_, chunk)) = recent.remove(at)
        {
            recent.push_back((number, Arc::clone(&chunk)));
            return Ok(chunk);
        }
        drop(recent);
        let chunk = Arc::new(self.read(number)?);
        let mut recent = lock();
        recent.push_back((number, Arc::clone(&chunk)));
        if recent.len() > RECENT {
            recent.pop_front();
        }
        Ok(chunk)
    }

    fn read(&self, number: usize) -> Result<Chunk, DataError> {
        let (Some(&begin), Some(&end)) = (self.places.get(number), self.places.get(number + 1)) else {
            return Err(DataError::NoSuchSample { index: number * ROWS, len: self.len });
        };
        let mut bytes = vec![0; end.saturating_sub(begin) as usize];
        self.file.read_exact_at(&mut bytes, begin).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(),
            _ => DataError::Io { action: "read", path: self.path.clone(), cause },
        })?;
        let hash = bytes.split_off(bytes.len().saturating_sub(HASH));
        if blake3::hash(&bytes).as_bytes()[..HASH] != hash[..] {
            return Err(self.damaged());
        }
        Ok(Chunk { rows: ROWS.min(self.len - number * ROWS), bytes })
    }

    /// Removes the file, so that it is made again.
    fn damaged(&self) -> DataError {
        let removed = match fs::remove_file(&self.path) {
            Ok(()) => true,
            // By another thread that met the same.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        DataError::BadIndex { path: self.path.clone(), removed }
    }
}

impl Chunk {
    fn row(&self, number: usize) -> Option<(Span, String)> {
        let (spans, rest) = self.bytes.split_at_checked(self.rows * SPAN)?;
        let (ends, text) = rest.split_at_checked(self.rows * 4)?;
        let (offset, rest) = spans.get(number * SPAN..)?.split_first_chunk()?;
        let (size, rest) = rest.split_first_chunk()?;
        let label = rest.first_chunk()?;
        let end = |number: usize| Some(u32::from_le_bytes(*ends.get(4 * number..)?.first_chunk()?) as usize);
        let start = number.checked_sub(1).map_or(Some(0), end)?;
        let name = std::str::from_utf8(text.get(start..end(number)?)?).ok()?;
        let span = Span {
            offset: u64::from_le_bytes(*offset),
            size: u32::from_le_bytes(*size),
            label: u32::from_le_bytes(*label),
        };
        Some((span, name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
