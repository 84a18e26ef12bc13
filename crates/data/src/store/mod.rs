//! Files on a disk or elsewhere: listed once, then read in pieces.
//!
//! A format knows names, sizes and ranges of bytes, but no disks or networks. The trait is designed so that an object store can
//! implement it:
//! - Calls block, because decoding threads make them. A store with an asynchronous client waits for it inside.
//! - One call asks for many pieces of many files: a store may fetch them side by side, and neighbours as one.
//! - A piece names the file as it was listed, not its name alone. So a store sees that a file has changed, and a cache
//!   has an identity to look for.
//! - A store makes its own retries. The error that it reports in the end is that of one file, which may be replaced by another,
//!   or [`StoreError::Unavailable`], which is that of no file and ends the run.

mod embedded;
mod local;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use self::embedded::EmbeddedStore;
use self::local::LocalStore;
use crate::error::DataError;

/// A file as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileInfo {
    /// Relative to the store's root.
    pub(crate) name: PathBuf,
    /// In bytes.
    pub(crate) size: u64,
    /// Another number when the file has changed, as far as the store knows (the time of its change, an etag); 0 where it
    /// knows nothing.
    pub(crate) version: u64,
}

/// What lies below a store's root.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Every file, sorted by name, without hidden ones (`.git`, macOS's `._x.jpg`).
    pub(crate) files: Vec<FileInfo>,
    /// Entries that could not be read, with the reason: a folder without permission, a link to nothing.
    pub(crate) passed_over: Vec<(PathBuf, String)>,
}

/// Some bytes of a file.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) file: &'a FileInfo,
    pub(crate) range: Range<u64>,
}

/// Files below one root.
pub(crate) trait Store: Debug + Send + Sync {
    /// The whole name of `file`, for messages.
    fn place(&self, file: &Path) -> PathBuf;

    /// The path of a file or folder below the root that other libraries can open; `None` where it lies on no disk.
    #[cfg(feature = "datasets")]
    fn on_disk(&self, _: &Path) -> Option<PathBuf> {
        None
    }

    /// One file below the root, without listing the others; `None` where it is not there, or cannot be asked for.
    fn find(&self, _: &Path) -> Option<FileInfo> {
        None
    }

    /// Everything below the root. An error where the root itself cannot be listed.
    fn list(&self) -> Result<Listing, StoreError>;

    /// How many pieces it reads side by side. To ask for more at once costs memory and saves no time.
    fn at_once(&self) -> usize;

    /// Reads each piece; a result for each, in their order. A result is the whole piece or an error.
    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>>;

    /// Reads one piece.
    fn read_one(&self, file: &FileInfo, range: Range<u64>) -> Result<Bytes, StoreError> {
        let lost = || StoreError::failed("read", self.place(&file.name), io::ErrorKind::UnexpectedEof.into());
        self.read(&[Piece { file, range }]).pop().unwrap_or_else(|| Err(lost()))
    }
}

/// Why a store did not give what it was asked for. Its text names no file: the caller knows the name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The system, or a server, refused.
    #[error("{cause}")]
    Failed { action: &'static str, place: PathBuf, cause: io::Error },
    /// The file is not the one that was listed: its size is another one.
    #[error("the file has changed since it was listed: {then} bytes then, {now} now")]
    Changed { place: PathBuf, then: u64, now: u64 },
    /// The store as a whole cannot be reached, so nothing is known about the file.
    #[error("{reason}")]
    Unavailable { place: PathBuf, reason: String },
}

impl StoreError {
    fn failed(action: &'static str, place: PathBuf, cause: io::Error) -> Self {
        Self::Failed { action, place, cause }
    }

    /// The error of a sample whose bytes could not be read.
    pub(crate) fn of_sample(self, sample: String) -> DataError {
        match self {
            Self::Failed { .. } | Self::Changed { .. } => DataError::Unreadable { sample, reason: self.to_string() },
            Self::Unavailable { place, reason } => DataError::Unavailable { place, reason },
        }
    }
}

impl From<StoreError> for DataError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Failed { action, place, cause } => Self::Io { action, path: place, cause },
            StoreError::Changed { place, then, now } => Self::Changed { path: place, then, now },
            StoreError::Unavailable { place, reason } => Self::Unavailable { place, reason },
        }
    }
}

/// What `data.source` names.
pub(crate) enum Located {
    /// A folder: the store has its files.
    Folder(Arc<dyn Store>),
    /// A file of the store.
    File(Arc<dyn Store>, FileInfo),
}

/// Finds `data.source` in the store that its first letters name: today the local disk alone.
pub(crate) fn locate(source: &str) -> Result<Located, DataError> {
    let path = Path::new(source);
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(DataError::NotFound { path: source.to_owned() });
        }
        Err(cause) => return Err(DataError::Io { action: "open", path: path.into(), cause }),
    };
    if about.is_dir() {
        return Ok(Located::Folder(Arc::new(LocalStore::new(path))));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(PathBuf::from).unwrap_or_default();
    Ok(Located::File(Arc::new(LocalStore::new(folder)), local::file(name, &about)))
}

/// Refuses by name the stores that this version does not read.
pub(crate) fn refuse_remote(source: &str) -> Result<(), DataError> {
    let schemes = [
        ("hf://", "the Hugging Face hub (hf://)"),
        ("s3://", "object storage (s3://)"),
        ("gs://", "object storage (gs://)"),
        ("az://", "object storage (az://)"),
        ("https://", "a web address (https://)"),
        ("http://", "a web address (http://)"),
        ("file://", "a file:// address (write the path alone)"),
    ];
    match schemes.iter().find(|(prefix, _)| source.starts_with(prefix)) {
        Some((_, format)) => Err(DataError::Unsupported { found: source.to_owned(), format }),
        None => Ok(()),
    }
}
