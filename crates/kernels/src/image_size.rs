//! Height and width of the images that a network sees.
//!
//! Written as one number where they are equal, and as `[height, width]` otherwise: diffusers' order and notation (`sample_size`).
//! Where a person reads it, it is `width x height`, as cameras and image viewers have it.

use std::fmt::{self, Display, Formatter};

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

/// Height and width, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageSize {
    /// As high as wide.
    pub const fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    /// Whether it is as high as wide.
    pub fn is_square(self) -> bool {
        self.height == self.width
    }

    /// Pixels of an image; the largest number where there are more.
    pub fn pixels(self) -> usize {
        self.height.saturating_mul(self.width)
    }

    /// Height and width.
    pub fn sides(self) -> [usize; 2] {
        [self.height, self.width]
    }

    /// The shape of so many images, `[N, H, W, C]`.
    pub fn shape(self, images: usize, channels: usize) -> [usize; 4] {
        [images, self.height, self.width, channels]
    }

    /// For a person: `64x48`, the width first.
    pub fn width_x_height(self) -> String {
        format!("{}x{}", self.width, self.height)
    }
}

/// As in a configuration: `64`, or `[48, 64]`, the height first.
impl Display for ImageSize {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.sides() {
            [height, width] if height == width => write!(f, "{height}"),
            [height, width] => write!(f, "[{height}, {width}]"),
        }
    }
}

impl Serialize for ImageSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_square() { self.height.serialize(serializer) } else { self.sides().serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for ImageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = ImageSize;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, or [height, width]")
    }

    fn visit_u64<E: Error>(self, side: u64) -> Result<ImageSize, E> {
        let side = usize::try_from(side).map_err(|_| E::invalid_value(Unexpected::Unsigned(side), &self))?;
        Ok(ImageSize::square(side))
    }

    fn visit_i64<E: Error>(self, side: i64) -> Result<ImageSize, E> {
        let side = usize::try_from(side).map_err(|_| E::invalid_value(Unexpected::Signed(side), &self))?;
        Ok(ImageSize::square(side))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<ImageSize, A::Error> {
        let wrong = |found| A::Error::invalid_length(found, &Self);
        let height = sides.next_element()?.ok_or_else(|| wrong(0))?;
        let width = sides.next_element()?.ok_or_else(|| wrong(1))?;
        match sides.next_element::<IgnoredAny>()? {
            None => Ok(ImageSize { height, width }),
            Some(_) => Err(wrong(3)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, from_value, json};

    fn read(value: Value) -> Result<ImageSize, String> {
        from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_size_is_written_as_it_was_read_and_equal_sides_are_one_number() {
        for (value, text) in [(json!(32), "32"), (json!([48, 80]), "[48, 80]"), (json!([80, 48]), "[80, 48]")] {
            let size = read(value.clone()).unwrap();
            assert_eq!((json!(size), size.to_string()), (value, text.to_owned()));
        }
        assert_eq!(read(json!([64, 64])), Ok(ImageSize::square(64)));
        assert_eq!(json!(read(json!([64, 64])).unwrap()), json!(64));
        assert_eq!(read(json!([48, 80])).unwrap().width_x_height(), "80x48");
    }

    #[test]
    fn anything_else_is_refused_with_what_is_expected() {
        for value in [json!(-1), json!(1.5), json!("48x80"), json!([]), json!([48]), json!([48, 80, 3]), json!(null)] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.ends_with("expected a whole number, or [height, width]"), "{value}: {error}");
        }
        assert!(read(json!([48, -80])).is_err() && read(json!([48.5, 80])).is_err());
    }
}
