//! The 512-byte blocks of a tar file (POSIX.1-2001 `pax`, and GNU's extensions to the older `ustar`).
//!
//! Read from any place of a file, which the crates for tar, made for streams, do not offer; nothing is believed but what the
//! checksum covers, and no number is used before it was compared with the file's size.

use std::borrow::Cow;

/// Headers and contents begin at multiples of it.
pub(super) const BLOCK: u64 = 512;

/// A header as it lies in the file.
pub(super) type Block = [u8; BLOCK as usize];

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file, whose bytes follow.
    File,
    /// A file with holes; whether a block with more places of its pieces follows.
    Sparse { more: bool },
    /// A folder, link or device: no bytes follow, whatever the size.
    Empty,
    /// GNU: the name of the next file, longer than a header can hold.
    LongName,
    /// POSIX: records about the next file.
    Records,
    /// Something else, with as many bytes as it says.
    Other,
}

/// A header, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    /// Bytes that follow.
    pub(super) size: u64,
    pub(super) kind: Kind,
}

const NAME: std::ops::Range<usize> = 0..100;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..263;
const PREFIX: std::ops::Range<usize> = 345..500;
/// Of a sparse file's header.
const SPARSE_MORE: usize = 482;
/// Of the blocks behind it.
pub(super) const MORE_PIECES: usize = 504;

/// Reads a header; `None` is the block of zeros that ends an archive.
pub(super) fn parse(block: &Block) -> Result<Option<Header>, &'static str> {
    if block.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if number(&block[CHECKSUM]) != Some(checksum(block)) {
        return Err("no tar header, or a damaged one");
    }
    let size = number(&block[SIZE]).ok_or("a header with a size that is no number")?;
    let mut name = text(&block[NAME]).to_vec();
    // GNU's "ustar  " has other things in the place of the prefix.
    if &block[MAGIC] == b"ustar\0" && block[PREFIX.start] != 0 {
        name = [text(&block[PREFIX]), b"/", &name].concat();
    }
    let kind = match block[KIND] {
        // Before POSIX a folder was a file whose name ends so.
        0 if name.ends_with(b"/") => Kind::Empty,
        0 | b'0' | b'7' => Kind::File,
        b'1'..=b'6' => Kind::Empty,
        b'S' => Kind::Sparse { more: block[SPARSE_MORE] != 0 },
        b'L' => Kind::LongName,
        b'x' => Kind::Records,
        _ => Kind::Other,
    };
    Ok(Some(Header { name, size: if kind == Kind::Empty { 0 } else { size }, kind }))
}

/// The header of a file of `size` bytes, with nothing that changes from one packing to the next: no times, no owners.
/// `None` where the name is too long.
pub(crate) fn file_header(name: &str, size: u64) -> Option<Block> {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    if name.is_empty() || name.len() > NAME.len() || size >= 1 << 33 {
        return None;
    }
    put(NAME.start, name.as_bytes());
    put(100, b"0000644\x000000000\x000000000\0");
    put(SIZE.start, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(KIND, b"0");
    put(MAGIC.start, b"ustar\x0000");
    let sum = checksum(&block);
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Some(block)
}

/// The sum of all bytes, those of the sum itself taken for spaces.
fn checksum(block: &Block) -> u64 {
    let outside = block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
    outside.map(|&byte| u64::from(byte)).sum::<u64>() + CHECKSUM.len() as u64 * u64::from(b' ')
}

/// Octal digits, or (GNU, for large ones) bytes behind a first one with the highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7F);
        let add = |sum: u64, &byte: &u8| Some(sum.checked_mul(256)? + u64::from(byte));
        return field[1..].iter().try_fold(first, add).filter(|&number| number <= i64::MAX as u64);
    }
    let digits = text(field);
    let digits = std::str::from_utf8(digits).ok()?.trim_matches(' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(field)
}

/// What a POSIX record block says about the next file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse: bool,
}

/// Reads `LENGTH KEY=VALUE\n` after one another.
pub(super) fn parse_records(mut bytes: &[u8]) -> Option<Records> {
    let mut records = Records::default();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (String::from_utf8_lossy(&record[..equals]), &record[equals + 1..]);
        match key {
            Cow::Borrowed("path") => records.name = Some(value.to_vec()),
            Cow::Borrowed("size") => records.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            key => records.sparse |= key.starts_with("GNU.sparse."),
        }
        bytes = &bytes[length..];
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_header_comes_back_as_written() {
        let header = parse(&file_header("a/b.jpg", 1234).unwrap()).unwrap().unwrap();
        assert_eq!(header, Header { name: b"a/b.jpg".to_vec(), size: 1234, kind: Kind::File });
        assert_eq!(file_header(&"x".repeat(101), 1), None);
        assert_eq!(parse(&[0; 512]), Ok(None));
    }

    #[test]
    fn each_flipped_bit_is_noticed() {
        let block = file_header("a.jpg", 77).unwrap();
        for bit in 0..512 * 8 {
            let mut damaged = block;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse(&damaged);
            // The sum itself may be written in several ways.
            let same = CHECKSUM.contains(&(bit / 8)) && parsed == parse(&block);
            assert!(parsed.is_err() || same, "bit {bit}: {parsed:?}");
        }
    }

    #[test]
    fn numbers_are_octal_or_binary_and_never_larger_than_a_file() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   17  \0"), Some(0o17));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\x01\0\0\0"), Some(1 << 24));
        for odd in [&b"0x12\0"[..], b"99", b"-1", &[0xFF; 12], b"\x80\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"] {
            assert_eq!(number(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn records_name_and_size_the_next_file_or_are_refused() {
        let records = parse_records(b"14 path=x/y.z\n10 size=7\n20 GNU.sparse.major\n").ok_or(());
        assert!(records.is_err(), "a record needs an equals sign");
        let records = parse_records(b"14 path=x/y.z\n10 size=7\n22 GNU.sparse.major=1\n").unwrap();
        assert_eq!(records, Records { name: Some(b"x/y.z".to_vec()), size: Some(7), sparse: true });
        for bad in [&b"99 path=x\n"[..], b"0 path=x\n", b"3 \n", b"path", b"10 size=x\n", b"18446744073709551615 a=b\n"]
        {
            assert_eq!(parse_records(bad), None, "{bad:?}");
        }
    }
}
