//! A folder of image files, with a class per sub-folder where every image lies in one.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Fingerprint, RawImage, Source, has_extension, keep_split, names_split, slashed};
use crate::error::DataError;

/// What counts as an image file, in any case.
pub(super) const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// No sensible image file is larger; a worker must not read a mislabelled archive into memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Image files below a root, sorted by path.
#[derive(Debug)]
pub(super) struct FolderSource {
    root: PathBuf,
    files: Vec<PathBuf>,
    /// The class of each file, where there are classes.
    labels: Option<Vec<u32>>,
    class_names: Option<Vec<String>>,
    fingerprint: String,
}

impl FolderSource {
    /// The images among `files` (relative to `root`, sorted) that belong to `split`.
    pub(super) fn open(root: &Path, files: Vec<PathBuf>, split: Option<&str>) -> Result<Self, DataError> {
        let total = files.len();
        let images: Vec<_> = files.into_iter().filter(|file| has_extension(file, EXTENSIONS)).collect();
        if images.is_empty() {
            let detail = format!("looked for .{}; found {total} other files", EXTENSIONS.join(", ."));
            return Err(DataError::Empty { place: root.display().to_string(), detail });
        }
        let images = keep_split(root, images, split)?;
        let (class_names, labels) = classes(&images, split).unzip();
        let fingerprint = fingerprint(root, &images, labels.as_deref())?;
        Ok(Self { root: root.to_owned(), files: images, labels, class_names, fingerprint })
    }
}

/// Class names and the label of each file, where every file lies in a sub-folder. In `root/train/cat/1.png` with the
/// split "train", the class is `cat`.
fn classes(files: &[PathBuf], split: Option<&str>) -> Option<(Vec<String>, Vec<u32>)> {
    let folder_of = |file: &PathBuf| {
        let mut folders = file.parent()?.iter().peekable();
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

fn fingerprint(root: &Path, files: &[PathBuf], labels: Option<&[u32]>) -> Result<String, DataError> {
    let mut fingerprint = Fingerprint::default();
    for (i, file) in files.iter().enumerate() {
        let path = root.join(file);
        let length = match std::fs::metadata(&path) {
            Ok(about) => about.len(),
            Err(cause) => return Err(DataError::Io { action: "open", path, cause }),
        };
        fingerprint.add_path(file);
        fingerprint.add(&length.to_le_bytes());
        fingerprint.add(&labels.map_or(u32::MAX, |l| l[i]).to_le_bytes());
    }
    Ok(fingerprint.finish())
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let file = self.files.get(index).ok_or(DataError::NoSuchSample { index, len: self.files.len() })?;
        let id = slashed(file);
        let bytes = match read_file(&self.root.join(file)) {
            Ok(bytes) if bytes.len() as u64 > MAX_FILE_BYTES => {
                return Err(DataError::Unreadable { sample: id, reason: "the file is larger than 256 MiB".into() });
            }
            Ok(bytes) => bytes,
            Err(cause) => return Err(DataError::Unreadable { sample: id, reason: cause.to_string() }),
        };
        Ok(RawImage { id, bytes, label: self.labels.as_ref().map(|labels| labels[index]) })
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
        format!("{}: {} image files{classes}", self.root.display(), self.files.len())
    }
}

/// Reads a file, but no more than one byte beyond the limit.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
