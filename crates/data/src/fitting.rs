//! How an image of any shape becomes the network's square, as `data.fit`, `data.upscale` and `data.background` say; and what that
//! did to the images so far, for a person who did not expect it.

use image::{Pixel, Rgb};
use serde::{Deserialize, Serialize};

/// A cut of this share, on average, is worth a word: a 4:3 photo loses a quarter.
const MUCH: f64 = 0.2;

/// How an image that is larger than the square is made to fit (`data.fit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The largest square is cut out where `data.crop` says, and resized.
    #[default]
    Crop,
    /// All of it is resized until its longer side fits; bars of the background fill the rest.
    Pad,
    /// All of it is resized to the square; its proportions change.
    Stretch,
}

/// The colour under transparent pixels and around images that do not fill the square (`data.background`).
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fitting {
    /// `data.fit`.
    pub fit: Fit,
    /// Whether an image that is smaller than the square is enlarged, and not centred on the background (`data.upscale`).
    pub upscale: bool,
    /// `data.background`.
    pub background: Background,
}

/// What fitting did to some images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fitted {
    images: usize,
    framed: usize,
    /// The shares that were cut off, added up.
    lost: f64,
    first: Option<(u32, u32)>,
    mixed: bool,
}

impl Fitted {
    /// Takes in an image of this size, for a square of `side`.
    pub(crate) fn add(&mut self, (width, height): (u32, u32), side: u32, fitting: Fitting) {
        self.images += 1;
        self.mixed |= *self.first.get_or_insert((width, height)) != (width, height);
        let small = width <= side && height <= side && !fitting.upscale;
        if small && width.min(height) < side {
            self.framed += 1;
        } else if fitting.fit == Fit::Crop {
            let square = f64::from(width.min(height)).powi(2);
            self.lost += 1.0 - square / (f64::from(width) * f64::from(height));
        }
    }

    /// Takes in what was done to further images.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.images += other.images;
        self.framed += other.framed;
        self.lost += other.lost;
        self.mixed |= other.mixed || (self.first.is_some() && other.first.is_some() && self.first != other.first);
        self.first = self.first.or(other.first);
    }

    /// What is worth a word, with the key that changes it. Images of one size that all get a frame are as they were meant.
    pub(crate) fn notices(&self, image_size: usize) -> Vec<String> {
        let (images, framed) = (self.images, self.framed);
        let mut notices = Vec::new();
        if framed > 0 && self.mixed {
            notices.push(format!(
                "{framed} of the first {images} images are smaller than data.image_size = {image_size} and get a frame, which \
                 drawn images will show too; data.upscale = true enlarges them instead, in a new run"
            ));
        }
        let lost = self.lost / images.max(1) as f64;
        if lost > MUCH {
            notices.push(format!(
                "of the first {images} images {:.0} % are cut off on average to make them square; data.fit = \"pad\" keeps \
                 all of an image, in a new run",
                lost * 100.0
            ));
        }
        notices
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

    fn notices(sizes: &[(u32, u32)], fitting: Fitting) -> Vec<String> {
        let mut all = Fitted::default();
        for &size in sizes {
            let mut one = Fitted::default();
            one.add(size, 32, fitting);
            all.merge(&one);
        }
        all.notices(32)
    }

    #[test]
    fn frames_are_said_where_only_some_images_get_one() {
        let said = notices(&[(20, 20), (64, 64), (32, 20)], Fitting::default());
        assert!(said.len() == 1 && said[0].starts_with("2 of the first 3 images are smaller"), "{said:?}");
        assert!(notices(&[(28, 28); 5], Fitting::default()).is_empty());
        assert!(notices(&[(20, 20), (64, 64)], Fitting { upscale: true, ..Fitting::default() }).is_empty());
    }

    #[test]
    fn a_large_cut_is_said_with_its_share() {
        let said = notices(&[(40, 80), (80, 40)], Fitting::default());
        assert!(said.len() == 1 && said[0].contains("50 % are cut off on average"), "{said:?}");
        assert!(notices(&[(40, 80)], Fitting { fit: Fit::Pad, ..Fitting::default() }).is_empty());
    }
}
