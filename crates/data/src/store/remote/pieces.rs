//! From pieces of files to blocks and requests, and back.

use std::collections::HashMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::blocks::{BLOCK_BYTES, Key};
use crate::store::Piece;

/// Neighbouring blocks are fetched by one request, up to so many.
const BLOCKS_A_REQUEST: u64 = 8;

/// The blocks that a piece lies in; none of an empty one, or of one beyond the end.
pub(super) fn block_keys(object: [u8; 16], piece: &Piece<'_>) -> impl Iterator<Item = Key> + use<> {
    let Range { start, end } = piece.range;
    let inside = start < end && end <= piece.file.size;
    let numbers = if inside { start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) } else { 0..0 };
    numbers.map(move |number| Key { object, number })
}

/// Neighbours together: the first block of each request, and how many.
pub(super) fn requests(keys: &[Key]) -> Vec<(Key, u64)> {
    let mut requests: Vec<(Key, u64)> = Vec::new();
    for &key in keys {
        match requests.last_mut() {
            Some((first, count))
                if first.object == key.object && first.number + *count == key.number && *count < BLOCKS_A_REQUEST =>
            {
                *count += 1;
            }
            _ => requests.push((key, 1)),
        }
    }
    requests
}

/// The bytes of a piece, if all its blocks are there.
pub(super) fn assemble(object: [u8; 16], piece: &Piece<'_>, blocks: &HashMap<Key, Bytes>) -> Option<Bytes> {
    let Range { start, end } = piece.range;
    if start >= end || end > piece.file.size {
        return (start == end && end <= piece.file.size).then(Bytes::new);
    }
    let part = |key: Key| {
        let block = blocks.get(&key)?;
        let at = key.number * BLOCK_BYTES;
        let from = start.saturating_sub(at) as usize;
        let to = (end - at).min(block.len() as u64) as usize;
        (from <= to).then(|| block.slice(from..to))
    };
    let parts = block_keys(object, piece).map(part).collect::<Option<Vec<Bytes>>>()?;
    let whole = match <[Bytes; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => {
            let mut whole = BytesMut::with_capacity((end - start) as usize);
            parts.iter().for_each(|part| whole.extend_from_slice(part));
            whole.freeze()
        }
    };
    (whole.len() as u64 == end - start).then_some(whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::FileInfo;

    const OBJECT: [u8; 16] = [1; 16];

    fn key(number: u64) -> Key {
        Key { object: OBJECT, number }
    }

    /// Two and a half blocks, whose bytes are their places.
    fn file() -> (FileInfo, Vec<u8>, HashMap<Key, Bytes>) {
        let bytes: Vec<u8> = (0..BLOCK_BYTES * 5 / 2).map(|at| (at * 7 / 3) as u8).collect();
        let blocks = bytes.chunks(BLOCK_BYTES as usize).map(Bytes::copy_from_slice).zip(0..).map(|(b, n)| (key(n), b));
        (FileInfo { name: "x".into(), size: bytes.len() as u64, version: 1 }, bytes.clone(), blocks.collect())
    }

    #[test]
    fn a_piece_comes_back_from_its_blocks_and_from_no_others() {
        let (file, bytes, blocks) = file();
        let (block, size) = (BLOCK_BYTES, file.size);
        for range in [0..size, 5..9, block - 1..block + 1, block..2 * block, size - 1..size, 3..2 * block + 1, 7..7] {
            let piece = Piece { file: &file, range: range.clone() };
            let needed: HashMap<Key, Bytes> =
                block_keys(OBJECT, &piece).map(|key| (key, blocks[&key].clone())).collect();
            let whole = assemble(OBJECT, &piece, &needed).unwrap();
            assert_eq!(whole, bytes[range.start as usize..range.end as usize], "{range:?}");
            for missing in needed.keys() {
                let mut fewer = needed.clone();
                fewer.remove(missing);
                assert_eq!(assemble(OBJECT, &piece, &fewer), None);
            }
        }
        let beyond = Piece { file: &file, range: size - 1..size + 1 };
        assert_eq!((block_keys(OBJECT, &beyond).count(), assemble(OBJECT, &beyond, &blocks)), (0, None));
    }

    #[test]
    fn neighbours_share_a_request_up_to_a_limit() {
        let keys: Vec<Key> = [0, 1, 2, 5].into_iter().chain(10..20).map(key).collect();
        assert_eq!(requests(&keys), [(key(0), 3), (key(5), 1), (key(10), 8), (key(18), 2)]);
        let other = Key { object: [2; 16], number: 1 };
        assert_eq!(requests(&[key(0), other]), [(key(0), 1), (other, 1)]);
    }
}
