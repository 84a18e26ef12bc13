//! Where images come from. A [`Source`] is indexable: it knows its length and reads any sample by its index.
//!
//! Indexable, and not an iterator, because a run must be able to start at any step: the order is a permutation of
//! indices ([`crate::Order`]), so a resume seeks instead of replaying.

mod builtin;
mod folder;
mod parquet;
mod slice;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Files up to this size enter the fingerprint with every byte (16 MiB hash in some 10 ms); of larger ones the length
/// and the end, where Parquet keeps offsets, sizes and statistics of everything before.
const FULLY_HASHED_BYTES: u64 = 16 << 20;

/// An undecoded sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawImage {
    /// What a person needs to find it: a path, or a file and a row.
    pub id: String,
    /// The image file's bytes.
    pub bytes: Vec<u8>,
    /// Its class, an index into [`Source::class_names`]; `None` where the sample has no label.
    pub label: Option<u32>,
}

/// An indexable collection of images. `read` may be called from several threads at once.
pub trait Source: Send + Sync {
    /// The number of samples, at least 1.
    fn len(&self) -> usize;

    /// Never true: a source without images is refused when it is opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `index` without decoding it. [`DataError::Unreadable`] where this one sample is damaged.
    fn read(&self, index: usize) -> Result<RawImage, DataError>;

    /// The classes' names in the order of their labels, where the source has names.
    fn class_names(&self) -> Option<&[String]>;

    /// Whether the samples have labels (single ones may lack theirs).
    fn has_labels(&self) -> bool;

    /// A hex digest that changes when samples, their order or their labels change, but not when the source is moved.
    fn fingerprint(&self) -> &str;

    /// One line for a person: what and where.
    fn describe(&self) -> String;
}

/// How `data.source` is to be read (`data.format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By its prefix, its extension, or what the folder holds.
    #[default]
    Auto,
    /// A folder of image files.
    Folder,
    /// A `.parquet` file, or a folder of them.
    Parquet,
    /// `.tar` shards. Not read by this version.
    Webdataset,
    /// MNIST's IDX files. Not read by this version.
    Idx,
}

/// The settings of the table `data` that say what of the source is read.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// `data.format`.
    pub format: Format,
    /// `data.split`: only files or sub-folders of this name ("train"), of them perhaps only a slice ("train[:90%]"); all
    /// of the source where `None`.
    pub split: Option<String>,
}

/// Opens `data.source`: `builtin:NAME`, a folder of images, or a `.parquet` file or folder; where `data.split` says so,
/// a slice of it.
///
/// Reads names, sizes and Parquet footers, but no image. Errors name the source and say what would work.
pub fn open(source: &str, options: &OpenOptions) -> Result<Arc<dyn Source>, DataError> {
    let split = slice::Split::parse(options.split.as_deref())?;
    let whole = open_whole(source, options.format, split.name)?;
    match (split.slice, options.split.as_deref()) {
        (Some(slice), Some(text)) => Ok(Arc::new(slice::SlicedSource::new(whole, slice, text)?)),
        _ => Ok(whole),
    }
}

fn open_whole(source: &str, format: Format, split: Option<&str>) -> Result<Arc<dyn Source>, DataError> {
    if let Some(name) = source.strip_prefix("builtin:") {
        return Ok(Arc::new(builtin::open(name, split)?));
    }
    refuse_unsupported(source, format)?;
    let path = Path::new(source);
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            return Err(DataError::NotFound { path: source.to_owned() });
        }
        Err(cause) => return Err(DataError::Io { action: "open", path: path.into(), cause }),
    };
    if about.is_dir() {
        let files = list_files(path)?;
        return open_folder(path, files, format, split);
    }
    if format == Format::Folder {
        return Err(DataError::FormatMismatch { format: "folder", path: path.into(), found: "a file" });
    }
    if format != Format::Parquet && !has_extension(path, &["parquet"]) {
        let image = has_extension(path, folder::EXTENSIONS);
        let format = if image { "a single image (give its folder)" } else { "this kind of file" };
        return Err(DataError::Unsupported { found: source.to_owned(), format });
    }
    Ok(Arc::new(parquet::ParquetSource::open_file(path, split)?))
}

fn open_folder(
    root: &Path,
    files: Vec<PathBuf>,
    format: Format,
    split: Option<&str>,
) -> Result<Arc<dyn Source>, DataError> {
    let is_parquet = |file: &PathBuf| has_extension(file, &["parquet"]);
    let as_parquet = match format {
        Format::Folder => false,
        Format::Parquet => true,
        _ => files.iter().any(is_parquet),
    };
    if !as_parquet {
        return Ok(Arc::new(folder::FolderSource::open(root, files, split)?));
    }
    let (parquet_files, others): (Vec<_>, Vec<_>) = files.into_iter().partition(is_parquet);
    if parquet_files.is_empty() {
        let detail = format!("looked for .parquet files, found {} other files", others.len());
        return Err(DataError::Empty { place: root.display().to_string(), detail });
    }
    Ok(Arc::new(parquet::ParquetSource::open_folder(root, parquet_files, split)?))
}

/// Refuses by name what the configuration may ask for but this version does not read.
fn refuse_unsupported(source: &str, format: Format) -> Result<(), DataError> {
    let refuse = |format| Err(DataError::Unsupported { found: source.to_owned(), format });
    let schemes = [
        ("hf://", "the Hugging Face hub (hf://)"),
        ("s3://", "object storage (s3://)"),
        ("gs://", "object storage (gs://)"),
        ("az://", "object storage (az://)"),
        ("https://", "a web address (https://)"),
        ("http://", "a web address (http://)"),
    ];
    if let Some((_, name)) = schemes.iter().find(|(prefix, _)| source.starts_with(prefix)) {
        return refuse(name);
    }
    let lower = source.to_ascii_lowercase();
    if format == Format::Webdataset || lower.ends_with(".tar") || lower.ends_with(".tar.gz") {
        return refuse("WebDataset (.tar)");
    }
    let idx = ["-ubyte", "-ubyte.gz", ".idx", ".idx.gz"].iter().any(|end| lower.ends_with(end));
    if format == Format::Idx || idx {
        return refuse("IDX");
    }
    Ok(())
}

/// Whether `path` ends in one of `extensions`, in any case.
fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| extensions.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Every file below `root`, relative to it and sorted by name, without hidden ones (.git, macOS's `._x.jpg`).
fn list_files(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    // Canonical paths of the folders seen: a symbolic link may lead back up.
    let mut seen = std::collections::HashSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        let failed = |cause| DataError::Io { action: "list the folder", path: at.clone(), cause };
        if !seen.insert(at.canonicalize().map_err(failed)?) {
            continue;
        }
        for entry in std::fs::read_dir(&at).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // A dangling link has no metadata and is no file.
            match std::fs::metadata(at.join(&name)) {
                Ok(about) if about.is_dir() => folders.push(folder.join(name)),
                Ok(about) if about.is_file() => files.push(folder.join(name)),
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file or folder name belongs to `split`: "train", "train.parquet", "train-00000-of-00002.parquet".
fn names_split(name: &std::ffi::OsStr, split: &str) -> bool {
    let rest = name.to_str().and_then(|n| n.strip_prefix(split));
    rest.is_some_and(|r| r.is_empty() || r.starts_with(['-', '_', '.']))
}

/// Keeps what belongs to `split`: files in a folder of that name, or named after it.
fn keep_split(root: &Path, files: Vec<PathBuf>, split: Option<&str>) -> Result<Vec<PathBuf>, DataError> {
    let Some(split) = split else { return Ok(files) };
    let belongs = |file: &PathBuf| file.iter().any(|part| names_split(part, split));
    let (kept, others): (Vec<_>, Vec<_>) = files.into_iter().partition(belongs);
    if kept.is_empty() {
        let found = others.iter().take(3).map(|f| f.display().to_string()).collect();
        return Err(DataError::UnknownSplit { split: split.into(), place: root.display().to_string(), found });
    }
    Ok(kept)
}

/// Hashes what identifies a source: each part with its length in front, so that no two lists run into one another.
#[derive(Default)]
struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Adds a path in a form that is the same on every system.
    fn add_path(&mut self, path: &Path) {
        self.add(slashed(path).as_bytes());
    }

    fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// A relative path with `/` between its parts.
fn slashed(path: &Path) -> String {
    path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests;
