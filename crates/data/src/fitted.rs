//! What fitting did to the images so far, for a person who did not expect it.

use std::collections::BTreeMap;

use ddpm_kernels::image_size::ImageSize;

use crate::fitting::Fate;

/// A cut of this share, on average, is worth a word: a 4:3 photo loses a quarter.
const MUCH: f64 = 0.2;

/// How what fitting did is told, to who trains or to who packs.
struct Words {
    all: String,
    size: String,
    /// What stands before the names of the settings.
    keys: &'static str,
    /// Where they may be others.
    anew: &'static str,
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
    use super::*;
    use crate::fitting::{Background, Crop, Fit, Fitting};

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
