//! How large a pickle would become. A few bytes can stand for a structure of any depth, or, through the memo, of any size, or say that a
//! text of any length follows; candle's reader builds the first two, and makes room for the third before it reads. What this counts follows its instructions (Python's `pickletools` has the format).

use std::collections::HashMap;

/// The most objects: a model's state has some ten for each tensor.
const MOST_OBJECTS: u64 = 4_000_000;
/// The deepest nesting: a model's state has about six levels.
const DEEPEST: u32 = 100;

/// An object of the pickle, by what it takes.
#[derive(Clone, Copy)]
struct Size {
    objects: u64,
    depth: u32,
}

const ONE: Size = Size { objects: 1, depth: 1 };

impl Size {
    /// Of an object that holds these.
    fn holding(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(ONE, |whole, part| Self {
            objects: whole.objects.saturating_add(part.objects),
            depth: whole.depth.max(part.depth.saturating_add(1)),
        })
    }
}

/// The state of the reader.
#[derive(Default)]
struct Machine {
    stack: Vec<Size>,
    marks: Vec<usize>,
    memo: HashMap<u32, Size>,
    /// A text is longer than the pickle.
    overlong: bool,
}

impl Machine {
    /// Replaces the newest `count` objects by one that holds them.
    fn hold(&mut self, count: usize) -> Option<()> {
        let first = self.stack.len().checked_sub(count)?;
        let whole = Size::holding(self.stack.drain(first..));
        self.stack.push(whole);
        Some(())
    }

    /// The same from the last mark on, with so many objects before it.
    fn hold_from_mark(&mut self, before: usize) -> Option<()> {
        let mark = self.marks.pop()?;
        self.hold(self.stack.len().checked_sub(mark)? + before)
    }

    /// One instruction; none where candle's reader refuses it, or at the end.
    fn step(&mut self, code: u8, rest: &mut &[u8]) -> Option<()> {
        match code {
            0x80 => skip(rest, 1)?,
            b'c' => {
                (0..2).try_for_each(|_| skip(rest, rest.iter().position(|&byte| byte == b'\n')? + 1))?;
                self.stack.push(ONE);
            }
            b'K' | b'M' | b'J' | b'G' => {
                skip(
                    rest,
                    match code {
                        b'K' => 1,
                        b'M' => 2,
                        b'J' => 4,
                        _ => 8,
                    },
                )?;
                self.stack.push(ONE);
            }
            b'X' => {
                let length = number(rest)? as usize;
                self.overlong = length > rest.len();
                skip(rest, length)?;
                self.stack.push(ONE);
            }
            0x8a => {
                let length = byte(rest)?;
                skip(rest, length as usize)?;
                self.stack.push(ONE);
            }
            b')' | b'}' | b']' | b'N' | 0x88 | 0x89 => self.stack.push(ONE),
            b'(' => self.marks.push(self.stack.len()),
            b't' | b'd' => self.hold_from_mark(0)?,
            b'u' | b'e' => self.hold_from_mark(1)?,
            0x85 | b'Q' => self.hold(1)?,
            0x86 | b'R' | 0x81 | b'b' | b'a' => self.hold(2)?,
            0x87 | b's' => self.hold(3)?,
            b'q' | b'r' => {
                let place = if code == b'q' { byte(rest)? } else { number(rest)? };
                self.memo.insert(place, *self.stack.last()?);
            }
            b'h' | b'j' => {
                let place = if code == b'h' { byte(rest)? } else { number(rest)? };
                self.stack.push(*self.memo.get(&place)?);
            }
            _ => return None,
        }
        Some(())
    }
}

fn skip(rest: &mut &[u8], bytes: usize) -> Option<()> {
    *rest = rest.get(bytes..)?;
    Some(())
}

fn byte(rest: &mut &[u8]) -> Option<u32> {
    let value = u32::from(*rest.first()?);
    skip(rest, 1)?;
    Some(value)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let value = u32::from_le_bytes(*rest.first_chunk()?);
    skip(rest, 4)?;
    Some(value)
}

/// Whether candle's reader can build what `pickle` stands for, as far as it gets.
pub(super) fn is_modest(mut pickle: &[u8]) -> bool {
    let mut machine = Machine::default();
    let mut kept = 0_u64;
    while let Some((&code, rest)) = pickle.split_first() {
        pickle = rest;
        if machine.step(code, &mut pickle).is_none() {
            return !machine.overlong;
        }
        let newest = machine.stack.last().copied().unwrap_or(ONE);
        // The memo keeps copies.
        kept = kept.saturating_add(if matches!(code, b'q' | b'r' | b'h' | b'j') { newest.objects } else { 1 });
        if newest.depth > DEEPEST || newest.objects > MOST_OBJECTS || kept > MOST_OBJECTS {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_is_saved_as_is_modest_and_what_grows_without_end_is_not() {
        // {"a": (1, 2)}, with a memo.
        assert!(is_modest(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01K\x02\x86q\x02s."));
        let deep = [&b"\x80\x02)"[..], &[0x85; 300_000], b"."].concat();
        assert!(!is_modest(&deep));
        let doubling = [&b"\x80\x02)q\x01"[..], &b"h\x01h\x01\x86q\x01".repeat(60), b"."].concat();
        assert!(!is_modest(&doubling));
        assert!(!is_modest(b"\x80\x02X\xff\xff\xff\xff"), "4 GiB for a text that is not there");
        // Damaged ones are candle's to refuse.
        for text in [&b""[..], b"t", b"X\xff\xff\xff", b"h\x07", b"c", b"\x87", b"q"] {
            assert!(is_modest(text));
        }
    }
}
