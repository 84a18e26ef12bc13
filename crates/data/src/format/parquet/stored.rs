//! A Parquet file in a store, as the `parquet` crate wants to read it.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::store::{FileInfo, Store, StoreError};

/// A file of a store. Each read names its place, so threads share no cursor. Clones share the store's error.
#[derive(Clone, Debug)]
pub(super) struct StoredFile {
    store: Arc<dyn Store>,
    file: Arc<FileInfo>,
    /// The store's first error. The `parquet` crate turns it into a text, which does not distinguish a lost store from a
    /// damaged file.
    error: Arc<Mutex<Option<StoreError>>>,
}

impl StoredFile {
    pub(super) fn new(store: Arc<dyn Store>, file: FileInfo) -> Self {
        Self { store, file: Arc::new(file), error: Arc::default() }
    }

    /// The same file with a place of its own for an error, for one thread.
    pub(super) fn alone(&self) -> Self {
        Self { error: Arc::default(), ..self.clone() }
    }

    /// Relative to the store's root.
    pub(super) fn name(&self) -> &Path {
        &self.file.name
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn file(&self) -> &FileInfo {
        &self.file
    }

    /// What a message about the whole file begins with.
    pub(super) fn place(&self) -> PathBuf {
        self.store.place(&self.file.name)
    }

    /// The error of the store that ended the last reading, if it was one.
    pub(super) fn take_error(&self) -> Option<StoreError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn read(&self, start: u64, length: u64) -> io::Result<Bytes> {
        self.store.read_one(&self.file, start..start + length).map_err(|error| {
            let text = error.to_string();
            self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            io::Error::other(text)
        })
    }
}

impl Length for StoredFile {
    fn len(&self) -> u64 {
        self.file.size
    }
}

impl ChunkReader for StoredFile {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Cursor { stored: self.clone(), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // Checked here and not by the store: a place beyond the end is an error of the footer, not of reading.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            let message = format!("{length} bytes at {start} lie beyond the end of the file ({} bytes)", self.len());
            return Err(ParquetError::EOF(message));
        }
        Ok(self.read(start, length as u64)?)
    }
}

/// A reader with a position of its own.
pub(super) struct Cursor {
    stored: StoredFile,
    position: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.stored.len().saturating_sub(self.position);
        let bytes = self.stored.read(self.position, left.min(buffer.len() as u64))?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }
}
