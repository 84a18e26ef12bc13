//! The end of a packed shard: a last small file with the blake3 hash of all bytes before it, and the zeros that end an archive.
//!
//! An [index beside a shard](super::beside) names the hash of the shard that it was made of. So the last [`LEN`] bytes of a shard
//! say whether the index is about it; another shard, also one of the same size and the same names, has another hash or none.
//! The file's name has neither a dot, so that no reader takes it for a part of a sample, nor a use for anyone else (WebDataset passes
//! over names like it).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use blake3::{Hash, Hasher};

use super::header::{BLOCK, file_header};

const NAME: &str = "__ddpm__";
const BLOCK_BYTES: usize = BLOCK as usize;
/// Bytes of the end: a header, the hash in letters, two blocks of zeros.
pub(crate) const LEN: usize = 4 * BLOCK_BYTES;
/// Read at once.
const BUFFER: usize = 1 << 20;

/// The end of a shard whose bytes before it have this hash.
pub(crate) fn end(content: &Hash) -> Vec<u8> {
    let text = content.to_hex();
    let mut end: Vec<u8> = file_header(NAME, text.len() as u64).into_iter().flatten().collect();
    end.extend(text.as_bytes());
    end.resize(LEN, 0);
    end
}

/// The hash that a shard on a disk ends with, if its bytes have that hash; `None` where they have not.
pub(crate) fn verified(path: &Path) -> io::Result<Option<Hash>> {
    let mut file = File::open(path)?;
    let Some(content) = file.metadata()?.len().checked_sub(LEN as u64) else { return Ok(None) };
    let (mut hash, mut buffer) = (Hasher::new(), vec![0; BUFFER]);
    let mut bytes = (&mut file).take(content);
    loop {
        match bytes.read(&mut buffer)? {
            0 => break,
            read => _ = hash.update(&buffer[..read]),
        }
    }
    let (hash, mut last) = (hash.finalize(), Vec::new());
    file.read_to_end(&mut last)?;
    Ok((last == end(&hash)).then_some(hash))
}
