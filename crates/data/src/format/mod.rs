//! What the files of a store hold. A [`Source`] is indexable: it knows its length and reads any sample by its index.
//!
//! Indexable, and not an iterator, because a run must be able to start at any step: the order is a permutation of
//! indices ([`crate::order::Order`]), so a resume seeks instead of replaying.

mod arrow;
mod braces;
mod builtin;
mod classes;
mod detect;
mod files;
mod folder;
mod kept;
mod metadata;
mod named;
mod parquet;
mod ranges;
#[cfg_attr(not(feature = "datasets"), path = "raw/without.rs")]
mod raw;
mod slice;
mod split;
mod tar;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::files::{Fingerprint, has_extension};
pub use self::named::with_classes;
pub(crate) use self::tar::{CLASSES_FILE, file_header, index_name, shard_end, shard_index, verified_shard};
use crate::error::{DataError, Refusal, shown};
use crate::image_limits::ImageLimits;
use crate::store::address::without_query;
use crate::store::{self, FileInfo, Listing, Located, Pattern, Store, StoreError, StoreOptions};

/// Image columns by these names are preferred over others.
const IMAGE_NAMES: [&str; 2] = ["image", "img"];
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

    /// These samples, in ascending order, will be read later: where they come over a network, this fetches them.
    ///
    /// # Errors
    /// The source as a whole cannot be reached.
    fn will_need(&self, _: &[usize]) -> Result<(), DataError> {
        Ok(())
    }

    /// The classes' names in the order of their labels, where the source has names.
    fn class_names(&self) -> Option<&[String]>;

    /// Whether the samples have labels (single ones may lack theirs).
    fn has_labels(&self) -> bool;

    /// How many samples are known to have no label, where the others have one.
    fn unlabelled(&self) -> usize {
        0
    }

    /// A hex digest that changes when samples, their order or their labels change, but not when the source is moved.
    fn fingerprint(&self) -> &str;

    /// Whether neighbours lie in one object behind a network, and are best read together.
    fn is_far(&self) -> bool {
        false
    }

    /// What is known of its files where they lie behind a network.
    fn objects(&self) -> Option<Objects> {
        None
    }

    /// One line for a person: what and where.
    fn describe(&self) -> String;

    /// What a person should know about how the source was read, a sentence each: what was left out, and why.
    fn notices(&self) -> &[String] {
        &[]
    }
}

/// The files of a source behind a network, as they were listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// The folder.
    pub place: String,
    /// A hash of their names, sizes and versions (etags): another one where one of them was written again.
    pub version: String,
}

impl Objects {
    /// Those of `store`; `None` for a disk, whose times of change say little.
    fn of<'a>(store: &dyn Store, files: impl IntoIterator<Item = &'a FileInfo>) -> Option<Self> {
        let mut version = Fingerprint::default();
        for file in files {
            version.add_path(&file.name);
            version.add(&file.size.to_le_bytes());
            version.add(&file.version.to_le_bytes());
        }
        let place = store.place("".as_ref()).display().to_string();
        store.is_far().then(|| Self { place, version: version.finish() })
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
    /// WebDataset: `.tar` shards.
    Webdataset,
    /// Arrow tables, as `datasets.save_to_disk` writes them.
    Arrow,
    /// MNIST's IDX files.
    Idx,
    /// CIFAR-10's binary files.
    Cifar,
}

impl Format {
    /// All of them, as `data.format` names them.
    pub const NAMES: &str = "auto, folder, parquet, webdataset, arrow, idx or cifar";
}

/// The settings of the table `data` that say what of the source is read.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// `data.format`.
    pub format: Format,
    /// `data.split`: only files or sub-folders of this name ("train"), of them perhaps only a slice ("train[:90%]").
    /// Where `None`, all of the source, or `train` where it is laid out in splits; "all" takes everything.
    pub split: Option<String>,
    /// How it is reached.
    pub stores: StoreOptions,
    /// How large an image may be.
    pub limits: ImageLimits,
}

/// Opens `data.source`: `builtin:NAME`, a folder of images, tables or shards, or one of them; where `data.split` says so, a
/// slice of it.
///
/// Reads names, sizes, footers, headers and labels, but no image (but for IDX and CIFAR, which are read whole). Errors name the source and say what would work.
pub fn open(source: &str, options: &OpenOptions) -> Result<Arc<dyn Source>, DataError> {
    let split = slice::Split::parse(options.split.as_deref())?;
    let whole = open_whole(source, options, split.name)?;
    match (split.slice, options.split.as_deref()) {
        (Some(slice), Some(text)) => Ok(Arc::new(slice::SlicedSource::new(whole, slice, text)?)),
        _ => Ok(whole),
    }
}

fn open_whole(source: &str, options: &OpenOptions, split: Option<&str>) -> Result<Arc<dyn Source>, DataError> {
    let OpenOptions { format, stores, limits, .. } = options;
    if let Some(name) = source.strip_prefix("builtin:") {
        return Ok(Arc::new(builtin::open(name, split)?));
    }
    if let Some(pattern) = store::locate_pattern(source, stores)? {
        return open_pattern(without_query(source), pattern, split, *limits);
    }
    let located = store::locate(source, stores)?;
    // From here on it is a name for people.
    let source = without_query(source);
    match located {
        Located::Folder(store) => open_folder(source, store, *format, split, *limits),
        Located::File(store, file) => open_file(source, store, file, *format, split, *limits),
    }
}

/// Opens the tar shards or Parquet files that a name with braces stands for: those of one folder.
fn open_pattern(
    source: &str,
    Pattern { folder: store, name }: Pattern,
    split: Option<&str>,
    limits: ImageLimits,
) -> Result<Arc<dyn Source>, DataError> {
    let bad = |reason| DataError::BadPattern { found: source.to_owned(), reason };
    let names = braces::expand(&name).map_err(bad)?;
    if names.iter().collect::<HashSet<_>>().len() < names.len() {
        return Err(bad("it names a shard twice".to_owned()));
    }
    let found = store.find_all(&names)?;
    let missing: Vec<&String> = names.iter().zip(&found).filter(|(_, file)| file.is_none()).map(|(n, _)| n).collect();
    if let Some(first) = missing.first() {
        return Err(bad(format!("{} of {} shards are not there, the first {first}", missing.len(), names.len())));
    }
    let files: Vec<FileInfo> = found.into_iter().flatten().collect();
    if files.iter().all(detect::is_parquet) {
        return Ok(Arc::new(parquet::ParquetSource::open(source, &store, files, split)?));
    }
    if !files.iter().all(detect::is_tar) {
        return Err(bad("braces stand for .tar shards or for .parquet files".to_owned()));
    }
    let mut others: Vec<FileInfo> = classes_beside(&*store)?.into_iter().collect();
    others.extend(indices_beside(&*store, &files)?);
    Ok(Arc::new(tar::open(source, store, files, &others, split)?.limited(limits)))
}

/// The indices that lie beside shards behind a network, where one of them does; on a disk they are not used.
fn indices_beside(store: &dyn Store, shards: &[FileInfo]) -> Result<Vec<FileInfo>, DataError> {
    if !store.is_far() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = shards.iter().map(|shard| index_name(&shard.name).display().to_string()).collect();
    let refused = |error: StoreError| match error {
        // Signed addresses are good for what they name.
        StoreError::Refused { .. } => Ok(Vec::new()),
        error => Err(error),
    };
    // One answer is enough to know whether they were packed with indices.
    let first = store.find_all(&names[..names.len().min(1)]).or_else(refused)?;
    if !first.iter().any(Option::is_some) {
        return Ok(Vec::new());
    }
    Ok(store.find_all(&names).or_else(refused)?.into_iter().flatten().collect())
}

fn open_file(
    source: &str,
    store: Arc<dyn Store>,
    file: FileInfo,
    format: Format,
    split: Option<&str>,
    limits: ImageLimits,
) -> Result<Arc<dyn Source>, DataError> {
    let detected = detect::of_file(&file);
    let format = if format == Format::Auto { detected } else { Some(format) };
    match format {
        Some(Format::Parquet) => Ok(Arc::new(parquet::ParquetSource::open(source, &store, vec![file], split)?)),
        Some(Format::Webdataset) => {
            let classes: Vec<FileInfo> = classes_beside(&*store)?.into_iter().collect();
            Ok(Arc::new(tar::open(source, store, vec![file], &classes, split)?.limited(limits)))
        }
        Some(Format::Arrow) => Ok(Arc::new(arrow::open(source, store, vec![file], &[], split)?.limited(limits))),
        Some(Format::Folder) => {
            Err(DataError::FormatMismatch { format: "folder", path: source.into(), found: "a file" })
        }
        _ => Err(refuse_file(source, &file)),
    }
}

/// The names of the classes beside shards. Who may read these alone, as with signed addresses, is refused the question for others.
fn classes_beside(store: &dyn Store) -> Result<Option<FileInfo>, DataError> {
    match store.find(CLASSES_FILE.as_ref()) {
        Err(StoreError::Refused { place, refusal: Refusal::Forbidden(_) }) => {
            tracing::warn!("{}: may not be read, so classes have no names", shown(&place.to_string_lossy()));
            Ok(None)
        }
        found => Ok(found?),
    }
}

/// Says what a file is that is not read, and what to do.
fn refuse_file(source: &str, file: &FileInfo) -> DataError {
    let (what, advice) = match detect::other_format(&file.name) {
        _ if has_extension(&file.name, folder::EXTENSIONS) => ("a single image", "give its folder"),
        _ if detect::is_idx(&file.name) => ("a single IDX file", "give its folder, with images and labels in it"),
        _ if detect::is_cifar(&file.name) => ("a single file of CIFAR", "give its folder, with all batches in it"),
        Some(known) => known,
        None => ("a file of an unknown kind", ""),
    };
    DataError::OtherFormat { found: format!("data.source = {source}"), what: what.to_owned(), advice }
}

fn open_folder(
    source: &str,
    store: Arc<dyn Store>,
    format: Format,
    split: Option<&str>,
    limits: ImageLimits,
) -> Result<Arc<dyn Source>, DataError> {
    let listing = without_runs(store.list()?);
    let chosen = if format == Format::Auto { detect::of_folder(&listing.files) } else { format };
    let (is_part, looked_for): (&dyn Fn(&FileInfo) -> bool, String) = match chosen {
        Format::Auto | Format::Folder => {
            (&|file| has_extension(&file.name, folder::EXTENSIONS), format!(".{}", folder::EXTENSIONS.join(", .")))
        }
        Format::Parquet => (&detect::is_parquet, ".parquet files".to_owned()),
        Format::Webdataset => (&detect::is_tar, ".tar files".to_owned()),
        Format::Arrow => (&detect::is_arrow, ".arrow files".to_owned()),
        Format::Idx => (&|file| detect::is_idx(&file.name), "IDX files (train-images-idx3-ubyte, ...)".to_owned()),
        Format::Cifar => (&|file| detect::is_cifar(&file.name), "CIFAR's files (data_batch_1.bin, ...)".to_owned()),
    };
    let also = files::passed_over(&listing.passed_over);
    if !listing.files.iter().any(is_part) {
        let also = also.map_or(String::new(), |text| format!("; {text}"));
        let detail = format!("looked for {looked_for}; {}{also}", detect::found(&listing.files));
        return Err(DataError::Empty { place: source.to_owned(), detail });
    }
    if matches!(chosen, Format::Auto | Format::Folder) {
        return Ok(Arc::new(folder::FolderSource::open(source, store, listing, split)?.limited(limits)));
    }
    let (parts, others): (Vec<_>, Vec<_>) = listing.files.into_iter().partition(is_part);
    Ok(match chosen {
        Format::Webdataset => {
            Arc::new(tar::open(source, store, parts, &others, split)?.with_notices(also).limited(limits))
        }
        Format::Arrow => {
            Arc::new(arrow::open(source, store, parts, &others, split)?.with_notices(also).limited(limits))
        }
        Format::Idx => Arc::new(raw::open_idx(source, &*store, &parts, split)?),
        Format::Cifar => Arc::new(raw::open_cifar(source, &*store, &parts, split)?),
        _ => {
            let notices = also.into_iter().collect();
            Arc::new(parquet::ParquetSource::open(source, &store, parts, split)?.with_notices(notices))
        }
    })
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
