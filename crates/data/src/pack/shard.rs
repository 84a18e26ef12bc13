//! A tar file that is written, and hashed at the same time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::failed;
use crate::error::DataError;
use crate::format::{file_header, shard_end, verified_shard};

/// Headers and contents begin at multiples of it.
const BLOCK: usize = 512;
/// Written at once.
const BUFFER: usize = 1 << 20;

pub(super) struct ShardWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hash: blake3::Hasher,
}

impl ShardWriter {
    pub(super) fn create(path: &Path) -> Result<Self, DataError> {
        let file = File::create(path).map_err(failed("write", path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER, file), hash: blake3::Hasher::new() })
    }

    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), DataError> {
        let header = file_header(name, bytes.len() as u64).ok_or_else(|| DataError::PackTarget {
            to: self.path.clone(),
            reason: format!("{name} with {} bytes does not fit into a tar file", bytes.len()),
        })?;
        self.write(&header)?;
        self.write(bytes)?;
        self.write(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }

    /// Ends the archive, and compares what is on the disk with what was written; the hash that it ends with.
    pub(super) fn finish(mut self) -> Result<blake3::Hash, DataError> {
        let hash = self.hash.finalize();
        self.file.write_all(&shard_end(&hash)).map_err(failed("write", &self.path))?;
        let file = self.file.into_inner().map_err(|error| failed("write", &self.path)(error.into_error()))?;
        file.sync_all().map_err(failed("write", &self.path))?;
        if verified_shard(&self.path).map_err(failed("read", &self.path))? == Some(hash) {
            return Ok(hash);
        }
        let reason = "the disk gives other bytes than were written".to_owned();
        Err(DataError::PackTarget { to: self.path, reason })
    }
}
