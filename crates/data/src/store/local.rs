//! A folder on a disk of this machine, or on one that is mounted as such.
//!
//! A file is opened for each read and closed after it: that costs some 10 us, and a data set of thousands of files
//! keeps none of them open. Its size is compared with the listed one each time. The time of its last change is not: over
//! a network it may move although the content stays, and would end a run without need.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use bytes::Bytes;

use super::{FileInfo, Listing, Piece, Store, StoreError, sizes};

#[derive(Debug)]
pub(super) struct LocalStore {
    root: PathBuf,
    cache: Option<PathBuf>,
}

impl LocalStore {
    /// The files below `root`; `cache` is for indices of them.
    pub(super) fn new(root: &Path, cache: Option<PathBuf>) -> Self {
        Self { root: root.to_owned(), cache }
    }

    fn read_piece(&self, piece: &Piece<'_>) -> Result<Bytes, StoreError> {
        let place = self.root.join(&piece.file.name);
        let mut file = File::open(&place).map_err(|cause| self.cannot_open(&place, cause))?;
        let failed = |cause| StoreError::failed("read", place.clone(), cause);
        let (then, now) = (piece.file.size, file.metadata().map_err(failed)?.len());
        if then != now {
            return Err(StoreError::Changed { place, what: sizes(then, now) });
        }
        let wanted = piece.range.end.saturating_sub(piece.range.start);
        // Checked before anything is allocated: a range may come from the file itself.
        if piece.range.end > now {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        if piece.range.start > 0 {
            file.seek(SeekFrom::Start(piece.range.start)).map_err(failed)?;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
        let read = file.take(wanted).read_to_end(&mut bytes).map_err(failed)?;
        if read as u64 != wanted {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes.into())
    }

    /// Adds the entries of the folder `below` the root; its sub-folders go to `folders`.
    fn list_folder(
        &self,
        below: &Path,
        seen: &mut HashSet<PathBuf>,
        folders: &mut Vec<PathBuf>,
        listing: &mut Listing,
    ) -> io::Result<()> {
        let at = self.root.join(below);
        if !seen.insert(folder(&at).canonicalize()?) {
            return Ok(());
        }
        let mut empty = true;
        for entry in std::fs::read_dir(folder(&at))? {
            let name = entry?.file_name();
            empty = false;
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let name = below.join(name);
            match std::fs::metadata(self.root.join(&name)) {
                Ok(about) if about.is_dir() => folders.push(name),
                Ok(about) if about.is_file() => listing.files.push(file(name, &about)),
                Ok(_) => listing.passed_over.push((name, "neither a file nor a folder".into())),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    listing.passed_over.push((name, "a link to nothing".into()));
                }
                Err(cause) => listing.passed_over.push((name, cause.to_string())),
            }
        }
        // A class without images is none: a person may be waiting for it.
        if empty && !below.as_os_str().is_empty() {
            listing.passed_over.push((below.to_owned(), "an empty folder".into()));
        }
        Ok(())
    }

    /// A file that vanished is one sample less; a folder that vanished is a disk that was taken away.
    fn cannot_open(&self, place: &Path, cause: io::Error) -> StoreError {
        if cause.kind() == io::ErrorKind::NotFound
            && let Err(cause) = std::fs::metadata(folder(&self.root))
        {
            return StoreError::Unavailable { place: self.root.clone(), reason: cause.to_string() };
        }
        StoreError::failed("open", place.to_owned(), cause)
    }
}

impl Store for LocalStore {
    fn place(&self, file: &Path) -> PathBuf {
        self.root.join(file)
    }

    #[cfg(feature = "datasets")]
    fn on_disk(&self, path: &Path) -> Option<PathBuf> {
        Some(self.root.join(path))
    }

    fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    fn find(&self, name: &Path) -> Result<Option<FileInfo>, StoreError> {
        let about = std::fs::metadata(self.root.join(name)).ok().filter(Metadata::is_file);
        Ok(about.map(|about| file(name.to_owned(), &about)))
    }

    fn find_all(&self, names: &[String]) -> Result<Vec<Option<FileInfo>>, StoreError> {
        names.iter().map(|name| self.find(name.as_ref())).collect()
    }

    fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        // Canonical paths of the folders seen: a symbolic link may lead back up.
        let mut seen = HashSet::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            match self.list_folder(&below, &mut seen, &mut folders, &mut listing) {
                Ok(()) => {}
                Err(cause) if below.as_os_str().is_empty() => {
                    return Err(StoreError::failed("list the folder", self.root.clone(), cause));
                }
                Err(cause) => listing.passed_over.push((below, cause.to_string())),
            }
        }
        listing.files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        listing.passed_over.sort_unstable();
        Ok(listing)
    }

    /// A disk gives one piece after another.
    fn at_once(&self) -> usize {
        1
    }

    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>> {
        pieces.iter().map(|piece| self.read_piece(piece)).collect()
    }
}

/// A file with what the system says of it; its version is the time of its last change, in nanoseconds.
pub(super) fn file(name: PathBuf, about: &Metadata) -> FileInfo {
    let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    FileInfo { name, size: about.len(), version: changed.map_or(0, |time| time.as_nanos() as u64) }
}

/// The folder that a path names; the empty path, which has no entry anywhere, is the current one.
fn folder(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
