//! Files that are part of the program.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{FileInfo, Listing, Piece, Store, StoreError};

/// Files by their names, which are also their places.
#[derive(Debug)]
pub(crate) struct EmbeddedStore(pub(crate) &'static [(&'static str, &'static [u8])]);

impl EmbeddedStore {
    fn bytes_of(&self, file: &Path) -> &'static [u8] {
        self.0.iter().find(|(name, _)| Path::new(name) == file).map_or(&[], |(_, bytes)| bytes)
    }
}

impl Store for EmbeddedStore {
    fn place(&self, file: &Path) -> PathBuf {
        file.to_owned()
    }

    fn list(&self) -> Result<Listing, StoreError> {
        let files =
            self.0.iter().map(|(name, bytes)| FileInfo { name: name.into(), size: bytes.len() as u64, version: 0 });
        Ok(Listing { files: files.collect(), passed_over: Vec::new() })
    }

    fn at_once(&self) -> usize {
        1
    }

    /// Slices of the program's own memory; nothing is copied.
    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>> {
        let one = |piece: &Piece<'_>| {
            let range = usize::try_from(piece.range.start).ok().zip(usize::try_from(piece.range.end).ok());
            let bytes = range.and_then(|(start, end)| self.bytes_of(&piece.file.name).get(start..end));
            let beyond =
                || StoreError::failed("read", self.place(&piece.file.name), std::io::ErrorKind::UnexpectedEof.into());
            bytes.map(Bytes::from_static).ok_or_else(beyond)
        };
        pieces.iter().map(one).collect()
    }
}
