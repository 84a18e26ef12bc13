//! A folder on a disk of this machine, or on one that is mounted as such.
//!
//! A file is opened for each read and closed behind it: that costs some 10 us, and a data set of thousands of files
//! keeps none of them open. Its size is compared with the listed one each time. The time of its last change is not: over
//! a network it may move although the content stays, and would end a run for nothing.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{FileInfo, Piece, Store, StoreError};

#[derive(Debug)]
pub(super) struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn read_piece(&self, piece: &Piece<'_>) -> Result<Bytes, StoreError> {
        let place = self.root.join(&piece.file.name);
        let mut file = File::open(&place).map_err(|cause| self.cannot_open(&place, cause))?;
        let failed = |cause| StoreError::failed("read", place.clone(), cause);
        let (then, now) = (piece.file.size, file.metadata().map_err(failed)?.len());
        if then != now {
            return Err(StoreError::Changed { place, then, now });
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

    fn list(&self) -> Result<Vec<FileInfo>, StoreError> {
        let mut files = Vec::new();
        // Canonical paths of the folders seen: a symbolic link may lead back up.
        let mut seen = HashSet::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            let at = self.root.join(&below);
            let failed = |cause| StoreError::failed("list the folder", at.clone(), cause);
            if !seen.insert(folder(&at).canonicalize().map_err(failed)?) {
                continue;
            }
            for entry in std::fs::read_dir(folder(&at)).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                if name.as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                // A dangling link has no metadata and is no file.
                match std::fs::metadata(at.join(&name)) {
                    Ok(about) if about.is_dir() => folders.push(below.join(name)),
                    Ok(about) if about.is_file() => files.push(FileInfo { name: below.join(name), size: about.len() }),
                    _ => {}
                }
            }
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// A disk gives one piece after another.
    fn at_once(&self) -> usize {
        1
    }

    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>> {
        pieces.iter().map(|piece| self.read_piece(piece)).collect()
    }
}

/// The folder that a path names; the empty path, which has no entry anywhere, is the current one.
fn folder(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
