//! Where the samples of a tar shard lie: its headers are read, and the few bytes that hold labels; no image is.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::header::{self, BLOCK, Block, Header, Kind};
use crate::format::LABEL_NAMES;
use crate::format::files::has_extension;
use crate::format::folder::EXTENSIONS;
use crate::format::ranges::{Names, Span};
use crate::store::{FileInfo, Store, StoreError};

/// Read at once from a disk: the headers of several small images.
const WINDOW: u64 = 64 << 10;
/// Read at once over a network, where an answer takes as long as some megabytes.
const FAR_WINDOW: u64 = 4 << 20;
/// Read behind a file that is larger than this: the next header and a label. A store behind a network makes a block of it.
const HOP: u64 = 4 << 10;
/// Names and records about one file; POSIX systems allow names of 4 KiB.
const MAX_RECORDS: u64 = 1 << 20;
/// A `.json` with everything that is known about an image.
const MAX_JSON: u64 = 1 << 20;
/// A longer text is no name of a class.
const MAX_CLASS: u64 = 200;
/// How many entries that were passed over are named.
const MAX_NAMED: usize = 3;
/// How many endings are counted apart.
const MAX_ENDINGS: usize = 20;

/// The samples of a shard, in the order of their first files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// A label is a place in [`Found::texts`].
    pub(super) spans: Vec<Span>,
    pub(super) names: Names,
    pub(super) found: Found,
}

/// What else was found.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    /// The values of labels.
    pub(super) texts: Vec<String>,
    /// Images that have a label from a `.txt` file.
    pub(super) from_txt: usize,
    /// `.txt` files that are no names of classes.
    pub(super) captions: usize,
    /// Files that are neither images nor labels, by ending.
    pub(super) others: BTreeMap<String, usize>,
    /// Entries that are no plain files.
    pub(super) odd: usize,
    /// The first of them, with what they are.
    pub(super) odd_named: Vec<(String, String)>,
    /// The shard ends where a header could stand, without the blocks of zeros that end an archive: perhaps it was cut there.
    pub(super) without_end: bool,
}

/// Why a shard cannot be indexed.
#[derive(Debug)]
pub(super) enum Fault {
    Store(StoreError),
    Damaged(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Reads the headers of a shard.
pub(super) fn build(store: &dyn Store, file: &FileInfo) -> Result<Index, Fault> {
    let ahead = if store.at_once() > 1 { FAR_WINDOW } else { WINDOW };
    if file.size == 0 {
        return Err(Fault::Damaged("it is empty".to_owned()));
    }
    let mut shard = Reader { store, file, ahead, hops: false, start: 0, bytes: Bytes::new(), has_end: false };
    let (mut samples, mut at) = (Samples::default(), 0);
    while let Some(entry) = shard.entry(at)? {
        // Between large files most of what is read ahead would be images.
        shard.hops = entry.next - at >= ahead;
        at = entry.next;
        samples.add(entry, &mut shard)?;
    }
    samples.found.without_end = !shard.has_end;
    Ok(samples.finish())
}

/// A file of a shard.
struct Entry {
    name: Vec<u8>,
    kind: Kind,
    sparse: bool,
    data: Range<u64>,
    /// Where the next header is.
    next: u64,
}

/// Pieces of a shard, read some way ahead.
struct Reader<'a> {
    store: &'a dyn Store,
    file: &'a FileInfo,
    ahead: u64,
    /// Whether the next read is behind a large file, and for a header alone.
    hops: bool,
    /// What is in memory, and where it begins.
    start: u64,
    bytes: Bytes,
    /// Whether the end of the archive was met.
    has_end: bool,
}

impl Reader<'_> {
    /// Bytes that lie inside the file.
    fn get(&mut self, range: Range<u64>) -> Result<Bytes, StoreError> {
        let held = self.start..self.start + self.bytes.len() as u64;
        if range.start < held.start || range.end > held.end {
            let ahead = if self.hops { HOP } else { self.ahead };
            let end = range.end.max(range.start.saturating_add(ahead)).min(self.file.size);
            self.bytes = self.store.read_one(self.file, range.start..end)?;
            self.start = range.start;
        }
        let from = (range.start - self.start) as usize;
        Ok(self.bytes.slice(from..from + (range.end - range.start) as usize))
    }

    /// The block at `at`, which must be there.
    fn block(&mut self, at: u64) -> Result<Block, Fault> {
        let end = at.checked_add(BLOCK).filter(|&end| end <= self.file.size);
        let end = end.ok_or_else(|| Fault::Damaged(format!("it ends in the middle of a header, at byte {at}")))?;
        let bytes = self.get(at..end)?;
        bytes[..].try_into().map_err(|_| Fault::Damaged(format!("no header at byte {at}")))
    }

    /// The entry whose headers begin at `at`, with what headers before its own say; `None` at the end.
    fn entry(&mut self, mut at: u64) -> Result<Option<Entry>, Fault> {
        let (mut name, mut size, mut sparse) = (None, None, false);
        loop {
            if at == self.file.size {
                return Ok(None);
            }
            let parsed = header::parse(&self.block(at)?);
            let Some(header) = parsed.map_err(|what| Fault::Damaged(format!("{what}, at byte {at}")))? else {
                self.has_end = true;
                return Ok(None);
            };
            let mut begin = at + BLOCK;
            if let Kind::Sparse { more: true } = header.kind {
                while self.block(begin)?[header::MORE_PIECES] != 0 {
                    begin += BLOCK;
                }
                begin += BLOCK;
            }
            let data = self.data(at, begin, &header, size)?;
            let next = data.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(self.file.size);
            match header.kind {
                Kind::LongName => {
                    let bytes = self.records(at, data)?;
                    name = Some(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec());
                }
                Kind::Records => {
                    let damaged = || Fault::Damaged(format!("damaged pax records, at byte {at}"));
                    let records = header::parse_records(&self.records(at, data)?).ok_or_else(damaged)?;
                    name = records.name.or(name);
                    size = records.size;
                    sparse = records.sparse;
                }
                kind => {
                    sparse |= matches!(kind, Kind::Sparse { .. });
                    let name = name.unwrap_or(header.name);
                    return Ok(Some(Entry { name, kind, sparse, data, next }));
                }
            }
            at = next;
        }
    }

    /// Where the bytes lie that the header at `at` announces.
    fn data(&self, at: u64, begin: u64, header: &Header, size: Option<u64>) -> Result<Range<u64>, Fault> {
        let plain = matches!(header.kind, Kind::File | Kind::Sparse { .. } | Kind::Other);
        let size = size.filter(|_| plain).unwrap_or(header.size);
        let end = begin.checked_add(size).filter(|&end| end <= self.file.size);
        let end = end.ok_or_else(|| {
            let (name, whole) = (String::from_utf8_lossy(&header.name), self.file.size);
            Fault::Damaged(format!("{name:?} at byte {at} has {size} bytes, but the shard ends at byte {whole}"))
        })?;
        Ok(begin..end)
    }

    fn records(&mut self, at: u64, data: Range<u64>) -> Result<Bytes, Fault> {
        if data.end - data.start > MAX_RECORDS {
            return Err(Fault::Damaged(format!("{} bytes of records at byte {at}", data.end - data.start)));
        }
        Ok(self.get(data)?)
    }
}

/// What is known of a sample.
#[derive(Default)]
struct Sample {
    /// Its image, with the preference of that; a smaller one wins.
    image: Option<(u8, Span, String)>,
    /// Its label, likewise.
    label: Option<(u8, u32)>,
}

/// The samples so far, by their keys.
#[derive(Default)]
struct Samples {
    places: HashMap<Vec<u8>, usize>,
    samples: Vec<Sample>,
    label_places: HashMap<String, u32>,
    found: Found,
}

/// Label files, by preference.
const CLS: u8 = 0;
const JSON: u8 = 1;
const TXT: u8 = 2;

impl Samples {
    fn add(&mut self, entry: Entry, shard: &mut Reader<'_>) -> Result<(), Fault> {
        let name = entry.name.strip_prefix(b"./").unwrap_or(&entry.name);
        let base = name.rsplit(|&byte| byte == b'/').next().unwrap_or(name);
        if entry.sparse || !matches!(entry.kind, Kind::File) {
            self.odd(name, &entry);
            return Ok(());
        }
        // A hidden file, also what macOS puts beside each file, and a file without an ending belong to no sample.
        let Some(dot) = base.iter().position(|&byte| byte == b'.').filter(|&dot| dot > 0) else { return Ok(()) };
        let key = &name[..name.len() - base.len() + dot];
        let ending = String::from_utf8_lossy(&base[dot + 1..]).to_ascii_lowercase();
        let whole = String::from_utf8_lossy(name);
        if has_extension(whole.as_ref().as_ref(), EXTENSIONS) {
            let rank = u8::from(ending.contains('.'));
            let span = Span {
                offset: entry.data.start,
                size: Span::size_of(entry.data.end - entry.data.start),
                label: Span::NONE,
            };
            let sample = self.sample(key);
            // Of two files of the same name the later one counts, as everywhere in tar.
            if sample.image.as_ref().is_none_or(|(other, ..)| rank <= *other) {
                sample.image = Some((rank, span, whole.into_owned()));
            }
            return Ok(());
        }
        let (rank, limit) = match ending.as_str() {
            "cls" => (CLS, MAX_CLASS),
            "json" => (JSON, MAX_JSON),
            "txt" => (TXT, MAX_CLASS),
            _ => {
                if self.found.others.len() < MAX_ENDINGS || self.found.others.contains_key(&ending) {
                    *self.found.others.entry(ending).or_default() += 1;
                }
                return Ok(());
            }
        };
        let text = if entry.data.end - entry.data.start <= limit { Some(shard.get(entry.data)?) } else { None };
        let label = text.and_then(|bytes| label_in(rank, &bytes));
        self.found.captions += usize::from(rank == TXT && label.is_none());
        if let Some(label) = label {
            let place = self.label_place(label);
            let sample = self.sample(key);
            if sample.label.is_none_or(|(other, _)| rank <= other) {
                sample.label = Some((rank, place));
            }
        }
        Ok(())
    }

    fn sample(&mut self, key: &[u8]) -> &mut Sample {
        let next = self.samples.len();
        let place = *self.places.entry(key.to_vec()).or_insert(next);
        if place == next {
            self.samples.push(Sample::default());
        }
        &mut self.samples[place]
    }

    fn label_place(&mut self, text: String) -> u32 {
        let next = self.found.texts.len() as u32;
        if let Some(&place) = self.label_places.get(&text) {
            return place;
        }
        self.found.texts.push(text.clone());
        self.label_places.insert(text, next);
        next
    }

    fn odd(&mut self, name: &[u8], entry: &Entry) {
        let what = match entry.kind {
            _ if entry.sparse => "a sparse file",
            // Folders are in most archives.
            Kind::Empty if name.ends_with(b"/") || name == b"." => return,
            Kind::Empty => "a link or a device",
            _ => "an entry of another kind",
        };
        // Records that hold for all files, which `git archive` writes.
        if entry.kind != Kind::Other {
            self.found.odd += 1;
            if self.found.odd_named.len() < MAX_NAMED {
                self.found.odd_named.push((String::from_utf8_lossy(name).into_owned(), what.to_owned()));
            }
        }
    }

    /// The samples that have an image, with the texts of their labels and no others.
    fn finish(mut self) -> Index {
        let mut index = Index::default();
        let texts = std::mem::take(&mut self.found.texts);
        let mut places = vec![Span::NONE; texts.len()];
        for Sample { image, label } in self.samples {
            let Some((_, span, name)) = image else { continue };
            let label = label.map(|(rank, text)| {
                self.found.from_txt += usize::from(rank == TXT);
                let place = &mut places[text as usize];
                if *place == Span::NONE {
                    *place = self.found.texts.len() as u32;
                    self.found.texts.push(texts[text as usize].clone());
                }
                *place
            });
            index.spans.push(Span { label: label.unwrap_or(Span::NONE), ..span });
            index.names.push(&name);
        }
        index.found = self.found;
        index
    }
}

/// The label in a `.cls`, `.json` or `.txt` file, if there is one.
fn label_in(rank: u8, bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_start_matches('\u{feff}').trim();
    if rank == JSON {
        let json: Value = serde_json::from_str(text).ok()?;
        return LABEL_NAMES.iter().find_map(|&name| match json.get(name)? {
            Value::String(text) => Some(text.clone()).filter(|text| text.len() as u64 <= MAX_CLASS),
            Value::Number(number) => number.as_i64().map(|number| number.to_string()),
            _ => None,
        });
    }
    let name = !text.is_empty() && !text.contains(['\n', '\r', '\0']);
    name.then(|| text.to_owned())
}
