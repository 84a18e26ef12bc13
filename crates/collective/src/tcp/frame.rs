//! What goes over a connection: frames of a kind, the number of a call, and bytes.

use std::io::{self, Read, Write};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Who comes, before it is let in.
    Hello = 1,
    /// All ranks have come.
    Welcome = 2,
    /// It does not belong here, and why.
    Refused = 3,
    /// Part of a sum.
    Sum = 4,
    /// Part of a broadcast.
    Broadcast = 5,
    /// Part of a gathering.
    Gather = 6,
    /// A sign of life.
    Alive = 7,
    /// The end of all, and why.
    Abort = 8,
    /// The end of one that has done its work.
    Goodbye = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Abort, Alive, Broadcast, Gather, Goodbye, Hello, Refused, Sum, Welcome};
        let all = [Hello, Welcome, Refused, Sum, Broadcast, Gather, Alive, Abort, Goodbye];
        all.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// Which call it belongs to, counted from the start.
    pub(super) call: u64,
    pub(super) bytes: Vec<u8>,
}

/// Every frame begins with these, so that a stranger at the port is seen as one.
const MAGIC: [u8; 4] = *b"ddp1";
const HEADER: usize = 20;

/// Writes a frame.
pub(super) fn write(to: &mut impl Write, kind: Kind, call: u64, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = kind as u8;
    header[8..12].copy_from_slice(&len.to_le_bytes());
    header[12..].copy_from_slice(&call.to_le_bytes());
    to.write_all(&header)?;
    to.write_all(bytes)
}

/// Reads a frame of at most `most` bytes: the length is what a stranger says.
pub(super) fn read(from: &mut impl Read, most: usize) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [m0, m1, m2, m3, kind, _, _, _, l0, l1, l2, l3, call @ ..] = header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if [m0, m1, m2, m3] != MAGIC {
        return Err(invalid("what it sends is not ours"));
    }
    let kind = Kind::of(kind).ok_or_else(|| invalid("a message of an unknown kind"))?;
    if len > most {
        return Err(invalid(&format!("a message of {len} bytes, expected at most {most}")));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(Frame { kind, call: u64::from_le_bytes(call), bytes })
}

/// Numbers as bytes.
pub(super) fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Combines each number with the one that the bytes have in its place; false if there are more or fewer.
pub(super) fn combine(numbers: &mut [f32], bytes: &[u8], with: impl Fn(&mut f32, f32)) -> bool {
    let (others, rest) = bytes.as_chunks::<4>();
    if others.len() != numbers.len() || !rest.is_empty() {
        return false;
    }
    for (number, other) in numbers.iter_mut().zip(others) {
        with(number, f32::from_le_bytes(*other));
    }
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_and_a_strangers_bytes_do_not() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Sum, 7, b"abc").unwrap();
        let frame = read(&mut &bytes[..], 3).unwrap();
        assert_eq!((frame.kind, frame.call, &frame.bytes[..]), (Kind::Sum, 7, &b"abc"[..]));
        assert!(read(&mut &bytes[..], 2).unwrap_err().to_string().contains("at most 2"));
        assert!(
            read(&mut &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], 100).unwrap_err().to_string().contains("not ours")
        );
        bytes[4] = 77;
        assert!(read(&mut &bytes[..], 3).unwrap_err().to_string().contains("unknown kind"));
        assert!(read(&mut &bytes[..10], 3).is_err());
    }

    #[test]
    fn numbers_are_added_and_other_lengths_refused() {
        let mut numbers = [1.0, 2.0];
        assert!(combine(&mut numbers, &to_bytes(&[0.5, -1.0]), |a, b| *a += b));
        assert_eq!(numbers, [1.5, 1.0]);
        assert!(!combine(&mut numbers, &to_bytes(&[0.5]), |a, b| *a += b));
        assert!(!combine(&mut numbers, &[0; 9], |a, b| *a += b));
    }
}
