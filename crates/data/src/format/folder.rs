//! A folder of image files, with a class per sub-folder where every image lies in one, or with classes from metadata.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::files::{Fingerprint, READ_AT_ONCE_BYTES, and_classes, has_extension, passed_over, shown, slashed};
use super::metadata::{self, Labels};
use super::split::{self, names_split};
use super::{Objects, RawImage, Source};
use crate::error::{DataError, counted};
use crate::image_limits::ImageLimits;
use crate::store::{FileInfo, Listing, Piece, Store, StoreError};

/// What counts as an image file, in any case.
pub(super) const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff"];

/// Endings of files that usually lie beside pictures and are skipped in silence.
const NO_PICTURES: [&str; 16] =
    ["txt", "md", "json", "jsonl", "csv", "tsv", "xml", "yaml", "yml", "toml", "html", "pdf", "py", "sh", "db", "ini"];

/// Image files below a root, sorted by path.
#[derive(Debug)]
pub(super) struct FolderSource {
    place: String,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    classes: Classes,
    fingerprint: String,
    notices: Vec<String>,
    /// A worker must not read a mislabelled archive into memory.
    limits: ImageLimits,
}

/// The classes of the files.
#[derive(Debug, Default)]
struct Classes {
    /// The class of each file, where there are classes.
    labels: Option<Vec<Option<u32>>>,
    /// Their names, where they have some.
    names: Option<Vec<String>>,
}

impl FolderSource {
    /// The images of a listing that belong to `split`; `place` is `data.source`.
    pub(super) fn open(
        place: &str,
        store: Arc<dyn Store>,
        listing: Listing,
        split: Option<&str>,
    ) -> Result<Self, DataError> {
        let place = place.to_owned();
        let (images, others): (Vec<_>, Vec<_>) =
            listing.files.into_iter().partition(|file| has_extension(&file.name, EXTENSIONS));
        let passed_over = passed_over(&listing.passed_over);
        let chosen = split::choose_images(&place, images, split)?;
        let mut notices: Vec<String> =
            chosen.notice.into_iter().chain(passed_over).chain(not_looked_at(&others)).collect();
        let files = chosen.files;
        let classes = match metadata::read(&store, &others, &files)? {
            Some(Labels { labels, class_names: names, notices: more }) => {
                notices.extend(more);
                if labels.is_empty() {
                    by_folder(&files, split, chosen.below_split)
                } else {
                    Classes { labels: Some(labels), names }
                }
            }
            None => by_folder(&files, split, chosen.below_split),
        };
        let fingerprint = fingerprint(&files, classes.labels.as_deref());
        let limits = ImageLimits::default();
        Ok(Self { place, store, files, classes, fingerprint, notices, limits })
    }

    /// With other limits for an image.
    pub(super) fn limited(self, limits: ImageLimits) -> Self {
        Self { limits, ..self }
    }

    fn file(&self, index: usize) -> Result<&FileInfo, DataError> {
        self.files.get(index).ok_or(DataError::NoSuchSample { index, len: self.files.len() })
    }

    fn sample(&self, index: usize, bytes: Result<Bytes, StoreError>) -> Result<RawImage, DataError> {
        let id = slashed(&self.file(index)?.name);
        let label = self.classes.labels.as_ref().and_then(|labels| labels[index]);
        match bytes {
            Ok(bytes) => Ok(RawImage { id, bytes, label }),
            Err(error) => Err(error.of_sample(id)),
        }
    }
}

/// The class of each file is the folder that it lies in, where every file lies in one. In `root/train/cat/1.png` with
/// the split "train", the class is `cat`.
fn by_folder(files: &[FileInfo], split: Option<&str>, below_split: bool) -> Classes {
    let folder_of = |file: &FileInfo| {
        let mut folders = file.name.parent()?.iter().peekable();
        folders.next_if(|part| below_split || split.is_some_and(|split| names_split(part, split)));
        folders.next().map(|part| part.to_string_lossy().into_owned())
    };
    let Some(of_each) = files.iter().map(folder_of).collect::<Option<Vec<String>>>() else { return Classes::default() };
    let mut names = of_each.clone();
    names.sort();
    names.dedup();
    let label = |name: &String| names.binary_search(name).ok().and_then(|at| u32::try_from(at).ok());
    Classes { labels: Some(of_each.iter().map(label).collect()), names: Some(names) }
}

/// Counts, by ending, the files that may be or hold pictures but are not read.
fn not_looked_at(others: &[FileInfo]) -> Option<String> {
    let mut counts = BTreeMap::<String, usize>::new();
    for file in others {
        let ending = file.name.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        if ending.as_deref().is_none_or(|ending| !NO_PICTURES.contains(&ending)) {
            *counts.entry(ending.map_or("without an ending".into(), |ending| format!(".{ending}"))).or_default() += 1;
        }
    }
    let total: usize = counts.values().sum();
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, n)| Reverse(n));
    let named: Vec<String> =
        counts.iter().take(6).map(|(ending, n)| format!("{n} {}", shown(ending.as_ref()))).collect();
    let files = if total == 1 { "file was" } else { "files were" };
    (total > 0).then(|| {
        format!("{total} {files} not looked at, as only .{} are read: {}", EXTENSIONS.join(" ."), named.join(", "))
    })
}

fn fingerprint(files: &[FileInfo], labels: Option<&[Option<u32>]>) -> String {
    let mut fingerprint = Fingerprint::default();
    for (i, file) in files.iter().enumerate() {
        fingerprint.add_path(&file.name);
        fingerprint.add(&file.size.to_le_bytes());
        fingerprint.add(&labels.and_then(|labels| labels[i]).unwrap_or(u32::MAX).to_le_bytes());
    }
    fingerprint.finish()
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let file = self.file(index)?;
        let unreadable = |reason| DataError::Unreadable { sample: slashed(&file.name), reason };
        self.limits.check_file(file.size).map_err(unreadable)?;
        self.sample(index, self.store.read_one(file, 0..file.size))
    }

    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        let mut bytes = 0u64;
        let fits = |&&index: &&usize| {
            let size = self.files.get(index).map(|file| file.size).filter(|&size| self.limits.check_file(size).is_ok());
            bytes = bytes.saturating_add(size.unwrap_or(u64::MAX));
            bytes <= READ_AT_ONCE_BYTES
        };
        let together: Vec<usize> = indices.iter().take(self.store.at_once()).take_while(fits).copied().collect();
        if together.len() < 2 {
            return indices.iter().take(1).map(|&index| self.read(index)).collect();
        }
        let files = together.iter().map(|&index| &self.files[index]);
        let pieces: Vec<_> = files.map(|file| Piece { file, range: 0..file.size }).collect();
        let read = self.store.read(&pieces);
        together.iter().zip(read).map(|(&index, bytes)| self.sample(index, bytes)).collect()
    }

    fn class_names(&self) -> Option<&[String]> {
        self.classes.names.as_deref()
    }

    fn has_labels(&self) -> bool {
        self.classes.labels.is_some()
    }

    fn unlabelled(&self) -> usize {
        self.classes.labels.iter().flatten().filter(|label| label.is_none()).count()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn objects(&self) -> Option<Objects> {
        Objects::of(&*self.store, &self.files)
    }

    fn describe(&self) -> String {
        let classes = and_classes(self.classes.names.as_deref());
        format!("{}: {}{classes}", self.place, counted(self.files.len(), "image file"))
    }
}
