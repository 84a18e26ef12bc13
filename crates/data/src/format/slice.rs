//! A part of a source: `data.split = "train[:9000]"`, the notation of Hugging Face's `datasets`.
//!
//! It holds images out without a second file: train on `[:9000]`, evaluate on `[9000:]`. Bounds count samples, from the end
//! where they are negative, or are percentages (`[:90%]`), rounded to the nearest sample. The order is the source's own: a
//! folder is sorted by name, so there a slice may hold few classes.

use std::ops::Range;
use std::sync::Arc;

use super::files::Fingerprint;
use super::{Objects, RawImage, Source};
use crate::error::DataError;

/// `data.split`, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Split<'a> {
    /// The split's name; `None` takes all of the source.
    pub(super) name: Option<&'a str>,
    /// The samples taken of it.
    pub(super) slice: Option<Slice>,
}

/// The samples from one bound to another; an absent one is the source's end on that side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slice {
    from: Option<Bound>,
    to: Option<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// Counted from the start, or from the end where it is negative.
    Sample(i64),
    /// A share of the source in percent, likewise.
    Percent(f64),
}

impl<'a> Split<'a> {
    /// Reads `NAME`, `NAME[FROM:TO]` or `[FROM:TO]`.
    pub(super) fn parse(text: Option<&'a str>) -> Result<Self, DataError> {
        let Some(text) = text else { return Ok(Self::default()) };
        let bad = || DataError::BadSlice { split: text.to_owned(), len: None };
        let Some((name, rest)) = text.split_once('[') else { return Ok(Self { name: Some(text), slice: None }) };
        let (from, to) = rest.strip_suffix(']').and_then(|slice| slice.split_once(':')).ok_or_else(bad)?;
        let bound = |text: &str| match text.trim() {
            "" => Ok(None),
            text => Bound::parse(text).map(Some).ok_or_else(bad),
        };
        let slice = Slice { from: bound(from)?, to: bound(to)? };
        Ok(Self { name: Some(name.trim()).filter(|name| !name.is_empty()), slice: Some(slice) })
    }
}

impl Bound {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share: &f64| share.abs() <= 100.0).map(Self::Percent),
            None => text.parse().ok().map(Self::Sample),
        }
    }

    /// The place in a source of `len` samples, at most `len`.
    fn place(self, len: usize) -> usize {
        let from_start = match self {
            Self::Sample(at) => at,
            Self::Percent(share) => (share / 100.0 * len as f64).round() as i64,
        };
        let counts_from_the_end = match self {
            Self::Sample(at) => at < 0,
            Self::Percent(share) => share.is_sign_negative(),
        };
        let at = if counts_from_the_end { from_start.saturating_add(len as i64) } else { from_start };
        usize::try_from(at).unwrap_or(0).min(len)
    }
}

impl Slice {
    fn range(self, len: usize) -> Range<usize> {
        let from = self.from.map_or(0, |bound| bound.place(len));
        from..self.to.map_or(len, |bound| bound.place(len))
    }
}

/// Consecutive samples of another source, at least one.
pub(super) struct SlicedSource {
    inner: Arc<dyn Source>,
    range: Range<usize>,
    fingerprint: String,
}

impl SlicedSource {
    /// `slice` of `inner`; `split` is what the user wrote.
    pub(super) fn new(inner: Arc<dyn Source>, slice: Slice, split: &str) -> Result<Self, DataError> {
        let range = slice.range(inner.len());
        if range.is_empty() {
            return Err(DataError::BadSlice { split: split.to_owned(), len: Some(inner.len()) });
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(inner.fingerprint().as_bytes());
        fingerprint.add(format!("{range:?}").as_bytes());
        Ok(Self { inner, range, fingerprint: fingerprint.finish() })
    }
}

impl Source for SlicedSource {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        if index >= self.len() {
            return Err(DataError::NoSuchSample { index, len: self.len() });
        }
        self.inner.read(self.range.start + index)
    }

    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        let inside: Vec<_> = indices.iter().take_while(|&&i| i < self.len()).map(|i| self.range.start + i).collect();
        if inside.is_empty() {
            return indices.iter().take(1).map(|&index| self.read(index)).collect();
        }
        self.inner.read_many(&inside)
    }

    fn will_need(&self, indices: &[usize]) -> Result<(), DataError> {
        let inside: Vec<_> = indices.iter().filter(|&&i| i < self.len()).map(|i| self.range.start + i).collect();
        self.inner.will_need(&inside)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.inner.class_names()
    }

    fn has_labels(&self) -> bool {
        self.inner.has_labels()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notices(&self) -> &[String] {
        self.inner.notices()
    }

    fn is_far(&self) -> bool {
        self.inner.is_far()
    }

    fn objects(&self) -> Option<Objects> {
        self.inner.objects()
    }

    fn describe(&self) -> String {
        let Range { start, end } = self.range;
        format!("{} (images {start} to {} of them)", self.inner.describe(), end - 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn taken(text: &str, len: usize) -> (Option<&str>, Range<usize>) {
        let split = Split::parse(Some(text)).unwrap();
        (split.name, split.slice.unwrap_or_default().range(len))
    }

    #[test]
    fn slices_mean_what_they_mean_in_hugging_faces_datasets() {
        assert_eq!(taken("train", 10), (Some("train"), 0..10));
        assert_eq!(taken("train[:9]", 10), (Some("train"), 0..9));
        assert_eq!(taken("[9:]", 10), (None, 9..10));
        assert_eq!(taken("train[-3:-1]", 10), (Some("train"), 7..9));
        assert_eq!(taken("train[10%:25%]", 1000), (Some("train"), 100..250));
        assert_eq!(taken("[-20%:]", 10), (None, 8..10));
        assert_eq!(taken("[:33%]", 10), (None, 0..3), "rounded to the nearest");
        assert_eq!(taken("[-99:99]", 10), (None, 0..10), "ends beyond the source are its ends");
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        for text in ["train[", "train[5]", "[a:b]", "[:200%]", "[1:2]x", "[1.5:]"] {
            let error = Split::parse(Some(text)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("data.split = {text}: ")), "{error}");
        }
    }
}
