//! What the files of a store hold. A [`Source`] is indexable: it knows its length and reads any sample by its index.
//!
//! Indexable, and not an iterator, because a run must be able to start at any step: the order is a permutation of
//! indices ([`crate::order::Order`]), so a resume seeks instead of replaying.

mod builtin;
mod files;
mod folder;
mod metadata;
mod named;
mod parquet;
mod slice;
mod split;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::files::has_extension;
pub use self::named::with_classes;
use crate::error::DataError;
use crate::store::{self, FileInfo, Listing, Located, Store};

/// Columns that hold the class, the preferred first.
const LABEL_NAMES: [&str; 4] = ["label", "labels", "class", "fine_label"];

/// An undecoded sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawImage {
    /// What a person needs to find it: a path, or a file and a row.
    pub id: String,
    /// The image file's bytes.
    pub bytes: Bytes,
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

    /// Reads the samples `indices`, at least one, in one call, so that a source behind a network can fetch them side by
    /// side. A result for the first of them and as many after it as are worth reading together; fewer than asked for
    /// where all would take too much memory, or no time would be saved. `indices` is not empty.
    fn read_many(&self, indices: &[usize]) -> Vec<Result<RawImage, DataError>> {
        indices.iter().take(1).map(|&index| self.read(index)).collect()
    }

    /// The classes' names in the order of their labels, where the source has names.
    fn class_names(&self) -> Option<&[String]>;

    /// Whether the samples have labels (single ones may lack theirs).
    fn has_labels(&self) -> bool;

    /// A hex digest that changes when samples, their order or their labels change, but not when the source is moved.
    fn fingerprint(&self) -> &str;

    /// One line for a person: what and where.
    fn describe(&self) -> String;

    /// What a person should know about how the source was read, a sentence each: what was left out, and why.
    fn notices(&self) -> &[String] {
        &[]
    }
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
    /// `data.split`: only files or sub-folders of this name ("train"), of them perhaps only a slice ("train[:90%]").
    /// Where `None`, all of the source, or `train` where it is laid out in splits; "all" takes everything.
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
    store::refuse_remote(source)?;
    refuse_unsupported(source, format)?;
    match store::locate(source)? {
        Located::Folder(store) => open_folder(source, store, format, split),
        Located::File(store, file) => open_file(source, &store, file, format, split),
    }
}

fn open_file(
    source: &str,
    store: &Arc<dyn Store>,
    file: FileInfo,
    format: Format,
    split: Option<&str>,
) -> Result<Arc<dyn Source>, DataError> {
    if format == Format::Folder {
        return Err(DataError::FormatMismatch { format: "folder", path: source.into(), found: "a file" });
    }
    if format != Format::Parquet && !has_extension(&file.name, &["parquet"]) {
        let image = has_extension(&file.name, folder::EXTENSIONS);
        let format = if image { "a single image (give its folder)" } else { "this kind of file" };
        return Err(DataError::Unsupported { found: source.to_owned(), format });
    }
    Ok(Arc::new(parquet::ParquetSource::open(source, store, vec![file], split)?))
}

fn open_folder(
    source: &str,
    store: Arc<dyn Store>,
    format: Format,
    split: Option<&str>,
) -> Result<Arc<dyn Source>, DataError> {
    let listing = without_runs(store.list()?);
    // In a folder of images, `metadata.parquet` would hold their labels and no images; it is not read.
    let is_parquet =
        |file: &FileInfo| has_extension(&file.name, &["parquet"]) && !file.name.ends_with("metadata.parquet");
    let as_parquet = match format {
        Format::Folder => false,
        Format::Parquet => true,
        _ => listing.files.iter().any(is_parquet),
    };
    if !as_parquet {
        return Ok(Arc::new(folder::FolderSource::open(source, store, listing, split)?));
    }
    let Listing { files, passed_over } = listing;
    let (parquet_files, others): (Vec<_>, Vec<_>) = files.into_iter().partition(is_parquet);
    if parquet_files.is_empty() {
        let also = files::passed_over(&passed_over).map_or(String::new(), |text| format!("; {text}"));
        let detail = format!("looked for .parquet files, found {} other files{also}", others.len());
        return Err(DataError::Empty { place: source.to_owned(), detail });
    }
    let notices = files::passed_over(&passed_over).into_iter().collect();
    Ok(Arc::new(parquet::ParquetSource::open(source, &store, parquet_files, split)?.with_notices(notices)))
}

/// Leaves out the files of training runs: their pictures are not data. A run directory has both `run.json` and
/// `config.toml`.
fn without_runs(mut listing: Listing) -> Listing {
    let folders_with = |name: &str| -> HashSet<PathBuf> {
        let found = listing.files.iter().filter(|file| file.name.file_name().is_some_and(|found| found == name));
        found
            .filter_map(|file| file.name.parent())
            .filter(|folder| folder.iter().next().is_some())
            .map(PathBuf::from)
            .collect()
    };
    let runs: Vec<PathBuf> = folders_with("run.json").intersection(&folders_with("config.toml")).cloned().collect();
    listing.files.retain(|file| !runs.iter().any(|run| file.name.starts_with(run)));
    listing.passed_over.retain(|(name, _)| !runs.iter().any(|run| name.starts_with(run)));
    listing.passed_over.extend(runs.into_iter().map(|run| (run, "a run directory".into())));
    listing.passed_over.sort_unstable();
    listing
}

/// Refuses by name the formats that the configuration may ask for but this version does not read.
fn refuse_unsupported(source: &str, format: Format) -> Result<(), DataError> {
    let refuse = |format| Err(DataError::Unsupported { found: source.to_owned(), format });
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

/// Reads the samples `indices` of `source`, as many at a time as it returns, and gives each to `visit` in their order,
/// with its place among them.
pub(crate) fn read_each(
    source: &dyn Source,
    indices: &[usize],
    mut visit: impl FnMut(usize, Result<RawImage, DataError>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut done = 0;
    while done < indices.len() {
        let left = &indices[done..];
        let read = source.read_many(left);
        assert!((1..=left.len()).contains(&read.len()), "read_many gave {} of {} samples", read.len(), left.len());
        for raw in read {
            visit(done, raw)?;
            done += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
