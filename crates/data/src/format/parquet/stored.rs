//! The bytes of a Parquet file, on disk or in the binary, for the `parquet` crate.
//!
//! `File`'s own `ChunkReader` shares one cursor among its clones, so two threads would move it under each other.
//! Here each block of rows is read through a handle of its own: opening costs some 10 us, and a data set of
//! thousands of files keeps none of them open.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

/// Where the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Storage {
    Embedded(&'static [u8]),
    Disk(PathBuf),
}

impl Storage {
    /// The path, or `name` where there is none: what a message about the whole file begins with.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        if let Self::Disk(path) = self { path.clone() } else { PathBuf::from(name) }
    }

    /// A handle for one thread.
    pub(super) fn open(&self) -> io::Result<Handle> {
        match self {
            Self::Embedded(bytes) => Ok(Handle::Embedded(Bytes::from_static(bytes))),
            Self::Disk(path) => {
                let file = File::open(path)?;
                let len = file.metadata()?.len();
                Ok(Handle::Disk { file: Arc::new(Mutex::new(file)), len })
            }
        }
    }
}

/// Open bytes.
pub(super) enum Handle {
    Embedded(Bytes),
    Disk { file: Arc<Mutex<File>>, len: u64 },
}

impl Length for Handle {
    fn len(&self) -> u64 {
        match self {
            Self::Embedded(bytes) => bytes.len() as u64,
            Self::Disk { len, .. } => *len,
        }
    }
}

impl ChunkReader for Handle {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        match self {
            Self::Embedded(bytes) => Ok(Box::new(bytes.get_read(start)?)),
            Self::Disk { file, .. } => Ok(Box::new(BufReader::new(Cursor { file: Arc::clone(file), position: start }))),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // Checked before anything is allocated: the length comes from the file.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            let message = format!("{length} bytes at {start} lie beyond the end of the file ({} bytes)", self.len());
            return Err(ParquetError::EOF(message));
        }
        match self {
            Self::Embedded(bytes) => bytes.get_bytes(start, length),
            Self::Disk { file, .. } => {
                let mut buffer = vec![0; length];
                Cursor { file: Arc::clone(file), position: start }.read_exact(&mut buffer)?;
                Ok(buffer.into())
            }
        }
    }
}

/// A reader with a position of its own.
struct Cursor {
    file: Arc<Mutex<File>>,
    position: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.position))?;
        let read = file.read(buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}
