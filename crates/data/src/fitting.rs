//! How an image of any shape gets the network's size, as `data.fit`, `data.crop`, `data.upscale` and `data.background` say.

use std::cmp::Ordering;

use ddpm_kernels::image_size::ImageSize;
use image::{Pixel, Rgb};
use serde::{Deserialize, Serialize};

/// Where an image larger than the network's is cut (`data.crop`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// In the middle.
    #[default]
    Center,
    /// Anywhere along the longer side, drawn again each time the image is seen.
    Random,
    /// Not at all: a larger image is an error, and a smaller one of another shape gets a frame.
    None,
}

/// How an image that is larger than the network's is made to fit (`data.fit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The largest part of the network's shape is cut out where `data.crop` says, and resized.
    #[default]
    Crop,
    /// All of it is resized until both sides fit; bars of the background fill the rest.
    Pad,
    /// All of it is resized to both sides; its proportions change.
    Stretch,
}

/// The colour under transparent pixels and around images that do not fill the network's (`data.background`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Background {
    /// White under transparency, as browsers show it, and black around.
    #[default]
    WhiteAndBlack,
    /// One colour for both.
    Colour([u8; 3]),
}

/// The names of colours.
const COLOURS: [(&str, [u8; 3]); 3] = [("black", [0; 3]), ("grey", [128; 3]), ("white", [255; 3])];

impl Background {
    /// Under transparent pixels.
    pub(crate) fn under(self) -> [u8; 3] {
        match self {
            Self::WhiteAndBlack => [255; 3],
            Self::Colour(colour) => colour,
        }
    }

    /// Whether a grey image on it stays one.
    pub(crate) fn is_grey(self) -> bool {
        match self {
            Self::WhiteAndBlack => true,
            Self::Colour([red, green, blue]) => red == green && green == blue,
        }
    }

    /// Around an image, in so many channels.
    pub(crate) fn around(self, channels: usize) -> Vec<u8> {
        let colour = match self {
            Self::WhiteAndBlack => [0; 3],
            Self::Colour(colour) => colour,
        };
        if channels == 1 { Rgb(colour).to_luma().0.to_vec() } else { colour.to_vec() }
    }
}

impl TryFrom<String> for Background {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::WhiteAndBlack);
        }
        let named = COLOURS.iter().find(|(name, _)| *name == text).map(|(_, colour)| *colour);
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6).unwrap_or("none");
        let numbered = || u32::from_str_radix(digits, 16).ok().map(|number| number.to_be_bytes());
        let colour = named.or_else(|| numbered().map(|[_, colour @ ..]| colour));
        colour.map(Self::Colour).ok_or_else(|| format!("`{text}` is no colour, expected black, grey, white or #rrggbb"))
    }
}

impl From<Background> for String {
    fn from(background: Background) -> Self {
        match background {
            Background::WhiteAndBlack => Self::new(),
            Background::Colour(colour) => match COLOURS.iter().find(|(_, named)| *named == colour) {
                Some((name, _)) => (*name).to_owned(),
                None => colour.iter().fold("#".to_owned(), |text, part| format!("{text}{part:02x}")),
            },
        }
    }
}

/// The settings that make an image fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// `data.fit`.
    pub fit: Fit,
    /// Whether an image that is smaller in both directions is enlarged, and not centred on the background (`data.upscale`).
    pub upscale: bool,
    /// `data.background`.
    pub background: Background,
}

impl Default for Fitting {
    fn default() -> Self {
        Self { fit: Fit::default(), upscale: true, background: Background::default() }
    }
}

/// Width and height of the largest part of an image that has the shape of `size`.
fn largest_part((width, height): (u32, u32), size: ImageSize) -> (u32, u32) {
    let (w, h) = (u64::from(width), u64::from(height));
    let (of_width, of_height) = (size.width.max(1) as u64, size.height.max(1) as u64);
    let scaled = |side: u64, times: u64, by: u64| ((side * times + by / 2) / by).max(1);
    match (w * of_height).cmp(&(h * of_width)) {
        Ordering::Equal => (width, height),
        Ordering::Greater => (scaled(h, of_width, of_height).min(w) as u32, height),
        Ordering::Less => (width, scaled(w, of_height, of_width).min(h) as u32),
    }
}

/// What becomes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is not larger than the network's in any direction and keeps its size, in a frame where it is smaller.
    Kept {
        /// That is so only because of its shape: without a cut it cannot be enlarged, and `data.crop` allows none.
        by_shape: bool,
    },
    /// A part of this width and height is resized.
    Resized { part: (u32, u32), to: (u32, u32) },
    /// It would have to be made smaller, and `data.crop` expects that no image has to.
    Refused,
}

impl Fate {
    /// Of an image of this width and height, for a network of `size`.
    pub(crate) fn of((width, height): (u32, u32), size: ImageSize, crop: Crop, fitting: Fitting) -> Self {
        let (most_width, most_height) = (size.width as u32, size.height as u32);
        let part = match fitting.fit {
            Fit::Crop => largest_part((width, height), size),
            Fit::Pad | Fit::Stretch => (width, height),
        };
        let uncut = fitting.fit == Fit::Crop && crop == Crop::None;
        let other_shape = uncut && part != (width, height);
        if width <= most_width && height <= most_height {
            if other_shape || !fitting.upscale {
                return Self::Kept { by_shape: other_shape };
            }
        } else if uncut {
            return Self::Refused;
        }
        let to = match fitting.fit {
            Fit::Crop | Fit::Stretch => (most_width, most_height),
            Fit::Pad => {
                let ratio = |most: u32, length: u32| f64::from(most) / f64::from(length);
                let scale = ratio(most_width, width).min(ratio(most_height, height));
                let side = |length: u32, most: u32| ((f64::from(length) * scale).round() as u32).clamp(1, most);
                (side(width, most_width), side(height, most_height))
            }
        };
        Self::Resized { part, to }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn background(text: &str) -> Result<Background, String> {
        Background::try_from(text.to_owned())
    }

    #[test]
    fn a_background_is_written_as_it_was_read() {
        for text in ["", "black", "grey", "white", "#0080ff"] {
            assert_eq!(String::from(background(text).unwrap()), text);
        }
        assert_eq!(background("#ffffff"), background("white"));
        for text in ["whit", "#fff", "#gggggg", "255", "#\u{e4}\u{e4}\u{e4}"] {
            assert!(background(text).unwrap_err().ends_with("expected black, grey, white or #rrggbb"), "{text}");
        }
    }

    #[test]
    fn the_part_that_is_kept_has_the_networks_shape() {
        let wide = ImageSize { height: 48, width: 80 };
        for (image, part) in [
            ((80, 48), (80, 48)),
            ((160, 96), (160, 96)),
            ((100, 100), (100, 60)),
            ((48, 80), (48, 29)),
            ((3000, 10), (17, 10)),
            ((1, 10_000), (1, 1)),
        ] {
            assert_eq!(largest_part(image, wide), part, "{image:?}");
        }
        assert_eq!(largest_part((33, 20), ImageSize::square(32)), (20, 20));
    }
}
