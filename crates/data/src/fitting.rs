//! How an image of any shape gets the network's size, as `data.fit`, `data.crop`, `data.upscale` and `data.background` say; and what that
//! did to the images so far, for a person who did not expect it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use ddpm_kernels::image_size::ImageSize;
use image::{Pixel, Rgb};
use serde::{Deserialize, Serialize};

/// A cut of this share, on average, is worth a word: a 4:3 photo loses a quarter.
const MUCH: f64 = 0.2;

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
pub(crate) fn largest_part((width, height): (u32, u32), size: ImageSize) -> (u32, u32) {
    let (w, h) = (u64::from(width), u64::from(height));
    let (of_width, of_height) = (size.width.max(1) as u64, size.height.max(1) as u64);
    let scaled = |side: u64, times: u64, by: u64| ((side * times + by / 2) / by).max(1);
    match (w * of_height).cmp(&(h * of_width)) {
        Ordering::Equal => (width, height),
        Ordering::Greater => (scaled(h, of_width, of_height).min(w) as u32, height),
        Ordering::Less => (width, scaled(w, of_height, of_width).min(h) as u32),
    }
}

/// How what fitting did is told, to who trains or to who packs.
struct Words {
    all: String,
    size: String,
    /// What stands before the names of the settings.
    keys: &'static str,
    /// Where they may be others.
    anew: &'static str,
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

/// What fitting did to some images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fitted {
    images: usize,
    framed: usize,
    /// Those that their shape gave a frame.
    framed_by_shape: usize,
    enlarged: usize,
    /// The shares that were cut off, added up.
    lost: f64,
    first: Option<(u32, u32)>,
    mixed: bool,
    /// Colour profiles that could not be used, by their kind.
    ignored: BTreeMap<&'static str, usize>,
}

impl Fitted {
    /// Takes in an image of this width and height, for a network of `size`, and what became of it.
    pub(crate) fn add(&mut self, (width, height): (u32, u32), size: ImageSize, fate: Fate) {
        self.images += 1;
        self.mixed |= *self.first.get_or_insert((width, height)) != (width, height);
        match fate {
            Fate::Kept { by_shape: true } => self.framed_by_shape += 1,
            Fate::Kept { by_shape: false } => {
                self.framed += usize::from((width as usize) < size.width || (height as usize) < size.height);
            }
            Fate::Resized { part, to } => {
                self.enlarged += usize::from(to.0 > part.0 || to.1 > part.1);
                let kept = f64::from(part.0) * f64::from(part.1);
                self.lost += 1.0 - kept / (f64::from(width) * f64::from(height));
            }
            // An error says it.
            Fate::Refused => {}
        }
    }

    /// Takes in a colour profile that could not be used.
    pub(crate) fn add_ignored(&mut self, profile: &'static str) {
        *self.ignored.entry(profile).or_default() += 1;
    }

    /// Takes in what was done to further images.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.images += other.images;
        self.framed += other.framed;
        self.framed_by_shape += other.framed_by_shape;
        self.enlarged += other.enlarged;
        self.lost += other.lost;
        self.mixed |= other.mixed || (self.first.is_some() && other.first.is_some() && self.first != other.first);
        self.first = self.first.or(other.first);
        other.ignored.iter().for_each(|(profile, count)| *self.ignored.entry(profile).or_default() += count);
    }

    /// What is worth a word about the first images of a run, with the key that changes it. Images of one size that all get a frame
    /// are as they were meant.
    pub(crate) fn notices(&self, image_size: ImageSize) -> Vec<String> {
        let all = format!("the first {} images", self.images);
        self.said(
            image_size,
            &Words { all, size: format!("data.image_size = {image_size}"), keys: "data.", anew: "in a new run" },
        )
    }

    /// The same about the images that were packed.
    pub(crate) fn notices_of_pack(&self, image_size: ImageSize) -> Vec<String> {
        let (all, size) = (format!("the {} images packed now", self.images), image_size.width_x_height());
        self.said(image_size, &Words { all, size, keys: "", anew: "in a new folder" })
    }

    fn said(&self, image_size: ImageSize, words: &Words) -> Vec<String> {
        let (framed, enlarged) = (self.framed, self.enlarged);
        let Words { all, size, keys, anew } = words;
        let mut notices = Vec::new();
        if framed > 0 && self.mixed {
            notices.push(format!(
                "{framed} of {all} are smaller than {size} and get a frame, which drawn images will show too; {keys}upscale = true \
                 enlarges them instead, {anew}"
            ));
        }
        if self.framed_by_shape > 0 {
            let framed = self.framed_by_shape;
            notices.push(format!(
                "{framed} of {all} are smaller than {size} and of another shape: as {keys}crop = \"none\" cuts nothing, they get a \
                 frame, which drawn images will show too; {keys}crop = \"center\" with {keys}upscale = true cuts and enlarges them \
                 instead, {anew}"
            ));
        }
        if enlarged > 0 {
            notices.push(format!(
                "{enlarged} of {all} are smaller than {size} and are enlarged, which drawn images will show; {anew}, \
                 {keys}upscale = false keeps those as they are that are smaller in both directions, in a frame"
            ));
        }
        if !self.ignored.is_empty() {
            let ignored: usize = self.ignored.values().sum();
            let kinds: Vec<_> = self.ignored.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
            notices.push(format!(
                "{ignored} of {all} have a colour profile that is not used, so their colours are taken as sRGB: {}",
                kinds.join(", ")
            ));
        }
        let lost = self.lost / self.images.max(1) as f64;
        if lost > MUCH {
            let percent = lost * 100.0;
            let why = if image_size.is_square() {
                "to make them square".to_owned()
            } else {
                format!("to give them the shape of {size}")
            };
            notices.push(format!(
                "of {all} {percent:.0} % are cut off on average {why}; {keys}fit = \"pad\" keeps all of an image, {anew}"
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

    const FRAMES: Fitting = Fitting { fit: Fit::Crop, upscale: false, background: Background::WhiteAndBlack };

    fn notices(sizes: &[(u32, u32)], fitting: Fitting) -> Vec<String> {
        notices_at(ImageSize::square(32), sizes, fitting)
    }

    fn notices_at(image_size: ImageSize, sizes: &[(u32, u32)], fitting: Fitting) -> Vec<String> {
        notices_cutting(Crop::Center, image_size, sizes, fitting)
    }

    fn notices_cutting(crop: Crop, image_size: ImageSize, sizes: &[(u32, u32)], fitting: Fitting) -> Vec<String> {
        let mut all = Fitted::default();
        for &size in sizes {
            let mut one = Fitted::default();
            one.add(size, image_size, Fate::of(size, image_size, crop, fitting));
            all.merge(&one);
        }
        all.notices(image_size)
    }

    #[test]
    fn frames_are_said_where_only_some_images_get_one() {
        let said = notices(&[(20, 20), (64, 64), (32, 20)], FRAMES);
        assert!(said.len() == 1 && said[0].starts_with("2 of the first 3 images are smaller"), "{said:?}");
        assert!(notices(&[(28, 28); 5], FRAMES).is_empty());
    }

    #[test]
    fn images_that_are_enlarged_are_said() {
        let said = notices(&[(33, 20), (64, 64), (32, 20)], FRAMES);
        assert!(
            said[0].starts_with("1 of the first 3 images are smaller than data.image_size = 32 and get"),
            "{said:?}"
        );
        assert!(
            said[1].starts_with("1 of the first 3 images are smaller than data.image_size = 32 and are enlarged"),
            "{said:?}"
        );
        for (fit, enlarged) in [(Fit::Crop, "2 of"), (Fit::Stretch, "2 of"), (Fit::Pad, "1 of")] {
            let said = notices(&[(33, 20), (64, 64), (20, 20)], Fitting { fit, ..Fitting::default() });
            assert!(
                said.len() == 1 && said[0].starts_with(enlarged) && said[0].contains("enlarged"),
                "{fit:?}: {said:?}"
            );
        }
        assert!(notices(&[(64, 64), (32, 32)], Fitting::default()).is_empty());
    }

    #[test]
    fn where_nothing_may_be_cut_small_images_of_another_shape_are_said_to_get_a_frame() {
        let size = ImageSize::square(32);
        for fitting in [Fitting::default(), FRAMES] {
            let said = notices_cutting(Crop::None, size, &[(10, 30); 3], fitting);
            assert!(said.len() == 1 && said[0].contains("3 of the first 3 images are smaller"), "{said:?}");
            assert!(said[0].contains("they get a frame") && said[0].contains("data.crop = \"none\""), "{said:?}");
        }
        // Of the network's shape: enlarged, or in the frame that all of them were meant to have.
        let said = notices_cutting(Crop::None, size, &[(16, 16); 3], Fitting::default());
        assert!(said.len() == 1 && said[0].contains("are enlarged"), "{said:?}");
        assert!(notices_cutting(Crop::None, size, &[(16, 16); 3], FRAMES).is_empty());
        assert_eq!(Fate::of((64, 64), size, Crop::None, Fitting::default()), Fate::Refused);
    }

    #[test]
    fn a_large_cut_is_said_with_its_share() {
        let said = notices(&[(40, 80), (80, 40)], Fitting::default());
        assert!(said.len() == 1 && said[0].contains("50 % are cut off on average"), "{said:?}");
        assert!(notices(&[(40, 80)], Fitting { fit: Fit::Pad, ..Fitting::default() }).is_empty());
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

    #[test]
    fn what_is_said_of_a_network_that_is_not_square_counts_its_own_shape() {
        let wide = ImageSize { height: 48, width: 80 };
        assert!(notices_at(wide, &[(160, 96), (80, 48)], Fitting::default()).is_empty());
        let said = notices_at(wide, &[(480, 800)], Fitting::default());
        let what = "64 % are cut off on average to give them the shape of data.image_size = [48, 80];";
        assert!(said.len() == 1 && said[0].contains(what), "{said:?}");
        let framed = notices_at(wide, &[(80, 40), (160, 96)], FRAMES);
        assert!(framed.len() == 1 && framed[0].starts_with("1 of the first 2 images are smaller"), "{framed:?}");
    }
}
