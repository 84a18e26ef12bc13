//! Parquet in Hugging Face's image convention: one file, or several that follow one another.
//!
//! Read through the `parquet` crate's column readers: its Arrow layer would decode whole batches for a row of three columns.

mod blocks;
mod columns;
mod labels;
mod stored;

use std::sync::Arc;

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use self::blocks::{Block, BlockCache, CACHE_BYTES};
use self::columns::Columns;
use self::labels::TextLabels;
use self::stored::StoredFile;
use super::files::{Fingerprint, and_classes, slashed};
use super::ranges::Span;
use super::split::{self, Chosen};
use super::{Objects, RawImage, Source};
use crate::error::{DataError, counted, guard};
use crate::store::{FileInfo, Piece, Store};

/// Files up to this size enter the fingerprint with every byte (16 MiB hash in some 10 ms); of larger ones the length
/// and the end, where Parquet keeps offsets, sizes and statistics of everything before.
const FULLY_HASHED_BYTES: u64 = 16 << 20;

/// Images in the row groups of one or more Parquet files.
#[derive(Debug)]
pub(super) struct ParquetSource {
    place: String,
    files: Vec<ParquetFile>,
    groups: Vec<Group>,
    len: usize,
    /// Where the labels are texts.
    labels: Option<TextLabels>,
    /// Rows that are known to have no label.
    unlabelled: usize,
    class_names: Option<Vec<String>>,
    fingerprint: String,
    notices: Vec<String>,
    cache: BlockCache,
}

#[derive(Debug)]
struct ParquetFile {
    name: String,
    stored: StoredFile,
    metadata: ParquetMetaData,
    columns: Columns,
    class_names: Option<Vec<String>>,
}

/// A row group, in the order of the source.
#[derive(Debug)]
struct Group {
    file: usize,
    number: usize,
    /// The source's index of its first row.
    start: usize,
    rows: usize,
    /// The file's row number of its first row, for messages.
    file_row: usize,
    rows_per_block: usize,
}

impl ParquetSource {
    /// Opens the store's `files` that belong to `split`; `place` is `data.source`.
    pub(in crate::format) fn open(
        place: &str,
        store: &Arc<dyn Store>,
        files: Vec<FileInfo>,
        split: Option<&str>,
    ) -> Result<Self, DataError> {
        let Chosen { files, notice, .. } = split::choose_tables(place, files, split)?;
        let several = files.len() > 1;
        let mut fingerprint = Fingerprint::default();
        let mut opened = Vec::with_capacity(files.len());
        for file in files {
            if several {
                fingerprint.add_path(&file.name);
            }
            opened.push(ParquetFile::open(StoredFile::new(Arc::clone(store), file), &mut fingerprint)?);
        }
        let odd = opened.iter().find_map(|file| Some(format!("{}: {}", file.name, file.odd_label()?)));
        let source = Self::assemble(place.to_owned(), opened, fingerprint)?;
        Ok(source.with_notices(notice.into_iter().chain(odd).collect()))
    }

    /// Adds these notices.
    pub(in crate::format) fn with_notices(mut self, notices: Vec<String>) -> Self {
        self.notices.extend(notices);
        self
    }

    fn assemble(place: String, files: Vec<ParquetFile>, fingerprint: Fingerprint) -> Result<Self, DataError> {
        let class_names = common_class_names(&files)?;
        let mut groups = Vec::new();
        let mut len = 0usize;
        for (number, file) in files.iter().enumerate() {
            len = file.add_groups(number, len, &mut groups)?;
        }
        if len == 0 {
            let detail = format!("{} Parquet files without rows", files.len());
            return Err(DataError::Empty { place, detail });
        }
        let labels = labels::read(&files, &groups)?;
        let unlabelled = match &labels {
            Some(labels) => labels.rows.iter().filter(|&&label| label == Span::NONE).count(),
            None => files.iter().map(|file| columns::unlabelled(&file.columns, &file.metadata)).sum(),
        };
        let notices =
            (0 < unlabelled && unlabelled < len).then(|| format!("{unlabelled} of {len} images have no label"));
        let (fingerprint, cache) = (fingerprint.finish(), BlockCache::new(CACHE_BYTES));
        let class_names = labels.as_ref().and_then(|labels| labels.names.clone()).or(class_names);
        let notices = notices.into_iter().collect();
        Ok(Self { place, files, groups, len, labels, unlabelled, class_names, fingerprint, notices, cache })
    }

    fn group_of(&self, index: usize) -> Result<(usize, &Group), DataError> {
        let after = self.groups.partition_point(|group| group.start <= index);
        match self.groups.get(after.wrapping_sub(1)) {
            Some(group) if index < self.len => Ok((after - 1, group)),
            _ => Err(DataError::NoSuchSample { index, len: self.len }),
        }
    }
}

impl ParquetFile {
    /// Reads the footer, finds the columns, and adds the file to the fingerprint.
    fn open(stored: StoredFile, fingerprint: &mut Fingerprint) -> Result<Self, DataError> {
        let (name, place) = (slashed(stored.name()), stored.place().display().to_string());
        let failed = |reason| match stored.take_error() {
            Some(error) => error.into(),
            None => DataError::BadParquet { place: place.clone(), reason },
        };
        let parse = || ParquetMetaDataReader::new().parse_and_finish(&stored).map_err(|e| e.to_string());
        let metadata = guard(parse).map_err(failed)?;
        hash_file(&stored, fingerprint).map_err(failed)?;
        let about = metadata.file_metadata();
        let found = columns::find(about.schema_descr());
        let advice = || columns::advice(about.schema_descr());
        let no_images = |columns| DataError::NoImageColumn { place: place.clone(), columns, advice: advice() };
        let columns = found.map_err(no_images)?;
        let class_names = columns.label.as_ref().and_then(|label| columns::class_names(about, &label.name));
        Ok(Self { name, stored, metadata, columns, class_names })
    }

    /// What is said of a column that is named like a label and is none, where no other is one.
    fn odd_label(&self) -> Option<String> {
        let schema = self.metadata.file_metadata().schema_descr();
        if self.columns.label.is_none() { columns::odd_label(schema) } else { None }
    }

    /// Appends the row groups; `start` is the source's index of the first row, the result that of the row after the last.
    fn add_groups(&self, file: usize, start: usize, groups: &mut Vec<Group>) -> Result<usize, DataError> {
        let mut next = start;
        for (number, group) in self.metadata.row_groups().iter().enumerate() {
            let bad = |fault: String| {
                let reason = format!("row group {number} {fault}");
                DataError::BadParquet { place: self.stored.place().display().to_string(), reason }
            };
            if let Some(fault) = self.columns.fault_in(group) {
                return Err(bad(fault));
            }
            if let Some(column) = columns::unread_compression(&self.columns, group) {
                let found = self.stored.place().display().to_string();
                return Err(DataError::OtherFormat {
                    found,
                    what: column,
                    advice: "write it again with compression=\"zstd\"",
                });
            }
            let rows = usize::try_from(group.num_rows()).ok();
            let end = rows.and_then(|rows| next.checked_add(rows));
            let (Some(rows), Some(end)) = (rows, end) else {
                return Err(bad(format!("claims {} rows", group.num_rows())));
            };
            if rows > 0 {
                let rows_per_block = blocks::rows_per_block(group, &self.columns, rows);
                groups.push(Group { file, number, start: next, rows, file_row: next - start, rows_per_block });
            }
            next = end;
        }
        Ok(next)
    }
}

/// The class names, from the first file that has them; a file that contradicts them is an error.
fn common_class_names(files: &[ParquetFile]) -> Result<Option<Vec<String>>, DataError> {
    if files.iter().any(|file| file.columns.label.is_none()) {
        return Ok(None);
    }
    let mut named = files.iter().filter_map(|file| Some((file, file.class_names.as_ref()?)));
    let Some((first, names)) = named.next() else { return Ok(None) };
    if let Some((other, _)) = named.find(|(_, other)| *other != names) {
        return Err(DataError::ClassNamesDiffer { first: first.name.clone(), second: other.name.clone() });
    }
    Ok(Some(names.clone()))
}

/// Adds the length and the bytes, or of a large file the last ones: the footer has each column chunk's place, size
/// and usually its extremes.
fn hash_file(stored: &StoredFile, fingerprint: &mut Fingerprint) -> Result<(), String> {
    let len = stored.len();
    let hashed = len.min(FULLY_HASHED_BYTES);
    let end = stored.get_bytes(len - hashed, hashed as usize).map_err(|e| e.to_string())?;
    fingerprint.add(&len.to_le_bytes());
    fingerprint.add(&end);
    Ok(())
}

impl Source for ParquetSource {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let (number, group) = self.group_of(index)?;
        let file = &self.files[group.file];
        let row = index - group.start;
        let (block_number, row_in_block) = (row / group.rows_per_block, row % group.rows_per_block);
        let loaded = self.cache.get((number, block_number), || {
            let first = block_number * group.rows_per_block;
            let count = group.rows_per_block.min(group.rows - first);
            blocks::read(&file.stored, file.metadata.row_group(group.number), &file.columns, first, count)
        });
        let id = format!("{} row {}", file.name, group.file_row + row);
        match loaded.as_ref() {
            Ok(block) => {
                let mut sample = sample(block, row_in_block, id)?;
                if let Some(labels) = &self.labels {
                    sample.label = labels.rows.get(index).copied().filter(|&label| label != Span::NONE);
                }
                Ok(sample)
            }
            Err(fault) => Err(fault.of_sample(id)),
        }
    }

    fn will_need(&self, indices: &[usize]) -> Result<(), DataError> {
        let place = |&index: &usize| {
            let (_, group) = self.group_of(index).ok()?;
            let file = &self.files[group.file];
            let chunk = file.metadata.row_group(group.number).column(file.columns.bytes);
            // Where a row would be if all were of a size: what is fetched are blocks of many rows.
            let (start, bytes) = chunk.byte_range();
            let at = start + (bytes as f64 * (index - group.start) as f64 / group.rows as f64) as u64;
            Some((file, at.min(file.stored.len())..at.saturating_add(1).min(file.stored.len())))
        };
        let places: Vec<_> = indices.iter().filter_map(place).collect();
        let pieces: Vec<_> =
            places.iter().map(|(file, range)| Piece { file: file.stored.file(), range: range.clone() }).collect();
        match self.files.first() {
            Some(first) => Ok(first.stored.store().will_need(&pieces)?),
            None => Ok(()),
        }
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn has_labels(&self) -> bool {
        self.files.iter().all(|file| file.columns.label.is_some())
    }

    fn unlabelled(&self) -> usize {
        self.unlabelled
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn is_far(&self) -> bool {
        self.files.iter().any(|file| file.stored.store().is_far())
    }

    fn objects(&self) -> Option<Objects> {
        let first = self.files.first()?;
        Objects::of(first.stored.store(), self.files.iter().map(|file| file.stored.file()))
    }

    fn describe(&self) -> String {
        let (images, files) = (counted(self.len, "image"), counted(self.files.len(), "Parquet file"));
        let classes = and_classes(self.class_names.as_deref());
        let odd = self.files.iter().find_map(ParquetFile::odd_label);
        let odd = odd.map_or(String::new(), |odd| format!(" ({odd})"));
        format!("{}: {images} in {files}{classes}{odd}", self.place)
    }
}

/// One row of a block. A negative label is Hugging Face's "not labelled".
fn sample(block: &Block, row: usize, id: String) -> Result<RawImage, DataError> {
    let path = block.paths[row].as_ref().map(|path| String::from_utf8_lossy(path));
    let id = match path.as_deref() {
        Some(path) if !path.is_empty() => format!("{id} ({path})"),
        _ => id,
    };
    let unreadable = |reason: String| DataError::Unreadable { sample: id.clone(), reason };
    let bytes = block.images[row].as_ref().ok_or_else(|| {
        unreadable("the image's bytes are null (images kept outside the Parquet file are not read)".into())
    })?;
    let label = match block.labels[row] {
        Some(label) if label >= 0 => {
            Some(u32::try_from(label).map_err(|_| unreadable(format!("label {label} is too large for a class")))?)
        }
        _ => None,
    };
    Ok(RawImage { bytes: bytes.clone(), label, id })
}
