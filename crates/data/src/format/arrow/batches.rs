//! The messages of an Arrow stream: the schema, then record batches, each a header and a body.

use std::collections::HashMap;

use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::{MessageHeader, RecordBatch, root_as_message};
use arrow_schema::Schema;
use bytes::Bytes;
use serde_json::Value;

use super::layout::{self, Binary, Columns, LabelKind, Place};
use crate::format::classes::names_of_feature;
use crate::format::ranges::Span;
use crate::store::{FileInfo, Store, StoreError};

/// The header of a batch has a few bytes a column.
const MAX_HEADER: u64 = 16 << 20;
/// Offsets or labels of one batch: millions of rows.
const MAX_COLUMN: u64 = 256 << 20;
/// What the file format begins with.
const FILE_MAGIC: &[u8] = b"ARROW1\0\0";
/// Before the length of a header.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// Why a table cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    Store(StoreError),
    Damaged(String),
    /// There are only these columns.
    NoImages(Vec<String>),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The rows of a file.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) columns: Columns,
    /// The names that the schema gives the classes.
    pub(super) class_names: Option<Vec<String>>,
    /// A label is a place in `texts`, where there are some.
    pub(super) spans: Vec<Span>,
    /// The values of labels that are texts.
    pub(super) texts: Option<Vec<String>>,
}

/// Reads headers, offsets and labels of `file`.
pub(super) fn read(store: &dyn Store, file: &FileInfo) -> Result<Table, Fault> {
    let stream = Stream { store, file };
    let start = if file.size >= 8 && stream.get(0, 8)?[..] == *FILE_MAGIC { 8 } else { 0 };
    let mut message = stream.message(start)?.ok_or_else(|| Fault::Damaged("it is empty".into()))?;
    let schema = schema(&message.header)?;
    let columns = layout::find(&schema).map_err(Fault::NoImages)?;
    let label = columns.label.as_ref();
    let class_names = label.and_then(|label| class_names(&schema, &label.name));
    let texts = label.filter(|label| matches!(label.kind, LabelKind::Text(_))).map(|_| Vec::new());
    let mut rows =
        Rows { columns: &columns, all: layout::total(&schema), spans: Vec::new(), texts, places: HashMap::new() };
    loop {
        match stream.message(message.next)? {
            Some(next) => message = next,
            None => break,
        }
        let parsed = root_as_message(&message.header).map_err(|error| message.damaged(&error))?;
        match parsed.header_type() {
            MessageHeader::RecordBatch => {
                let batch = parsed.header_as_record_batch().ok_or_else(|| message.damaged(&"an empty batch"))?;
                let batch = Batch { stream: &stream, message: &message, batch };
                rows.add(&batch)?;
            }
            // The values of dictionary columns, which are not read.
            MessageHeader::DictionaryBatch => {}
            other => return Err(message.damaged(&format!("an unexpected message, {other:?}"))),
        }
    }
    let Rows { spans, texts, .. } = rows;
    Ok(Table { columns, class_names, spans, texts })
}

fn schema(header: &[u8]) -> Result<Schema, Fault> {
    let damaged = |reason: String| Fault::Damaged(format!("its schema cannot be read: {reason}"));
    let message = root_as_message(header).map_err(|error| damaged(error.to_string()))?;
    let schema = message.header_as_schema().ok_or_else(|| damaged("the first message is no schema".into()))?;
    try_fb_to_schema(schema).map_err(|error| damaged(error.to_string()))
}

/// The names of the classes in the metadata that `datasets` writes.
fn class_names(schema: &Schema, label: &str) -> Option<Vec<String>> {
    let json: Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let features = json.pointer("/info/features").or_else(|| json.get("features"))?;
    names_of_feature(features.get(label)?)
}

struct Stream<'a> {
    store: &'a dyn Store,
    file: &'a FileInfo,
}

/// A message: its header, and where its body is.
struct Message {
    at: u64,
    header: Bytes,
    body: u64,
    next: u64,
}

impl Message {
    fn damaged(&self, reason: &dyn std::fmt::Display) -> Fault {
        Fault::Damaged(format!("the message at byte {}: {reason}", self.at))
    }
}

impl Stream<'_> {
    fn get(&self, start: u64, bytes: u64) -> Result<Bytes, StoreError> {
        self.store.read_one(self.file, start..start + bytes)
    }

    /// The message at `at`; `None` at the end of the stream.
    fn message(&self, at: u64) -> Result<Option<Message>, Fault> {
        let size = self.file.size;
        let damaged =
            |what: &str| Fault::Damaged(format!("the message at byte {at} {what}, but the file ends at byte {size}"));
        // A writer that was stopped may leave out the mark at the end.
        if at == size {
            return Ok(None);
        }
        if size - at < 8 {
            return Err(damaged("needs 8 bytes"));
        }
        let begin = self.get(at, 8)?;
        // Before 0.15 there was no continuation.
        let (length, header) = if begin[..4] == CONTINUATION { (&begin[4..8], at + 8) } else { (&begin[..4], at + 4) };
        let length = u64::from(u32::from_le_bytes(length.try_into().unwrap_or_default()));
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_HEADER || length > size - header {
            return Err(damaged(&format!("has a header of {length} bytes")));
        }
        let bytes = self.get(header, length)?;
        let parsed = root_as_message(&bytes)
            .map_err(|error| Fault::Damaged(format!("no Arrow message at byte {at}: {error}")))?;
        let length =
            u64::try_from(parsed.bodyLength()).ok().filter(|&length| length <= size - header - bytes.len() as u64);
        let length = length.ok_or_else(|| damaged(&format!("has a body of {} bytes", parsed.bodyLength())))?;
        let body = header + bytes.len() as u64;
        Ok(Some(Message { at, header: bytes, body, next: body + length }))
    }
}

/// A record batch, whose numbers are all from the file and may all be wrong.
struct Batch<'a> {
    stream: &'a Stream<'a>,
    message: &'a Message,
    batch: RecordBatch<'a>,
}

impl Batch<'_> {
    /// The rows of a column, which must be those of the batch.
    fn rows(&self, place: Place) -> Result<usize, Fault> {
        let nodes = self.batch.nodes().filter(|nodes| place.node < nodes.len());
        let length = nodes.map(|nodes| nodes.get(place.node).length()).filter(|&length| length == self.batch.length());
        let rows = length.and_then(|length| usize::try_from(length).ok());
        rows.ok_or_else(|| self.message.damaged(&format!("a column of other than {} rows", self.batch.length())))
    }

    /// Where a buffer begins, and its bytes.
    fn buffer(&self, number: usize) -> Result<(u64, u64), Fault> {
        let lost = || self.message.damaged(&format!("buffer {number} is not inside of it"));
        let buffers = self.batch.buffers().filter(|buffers| number < buffers.len()).ok_or_else(lost)?;
        let buffer = buffers.get(number);
        let (start, length) = (u64::try_from(buffer.offset()).ok(), u64::try_from(buffer.length()).ok());
        let (start, length) = start.zip(length).ok_or_else(lost)?;
        let end = start.checked_add(length).and_then(|end| end.checked_add(self.message.body));
        end.filter(|&end| end <= self.message.next).ok_or_else(lost)?;
        Ok((self.message.body + start, length))
    }

    /// The first `bytes` of a buffer.
    fn values(&self, number: usize, bytes: usize) -> Result<Bytes, Fault> {
        let (start, length) = self.buffer(number)?;
        if length < bytes as u64 || bytes as u64 > MAX_COLUMN {
            return Err(self.message.damaged(&format!("buffer {number} has {length} bytes, not {bytes}")));
        }
        Ok(self.stream.get(start, bytes as u64)?)
    }

    /// Which rows of a column are not null; `None` where all are.
    fn valid(&self, place: Place, rows: usize) -> Result<Option<Bytes>, Fault> {
        let (_, length) = self.buffer(place.buffer)?;
        if length == 0 { Ok(None) } else { Ok(Some(self.values(place.buffer, rows.div_ceil(8))?)) }
    }

    /// The ends of the values of a column of bytes in the file, with the start of the first before them.
    fn places(&self, column: &Binary, rows: usize) -> Result<Vec<u64>, Fault> {
        let wanted = rows.saturating_add(1).saturating_mul(column.offset_bytes);
        // A column without rows may have no offsets.
        if rows == 0 {
            return Ok(vec![0]);
        }
        let offsets = self.values(column.place.buffer + 1, wanted)?;
        let (start, length) = self.buffer(column.place.buffer + 2)?;
        let places: Vec<u64> =
            offsets.chunks_exact(column.offset_bytes).map(|bytes| integer(bytes, false) as u64).collect();
        if places.windows(2).any(|pair| pair[0] > pair[1]) || places.last().is_some_and(|&last| last > length) {
            return Err(self.message.damaged(&"offsets that lead out of their column"));
        }
        Ok(places.into_iter().map(|place| start + place).collect())
    }
}

/// Whether a row is there.
fn is_valid(valid: Option<&Bytes>, row: usize) -> bool {
    valid.is_none_or(|bits| bits[row / 8] >> (row % 8) & 1 == 1)
}

/// A number of up to 8 bytes, the lowest first.
fn integer(bytes: &[u8], signed: bool) -> i64 {
    let negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    bytes.iter().rev().fold(if negative { -1 } else { 0 }, |number, &byte| number << 8 | i64::from(byte))
}

/// The rows of all batches so far.
struct Rows<'a> {
    columns: &'a Columns,
    all: Place,
    spans: Vec<Span>,
    texts: Option<Vec<String>>,
    /// The places in `texts`.
    places: HashMap<String, u32>,
}

impl Rows<'_> {
    fn add(&mut self, batch: &Batch<'_>) -> Result<(), Fault> {
        if batch.batch.compression().is_some() {
            return Err(batch.message.damaged(&"compressed batches are not read; save it again without compression"));
        }
        let count = |n: Option<usize>| n.unwrap_or(0);
        let found = Place {
            node: count(batch.batch.nodes().map(|n| n.len())),
            buffer: count(batch.batch.buffers().map(|b| b.len())),
        };
        if found != self.all {
            let Place { node, buffer } = found;
            return Err(batch
                .message
                .damaged(&format!("{node} columns in {buffer} buffers, which is not what the schema says")));
        }
        let image = &self.columns.image;
        let rows = batch.rows(image.place)?;
        let places = batch.places(image, rows)?;
        let valid = batch.valid(image.place, rows)?;
        let around = match self.columns.around {
            Some(place) => batch.valid(place, rows)?,
            None => None,
        };
        let labels = self.labels(batch, rows)?;
        for (row, pair) in places.windows(2).enumerate() {
            let there = is_valid(valid.as_ref(), row) && is_valid(around.as_ref(), row);
            let size = if there { Span::size_of(pair[1] - pair[0]) } else { Span::NONE };
            self.spans.push(Span { offset: pair[0], size, label: labels.get(row).copied().unwrap_or(Span::NONE) });
        }
        Ok(())
    }

    /// The label of each row; nothing where there are none.
    fn labels(&mut self, batch: &Batch<'_>, rows: usize) -> Result<Vec<u32>, Fault> {
        let Some(label) = &self.columns.label else { return Ok(Vec::new()) };
        match &label.kind {
            LabelKind::Odd(_) => Ok(Vec::new()),
            &LabelKind::Number { place, bytes, signed } => {
                if batch.rows(place)? != rows {
                    return Err(batch.message.damaged(&"fewer labels than images"));
                }
                let values = batch.values(place.buffer + 1, rows.saturating_mul(bytes))?;
                let valid = batch.valid(place, rows)?;
                let class = |(row, bytes)| {
                    let class = u32::try_from(integer(bytes, signed)).ok();
                    class.filter(|_| is_valid(valid.as_ref(), row)).unwrap_or(Span::NONE)
                };
                Ok(values.chunks_exact(bytes).enumerate().map(class).collect())
            }
            LabelKind::Text(column) => {
                batch.rows(column.place)?;
                let places = batch.places(column, rows)?;
                let valid = batch.valid(column.place, rows)?;
                let (first, last) = (places[0], places[places.len() - 1]);
                if last - first > MAX_COLUMN {
                    return Err(batch.message.damaged(&format!("labels of {} bytes", last - first)));
                }
                let all = batch.stream.get(first, last - first)?;
                let text = |pair: &[u64]| {
                    String::from_utf8_lossy(&all[(pair[0] - first) as usize..(pair[1] - first) as usize]).into_owned()
                };
                let rows: Vec<_> = places
                    .windows(2)
                    .enumerate()
                    .map(|(row, pair)| is_valid(valid.as_ref(), row).then(|| text(pair)))
                    .collect();
                Ok(rows.into_iter().map(|text| text.map_or(Span::NONE, |text| self.place(text))).collect())
            }
        }
    }

    /// The place of a label's text.
    fn place(&mut self, text: String) -> u32 {
        let texts = self.texts.get_or_insert_default();
        let next = texts.len() as u32;
        *self.places.entry(text).or_insert_with_key(|text| {
            texts.push(text.clone());
            next
        })
    }
}
