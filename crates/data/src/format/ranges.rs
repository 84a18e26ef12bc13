//! Samples that are ranges of bytes in large files: members of tar shards, values of Arrow tables.
//!
//! A few bytes a sample say where each image lies, so any of them is read by its index, and many in one call to the store.

use std::sync::Arc;

use bytes::Bytes;

use super::files::{READ_AT_ONCE_BYTES, and_classes, slashed};
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
    pub(super) class_names: Option<Vec<String>>,
    pub(super) fingerprint: String,
    pub(super) notices: Vec<String>,
}

/// The samples of one or more shards, one after another.
#[derive(Debug)]
pub(super) struct RangeSource {
    about: About,
    store: Arc<dyn Store>,
    shards: Vec<Shard>,
    /// The index of each shard's first sample.
    starts: Vec<usize>,
    len: usize,
    /// A worker must not read a mislabelled archive into memory.
    limits: ImageLimits,
}

impl RangeSource {
    /// `shards` hold one sample at least.
    pub(super) fn new(store: Arc<dyn Store>, shards: Vec<Shard>, about: About) -> Self {
        let (mut starts, mut len) = (Vec::with_capacity(shards.len()), 0);
        for shard in &shards {
            starts.push(len);
            len += shard.spans.len();
        }
        Self { about, store, shards, starts, len, limits: ImageLimits::default() }
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

    /// The shard of a sample, and its number there.
    fn find(&self, index: usize) -> Result<(&Shard, usize), DataError> {
        if index >= self.len {
            return Err(DataError::NoSuchSample { index, len: self.len });
        }
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        Ok((&self.shards[shard], index - self.starts[shard]))
    }

    /// Where the bytes of a sample lie, or why they cannot be read.
    fn piece(&self, index: usize) -> Result<Piece<'_>, DataError> {
        let (shard, number) = self.find(index)?;
        let Span { offset, size, .. } = shard.spans[number];
        let unreadable = |reason: String| DataError::Unreadable { sample: id(shard, number), reason };
        match size {
            Span::NONE => Err(unreadable("it has no image (images kept outside the file are not read)".to_owned())),
            Span::TOO_LARGE => Err(unreadable("the image is larger than 4 GiB".to_owned())),
            _ => {
                self.limits.check_file(size.into()).map_err(unreadable)?;
                Ok(Piece { file: &shard.file, range: offset..offset.saturating_add(size.into()) })
            }
        }
    }

    fn sample(&self, index: usize, bytes: Result<Bytes, StoreError>) -> Result<RawImage, DataError> {
        let (shard, number) = self.find(index)?;
        let id = id(shard, number);
        match bytes {
            Ok(bytes) => Ok(RawImage { id, bytes, label: shard.spans[number].label() }),
            Err(error) => Err(error.of_sample(id)),
        }
    }
}

fn id(shard: &Shard, number: usize) -> String {
    let file = slashed(&shard.file.name);
    match shard.names.as_ref().and_then(|names| names.get(number)) {
        Some(name) => format!("{file}: {name}"),
        None => format!("{file} row {number}"),
    }
}

impl Source for RangeSource {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let Piece { file, range } = self.piece(index)?;
        self.sample(index, self.store.read_one(file, range))
    }

    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        let (mut bytes, mut pieces) = (0u64, Vec::new());
        for &index in indices.iter().take(self.store.at_once()) {
            let Ok(piece) = self.piece(index) else { break };
            bytes += piece.range.end - piece.range.start;
            if bytes > READ_AT_ONCE_BYTES {
                break;
            }
            pieces.push(piece);
        }
        if pieces.len() < 2 {
            return indices.iter().take(1).map(|&index| self.read(index)).collect();
        }
        let read = self.store.read(&pieces);
        indices.iter().zip(read).map(|(&index, bytes)| self.sample(index, bytes)).collect()
    }

    fn will_need(&self, indices: &[usize]) -> Result<(), DataError> {
        let pieces: Vec<_> = indices.iter().filter_map(|&index| self.piece(index).ok()).collect();
        Ok(self.store.will_need(&pieces)?)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.about.class_names.as_deref()
    }

    fn has_labels(&self) -> bool {
        self.about.has_labels
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
        Objects::of(&*self.store, self.shards.iter().map(|shard| &shard.file))
    }

    fn describe(&self) -> String {
        let About { place, kind, odd, class_names, .. } = &self.about;
        let (images, shards) = (counted(self.len, "image"), counted(self.shards.len(), kind));
        let classes = and_classes(class_names.as_deref());
        let odd = odd.as_ref().map_or(String::new(), |odd| format!(" ({odd})"));
        format!("{place}: {images} in {shards}{classes}{odd}")
    }
}
