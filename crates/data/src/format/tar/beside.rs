//! Indices that lie beside their shards, as `ddpm data pack` writes them: `a.index` for `a.tar`. Then not even the headers of a shard
//! are read when it is opened, which over a network are most of its bytes.
//!
//! The layout is the [cache](super::cache)'s, without a version: a copy of a shard has another time or etag. Instead its size must be
//! what it was, and the first and the last image must lie where the index says, under headers with their names and sizes.

use std::path::{Path, PathBuf};

use super::cache;
use super::header::{self, BLOCK, Kind};
use super::index::Index;
use crate::store::{FileInfo, Store};

/// Of ten million images; a larger one is read from the headers.
const MAX_BYTES: u64 = 512 << 20;

/// The name of the index of a shard.
pub(crate) fn index_name(shard: &Path) -> PathBuf {
    shard.with_extension("index")
}

/// The index of `shard` as the bytes of a file beside it.
pub(super) fn encode(index: &Index, shard: &FileInfo) -> Vec<u8> {
    cache::encode(index, &FileInfo { version: 0, ..shard.clone() })
}

/// The index in the file `beside` a shard; `None` where it is not whole, or of another shard.
pub(super) fn load(store: &dyn Store, shard: &FileInfo, beside: &FileInfo) -> Option<Index> {
    if beside.size > MAX_BYTES {
        return None;
    }
    // What cannot be read or does not fit is no error: the headers say the same.
    let bytes = store.read_one(beside, 0..beside.size).ok()?;
    let index = cache::parse(&bytes, &FileInfo { version: 0, ..shard.clone() })?;
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
