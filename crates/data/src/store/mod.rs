//! Files on a disk or elsewhere: listed once, then read in pieces.
//!
//! A format knows names, sizes and ranges of bytes, but no disks or networks. [`address`] says which store a source is in. The
//! trait fits a disk as well as an object store:
//! - Calls block, because decoding threads make them. A store with an asynchronous client waits for it inside.
//! - One call asks for many pieces of many files: a store may fetch them side by side, and neighbours as one.
//! - A piece names the file as it was listed, not its name alone. So a store sees that a file has changed, and a cache
//!   has an identity to look for.
//! - A store makes its own retries. The error that it reports in the end is that of one file, which may be replaced by another,
//!   or [`StoreError::Unavailable`], which is that of no file and ends the run.

pub(crate) mod address;
mod embedded;
mod local;
mod options;
#[cfg(feature = "stores")]
mod remote;

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use self::address::Address;
pub(crate) use self::embedded::EmbeddedStore;
use self::local::LocalStore;
pub use self::options::StoreOptions;
use crate::error::{DataError, Refusal};

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

    /// Where indices of its files may be kept.
    fn cache(&self) -> Option<&Path> {
        None
    }

    /// One file below the root, without listing the others; `None` where it is not there, or cannot be asked for.
    fn find(&self, _: &Path) -> Result<Option<FileInfo>, StoreError> {
        Ok(None)
    }

    /// The files of these names in the root itself, each where it is there.
    fn find_all(&self, names: &[String]) -> Result<Vec<Option<FileInfo>>, StoreError> {
        Ok(in_order(self.list()?.files, names))
    }

    /// Everything below the root. An error where the root itself cannot be listed.
    fn list(&self) -> Result<Listing, StoreError>;

    /// Whether it is behind a network, where long pieces cost hardly more than short ones.
    fn is_far(&self) -> bool {
        false
    }

    /// How many pieces it reads side by side. To ask for more at once costs memory and saves no time.
    fn at_once(&self) -> usize;

    /// Reads each piece; a result for each, in their order. A result is the whole piece or an error.
    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>>;

    /// Fetches pieces that will be read later, if it can keep them.
    fn will_need(&self, _: &[Piece<'_>]) -> Result<(), StoreError> {
        Ok(())
    }

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
    /// The file is not the one that was listed.
    #[error("the file has changed since it was listed: {what}")]
    Changed { place: PathBuf, what: String },
    /// A store behind a network refused.
    #[cfg_attr(not(feature = "stores"), expect(dead_code, reason = "only such a store does"))]
    #[error("{refusal}")]
    Refused { place: PathBuf, refusal: Refusal },
    /// The run is to stop, and nothing is waited for any more.
    #[cfg_attr(not(feature = "stores"), expect(dead_code, reason = "only a store behind a network is waited for"))]
    #[error("reading was stopped")]
    Stopped,
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
            _ if self.is_of_a_file() => DataError::Unreadable { sample, reason: self.to_string() },
            error => error.into(),
        }
    }

    /// Whether it says something about one file, and nothing about the others.
    pub(crate) fn is_of_a_file(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Changed { .. } | Self::Refused { refusal: Refusal::Missing, .. })
    }

    /// The same once more, for another file that was asked for in the same call.
    #[cfg(feature = "stores")]
    fn again(&self) -> Self {
        match self {
            Self::Failed { action, place, cause } => {
                Self::failed(action, place.clone(), io::Error::new(cause.kind(), cause.to_string()))
            }
            Self::Changed { place, what } => Self::Changed { place: place.clone(), what: what.clone() },
            Self::Refused { place, refusal } => Self::Refused { place: place.clone(), refusal: refusal.clone() },
            Self::Unavailable { place, reason } => Self::Unavailable { place: place.clone(), reason: reason.clone() },
            Self::Stopped => Self::Stopped,
        }
    }
}

impl From<StoreError> for DataError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Failed { action, place, cause } => Self::Io { action, path: place, cause },
            StoreError::Changed { place, what } => Self::Changed { path: place, what },
            StoreError::Refused { place, refusal } => Self::Refused { place, refusal },
            StoreError::Stopped => Self::Stopped,
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

/// Finds `data.source` in the store that its first letters name.
pub(crate) fn locate(source: &str, options: &StoreOptions) -> Result<Located, DataError> {
    match Address::parse(source)? {
        Some(address) => locate_far(&address, options),
        None => locate_near(source, options),
    }
}

fn locate_near(source: &str, options: &StoreOptions) -> Result<Located, DataError> {
    let path = Path::new(source);
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(DataError::NotFound { path: source.to_owned() });
        }
        Err(cause) => return Err(DataError::Io { action: "open", path: path.into(), cause }),
    };
    let store = |root: &Path| Arc::new(LocalStore::new(root, options.cache_folder()));
    if about.is_dir() {
        return Ok(Located::Folder(store(path)));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(PathBuf::from).unwrap_or_default();
    Ok(Located::File(store(folder), local::file(name, &about)))
}

/// A file if there is one of this name, and else a folder: a store has none, only names that begin alike.
#[cfg(feature = "stores")]
fn locate_far(address: &Address, options: &StoreOptions) -> Result<Located, DataError> {
    let (folder, name) = address.split();
    let store = remote::RemoteStore::open(folder, options)?;
    if name.is_empty() {
        return Ok(Located::Folder(Arc::new(store)));
    }
    match store.find(name.as_ref())? {
        Some(file) => Ok(Located::File(Arc::new(store), file)),
        None if address.scheme == address::Scheme::Web => {
            Err(DataError::Refused { place: address.place().into(), refusal: Refusal::Missing })
        }
        None => Ok(Located::Folder(Arc::new(store.enter(&name)))),
    }
}

#[cfg(not(feature = "stores"))]
fn locate_far(address: &Address, _: &StoreOptions) -> Result<Located, DataError> {
    Err(without_stores(address))
}

#[cfg(feature = "stores")]
fn open_far(folder: &Address, options: &StoreOptions) -> Result<Arc<dyn Store>, DataError> {
    Ok(Arc::new(remote::RemoteStore::open(folder.clone(), options)?))
}

#[cfg(not(feature = "stores"))]
fn open_far(folder: &Address, _: &StoreOptions) -> Result<Arc<dyn Store>, DataError> {
    Err(without_stores(folder))
}

#[cfg(not(feature = "stores"))]
fn without_stores(address: &Address) -> DataError {
    DataError::Refused { place: address.place().into(), refusal: Refusal::WithoutStores }
}

/// Files of one folder by a name with braces.
pub(crate) struct Pattern {
    pub(crate) folder: Arc<dyn Store>,
    pub(crate) name: String,
}

/// What a source with braces in its last part means; `None` for any other source.
pub(crate) fn locate_pattern(source: &str, options: &StoreOptions) -> Result<Option<Pattern>, DataError> {
    if let Some(address) = Address::parse(source)? {
        let (folder, name) = address.split();
        return if name.contains('{') {
            Ok(Some(Pattern { folder: open_far(&folder, options)?, name }))
        } else {
            Ok(None)
        };
    }
    if !source.contains('{') || Path::new(source).exists() {
        return Ok(None);
    }
    let (folder, name) = source.rsplit_once('/').unwrap_or((".", source));
    match locate_near(folder, options)? {
        Located::Folder(store) => Ok(Some(Pattern { folder: store, name: name.to_owned() })),
        Located::File(..) => {
            Err(DataError::BadPattern { found: source.to_owned(), reason: format!("{folder} is no folder") })
        }
    }
}

/// The files of these names among `files`.
fn in_order(files: Vec<FileInfo>, names: &[String]) -> Vec<Option<FileInfo>> {
    let mut files: HashMap<PathBuf, FileInfo> = files.into_iter().map(|file| (file.name.clone(), file)).collect();
    names.iter().map(|name| files.remove(Path::new(name))).collect()
}

/// What has changed, where it is a size.
fn sizes(then: u64, now: u64) -> String {
    format!("{then} bytes then, {now} now")
}
