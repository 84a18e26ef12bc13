//! A folder of image files, with a class per sub-folder where every image lies in one.

use std::sync::Arc;

use bytes::Bytes;

use super::files::{Fingerprint, has_extension, keep_split, names_split, slashed};
use super::{RawImage, Source};
use crate::error::DataError;
use crate::store::{FileInfo, Piece, Store, StoreError};

/// What counts as an image file, in any case.
pub(super) const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// No sensible image file is larger; a worker must not read a mislabelled archive into memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What a call of `read_many` reads at most, unless one file alone is larger: some ten photos, or thousands of icons.
pub(super) const READ_AT_ONCE_BYTES: u64 = 32 << 20;

/// Image files below a root, sorted by path.
#[derive(Debug)]
pub(super) struct FolderSource {
    place: String,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    /// The class of each file, where there are classes.
    labels: Option<Vec<u32>>,
    class_names: Option<Vec<String>>,
    fingerprint: String,
}

impl FolderSource {
    /// The images among the store's `files` that belong to `split`; `place` is `data.source`.
    pub(super) fn open(
        place: &str,
        store: Arc<dyn Store>,
        files: Vec<FileInfo>,
        split: Option<&str>,
    ) -> Result<Self, DataError> {
        let (total, place) = (files.len(), place.to_owned());
        let images: Vec<_> = files.into_iter().filter(|file| has_extension(&file.name, EXTENSIONS)).collect();
        if images.is_empty() {
            let detail = format!("looked for .{}; found {total} other files", EXTENSIONS.join(", ."));
            return Err(DataError::Empty { place, detail });
        }
        let files = keep_split(&place, images, split)?;
        let (class_names, labels) = classes(&files, split).unzip();
        let fingerprint = fingerprint(&files, labels.as_deref());
        Ok(Self { place, store, files, labels, class_names, fingerprint })
    }

    fn file(&self, index: usize) -> Result<&FileInfo, DataError> {
        self.files.get(index).ok_or(DataError::NoSuchSample { index, len: self.files.len() })
    }

    fn sample(&self, index: usize, bytes: Result<Bytes, StoreError>) -> Result<RawImage, DataError> {
        let id = slashed(&self.file(index)?.name);
        let label = self.labels.as_ref().map(|labels| labels[index]);
        match bytes {
            Ok(bytes) => Ok(RawImage { id, bytes, label }),
            Err(error) => Err(error.of_sample(id)),
        }
    }
}

/// Class names and the label of each file, where every file lies in a sub-folder. In `root/train/cat/1.png` with the
/// split "train", the class is `cat`.
fn classes(files: &[FileInfo], split: Option<&str>) -> Option<(Vec<String>, Vec<u32>)> {
    let folder_of = |file: &FileInfo| {
        let mut folders = file.name.parent()?.iter().peekable();
        folders.next_if(|part| split.is_some_and(|split| names_split(part, split)));
        folders.next().map(|part| part.to_string_lossy().into_owned())
    };
    let of_each: Vec<String> = files.iter().map(folder_of).collect::<Option<_>>()?;
    let mut names = of_each.clone();
    names.sort();
    names.dedup();
    let label = |name: &String| names.binary_search(name).ok().and_then(|i| u32::try_from(i).ok());
    let labels = of_each.iter().map(label).collect::<Option<_>>()?;
    Some((names, labels))
}

fn fingerprint(files: &[FileInfo], labels: Option<&[u32]>) -> String {
    let mut fingerprint = Fingerprint::default();
    for (i, file) in files.iter().enumerate() {
        fingerprint.add_path(&file.name);
        fingerprint.add(&file.size.to_le_bytes());
        fingerprint.add(&labels.map_or(u32::MAX, |l| l[i]).to_le_bytes());
    }
    fingerprint.finish()
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let file = self.file(index)?;
        if file.size > MAX_FILE_BYTES {
            let (sample, reason) = (slashed(&file.name), "the file is larger than 256 MiB".into());
            return Err(DataError::Unreadable { sample, reason });
        }
        self.sample(index, self.store.read_one(file, 0..file.size))
    }

    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        let mut bytes = 0u64;
        let fits = |&&index: &&usize| {
            let size = self.files.get(index).map(|file| file.size).filter(|&size| size <= MAX_FILE_BYTES);
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
        self.class_names.as_deref()
    }

    fn has_labels(&self) -> bool {
        self.labels.is_some()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn describe(&self) -> String {
        let classes = self.class_names.as_ref().map_or(String::new(), |names| format!(", {} classes", names.len()));
        format!("{}: {} image files{classes}", self.place, self.files.len())
    }
}
