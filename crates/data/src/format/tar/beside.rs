//! Indices that lie beside their shards, as `ddpm data pack` writes them: `a.index` for `a.tar`. Then not even the headers of a shard
//! are read when it is opened, which over a network are most of its bytes.
//!
//! The layout is the [cache](super::cache)'s, without a version (a copy of a shard has another time or etag), and behind it the hash
//! of the shard. An index is used where the shard has its size and [ends with its hash](super::seal), and the first and the last
//! image lie where it says, under headers with their names and sizes. A shard that was made again, by whatever program, does not.
//! Bytes that were changed inside a shard, under the hash that it had, are not noticed: so an index is never kept in the
//! cache in the headers' place, and never used on a disk, where the headers cost little and are then kept.

use std::path::{Path, PathBuf};

use blake3::Hash;

use super::header::{self, BLOCK, Kind};
use super::index::Index;
use super::{cache, seal};
use crate::store::{FileInfo, Store};

/// Of ten million images; a larger one is read from the headers.
const MAX_BYTES: u64 = 512 << 20;
/// Of the shard, at the end.
const HASH: usize = 32;

/// The name of the index of a shard.
pub(crate) fn index_name(shard: &Path) -> PathBuf {
    shard.with_extension("index")
}

/// The index of `shard` as the bytes of a file beside it; `content` is what the shard ends with.
pub(super) fn encode(index: &Index, shard: &FileInfo, content: &Hash) -> Vec<u8> {
    let mut bytes = cache::encode(index, &FileInfo { version: 0, ..shard.clone() });
    bytes.extend(content.as_bytes());
    bytes
}

/// The index in the file `beside` a shard behind a network; `None` where it is not whole, or of another shard.
pub(super) fn load(store: &dyn Store, shard: &FileInfo, beside: &FileInfo) -> Option<Index> {
    if !store.is_far() || beside.size > MAX_BYTES {
        return None;
    }
    // What cannot be read or does not fit is no error: the headers say the same.
    let bytes = store.read_one(beside, 0..beside.size).ok()?;
    let (bytes, content) = bytes.split_last_chunk::<HASH>()?;
    let index = cache::parse(bytes, &FileInfo { version: 0, ..shard.clone() })?;
    let end = shard.size.checked_sub(seal::LEN as u64)?..shard.size;
    if store.read_one(shard, end).ok()? != seal::end(&Hash::from_bytes(*content)) {
        return None;
    }
    let last = index.spans.len().checked_sub(1)?;
    [0, last].into_iter().all(|number| lies_there(store, shard, &index, number) == Some(true)).then_some(index)
}

/// Whether an image has its header before it.
fn lies_there(store: &dyn Store, shard: &FileInfo, index: &Index, number: usize) -> Option<bool> {
    let span = index.spans.get(number)?;
    let begin = span.offset.checked_sub(BLOCK).filter(|_| span.offset <= shard.size)?;
    let block = store.read_one(shard, begin..span.offset).ok()?;
    let header = header::parse(block[..].try_into().ok()?).ok()??;
    let named = index.names.get(number).is_some_and(|name| name.as_bytes() == header.name);
    Some(named && header.size == u64::from(span.size) && header.kind == Kind::File)
}
