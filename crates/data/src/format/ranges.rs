//! Samples that are ranges of bytes in large files: members of tar shards, values of Arrow tables.
//!
//! A few bytes a sample say where each image lies, so any of them is read by its index, and many in one call to the store. Of a
//! very large data set these bytes stay on the disk ([`Kept`]).

use std::sync::Arc;

use bytes::Bytes;

use super::files::{READ_AT_ONCE_BYTES, and_classes, slashed};
use super::kept::{self, Kept};
use super::{Objects, RawImage, Source};
use crate::error::{DataError, counted};
use crate::image_limits::ImageLimits;
use crate::store::{FileInfo, Piece, Store, StoreError};

/// Where an image lies, and its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    /// In bytes; one of 4 GiB and more is [`Span::TOO_LARGE`].
    pub(super) size: u32,
    /// [`Span::NONE`] where it has none.
    pub(super) label: u32,
}

impl Span {
    /// No label, or no image.
    pub(super) const NONE: u32 = u32::MAX;
    pub(super) const TOO_LARGE: u32 = u32::MAX - 1;

    /// The size of an image of so many bytes.
    pub(super) fn size_of(bytes: u64) -> u32 {
        u32::try_from(bytes).unwrap_or(Self::TOO_LARGE).min(Self::TOO_LARGE)
    }

    /// The class, where it has one.
    pub(super) fn label(self) -> Option<u32> {
        Some(self.label).filter(|&label| label != Self::NONE)
    }
}

/// Texts behind one another in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) text: String,
    /// Where each ends.
    pub(super) ends: Vec<u32>,
}

impl Names {
    /// Adds one; an absurdly long list gets empty names.
    pub(super) fn push(&mut self, name: &str) {
        if u32::try_from(self.text.len() + name.len()).is_ok() {
            self.text.push_str(name);
        }
        self.ends.push(self.text.len() as u32);
    }

    pub(super) fn get(&self, index: usize) -> Option<&str> {
        let start = index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.text.get(start as usize..*self.ends.get(index)? as usize)
    }
}

/// A file with some samples.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) file: FileInfo,
    pub(super) spans: Vec<Span>,
    /// The samples' names; they have row numbers where it is `None`.
    pub(super) names: Option<Names>,
}

/// What is known about all shards together.
#[derive(Debug)]
pub(super) struct About {
    /// `data.source`.
    pub(super) place: String,
    /// What a shard is called: "tar shard".
    pub(super) kind: &'static str,
    /// Why there are no labels, where a column seems to hold some.
    pub(super) odd: Option<String>,
    pub(super) has_labels: bool,
    /// Samples without a label, where the others have one.
    pub(super) unlabelled: usize,
    pub(super) class_names: Option<Vec<String>>,
    pub(super) fingerprint: String,
    pub(super) notices: Vec<String>,
}

/// The samples of one or more shards, one after another.
#[derive(Debug)]
pub(super) struct RangeSource {
    about: About,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    /// The index of each file's first sample.
    starts: Vec<usize>,
    len: usize,
    /// A worker must not read a mislabelled archive into memory.
    limits: ImageLimits,
    rows: Rows,
}

/// Where each sample lies, and its name.
#[derive(Debug)]
enum Rows {
    /// In memory: those of each file.
    Held(Vec<(Vec<Span>, Option<Names>)>),
    /// In a file.
    Kept(Kept),
}

/// A sample that was looked up.
struct Row<'a> {
    file: &'a FileInfo,
    span: Span,
    id: String,
}

impl RangeSource {
    /// `shards` hold one sample at least.
    pub(super) fn new(store: Arc<dyn Store>, shards: Vec<Shard>, about: About) -> Self {
        let (starts, len) = starts(shards.iter().map(|shard| shard.spans.len()));
        let (files, rows) = shards.into_iter().map(|Shard { file, spans, names }| (file, (spans, names))).unzip();
        Self { about, store, files, starts, len, limits: ImageLimits::default(), rows: Rows::Held(rows) }
    }

    /// The samples of `files`, of which an index was kept.
    pub(super) fn of_kept(store: Arc<dyn Store>, files: Vec<FileInfo>, found: kept::Found) -> Self {
        let (starts, len) = starts(found.lens.into_iter());
        let limits = ImageLimits::default();
        Self { about: found.about, store, files, starts, len, limits, rows: Rows::Kept(found.kept) }
    }

    /// With other limits for an image.
    pub(super) fn limited(self, limits: ImageLimits) -> Self {
        Self { limits, ..self }
    }

    /// Adds these notices.
    pub(super) fn with_notices(mut self, notices: impl IntoIterator<Item = String>) -> Self {
        self.about.notices.extend(notices);
        self
    }

    /// Looks a sample up.
    fn row(&self, index: usize) -> Result<Row<'_>, DataError> {
        if index >= self.len {
            return Err(DataError::NoSuchSample { index, len: self.len });
        }
        let at = self.starts.partition_point(|&start| start <= index) - 1;
        let (file, number) = (&self.files[at], index - self.starts[at]);
        let id = |name: Option<&str>| match name {
            Some(name) => format!("{}: {name}", slashed(&file.name)),
            None => format!("{} row {number}", slashed(&file.name)),
        };
        match &self.rows {
            Rows::Held(held) => {
                let (spans, names) = &held[at];
                let id = id(names.as_ref().and_then(|names| names.get(number)));
                Ok(Row { file, span: spans[number], id })
            }
            Rows::Kept(kept) => kept.row(index).map(|(span, name)| Row { file, span, id: id(Some(&name)) }),
        }
    }
}

impl<'a> Row<'a> {
    /// Where its bytes lie, or why they cannot be read.
    fn piece(&self, limits: ImageLimits) -> Result<Piece<'a>, DataError> {
        let Span { offset, size, .. } = self.span;
        let unreadable = |reason: String| DataError::Unreadable { sample: self.id.clone(), reason };
        match size {
            Span::NONE => Err(unreadable("it has no image (images kept outside the file are not read)".to_owned())),
            Span::TOO_LARGE => Err(unreadable("the image is larger than 4 GiB".to_owned())),
            _ => {
                limits.check_file(size.into()).map_err(unreadable)?;
                Ok(Piece { file: self.file, range: offset..offset.saturating_add(size.into()) })
            }
        }
    }

    fn sample(self, bytes: Result<Bytes, StoreError>) -> Result<RawImage, DataError> {
        match bytes {
            Ok(bytes) => Ok(RawImage { id: self.id, bytes, label: self.span.label() }),
            Err(error) => Err(error.of_sample(self.id)),
        }
    }
}

/// The index of each file's first sample, and how many samples there are.
fn starts(lens: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let (mut starts, mut len) = (Vec::new(), 0);
    for of_file in lens {
        starts.push(len);
        len += of_file;
    }
    (starts, len)
}

impl Source for RangeSource {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let row = self.row(index)?;
        let Piece { file, range } = row.piece(self.limits)?;
        row.sample(self.store.read_one(file, range))
    }

    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        let (mut bytes, mut rows, mut pieces) = (0u64, Vec::new(), Vec::new());
        for &index in indices.iter().take(self.store.at_once()) {
            let Ok((row, piece)) = self.row(index).and_then(|row| row.piece(self.limits).map(|piece| (row, piece)))
            else {
                break;
            };
            bytes += piece.range.end - piece.range.start;
            if bytes > READ_AT_ONCE_BYTES {
                break;
            }
            rows.push(row);
            pieces.push(piece);
        }
        if pieces.len() < 2 {
            return indices.iter().take(1).map(|&index| self.read(index)).collect();
        }
        let read = self.store.read(&pieces);
        rows.into_iter().zip(read).map(|(row, bytes)| row.sample(bytes)).collect()
    }

    fn will_need(&self, indices: &[usize]) -> Result<(), DataError> {
        let pieces: Vec<_> =
            indices.iter().filter_map(|&index| self.row(index).ok()?.piece(self.limits).ok()).collect();
        Ok(self.store.will_need(&pieces)?)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.about.class_names.as_deref()
    }

    fn has_labels(&self) -> bool {
        self.about.has_labels
    }

    fn unlabelled(&self) -> usize {
        self.about.unlabelled
    }

    fn fingerprint(&self) -> &str {
        &self.about.fingerprint
    }

    fn notices(&self) -> &[String] {
        &self.about.notices
    }

    fn is_far(&self) -> bool {
        self.store.is_far()
    }

    fn objects(&self) -> Option<Objects> {
        Objects::of(&*self.store, &self.files)
    }

    fn describe(&self) -> String {
        let About { place, kind, odd, class_names, .. } = &self.about;
        let (images, shards) = (counted(self.len, "image"), counted(self.files.len(), kind));
        let classes = and_classes(class_names.as_deref());
        let odd = odd.as_ref().map_or(String::new(), |odd| format!(" ({odd})"));
        format!("{place}: {images} in {shards}{classes}{odd}")
    }
}
