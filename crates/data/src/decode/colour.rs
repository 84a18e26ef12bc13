//! Colours as the profile in a file means them, in sRGB, which the network learns and screens show.
//!
//! A profile (ICC.1) says which colour a pixel's numbers stand for. Most are sRGB's own and change nothing; a photo of a phone is
//! in Display P3, a scan perhaps in Adobe RGB, and their numbers taken as sRGB look pale. moxcms reads the profiles; what it
//! cannot use (inks, a profile for other channels than the image has, damage) is counted and named, and the numbers are taken as
//! they are. Images are converted after they were resized, when few pixels are left; only those with transparency before,
//! as the background that they are laid on is in sRGB.
//!
//! Photos share their profiles, and preparing one costs more than converting a small image, so the last ones are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use blake3::Hash;
use image::{ColorType, DynamicImage};
use moxcms::{
    ColorProfile, DataColorSpace, Layout, Transform8BitExecutor, Transform16BitExecutor, TransformExecutor,
    TransformOptions,
};

use crate::error::guard;

/// Profiles that are kept: those of a few cameras and programs, times the kinds of images they come with.
const KEPT: usize = 32;
/// A profile that moves no colour by more, of 255, is sRGB's, perhaps written with rounded numbers.
const ROUNDING: u8 = 2;

/// What becomes of an image's colours.
#[derive(Clone, Default)]
pub(crate) enum Colours {
    /// They are in sRGB, or nothing is said.
    #[default]
    Srgb,
    /// They are converted, 8 bits each.
    Convert8(Arc<Transform8BitExecutor>),
    /// They are converted, 16 bits each.
    Convert16(Arc<Transform16BitExecutor>),
    /// There is a profile that cannot be used: which.
    Ignored(&'static str),
}

impl std::fmt::Debug for Colours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Srgb => "Srgb",
            Self::Convert8(_) => "Convert8",
            Self::Convert16(_) => "Convert16",
            Self::Ignored(what) => what,
        })
    }
}

impl Colours {
    /// What a profile means for an image of this type.
    pub(crate) fn of(profile: &[u8], color: ColorType) -> Self {
        static KNOWN: Mutex<VecDeque<((Hash, ColorType), Colours)>> = Mutex::new(VecDeque::new());
        let key = (blake3::hash(profile), color);
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, colours)) = known().iter().find(|(known, _)| *known == key) {
            return colours.clone();
        }
        // Read without the lock: others need not wait. A parser that panics has met a damaged profile, not a damaged picture.
        let colours = guard(|| Ok(Self::read(profile, color))).unwrap_or(Self::Ignored("damaged"));
        let mut known = known();
        known.truncate(KEPT - 1);
        known.push_front((key, colours.clone()));
        colours
    }

    fn read(profile: &[u8], color: ColorType) -> Self {
        let Ok(profile) = ColorProfile::new_from_slice(profile) else { return Self::Ignored("damaged") };
        let of_colours = match profile.color_space {
            DataColorSpace::Rgb => true,
            DataColorSpace::Gray => false,
            DataColorSpace::Cmyk => return Self::Ignored("CMYK"),
            _ => return Self::Ignored("neither RGB, grey nor CMYK"),
        };
        let srgb = ColorProfile::new_srgb();
        // Float rather than fixed point, which would round once more.
        let options = TransformOptions { prefer_fixed_point: false, ..TransformOptions::default() };
        let layout = layout(of_colours, color.has_alpha());
        let Ok(convert) = profile.create_transform_8bit(layout, &srgb, layout, options) else {
            return Self::Ignored("of a kind that cannot be used");
        };
        match (changes_nothing(&*convert, layout), of_colours == color.has_color()) {
            // Programs attach sRGB to grey images too, where it says nothing.
            (true, _) => Self::Srgb,
            (false, false) => Self::Ignored("for other channels than the image has"),
            (false, true) => match color.bits_per_pixel() / u16::from(color.channel_count()) {
                8 => Self::Convert8(convert),
                16 => profile
                    .create_transform_16bit(layout, &srgb, layout, options)
                    .map_or(Self::Ignored("of a kind that cannot be used"), Self::Convert16),
                _ => Self::Ignored("of an image in floating point"),
            },
        }
    }

    /// The image in sRGB.
    pub(crate) fn apply(&self, mut image: DynamicImage) -> DynamicImage {
        match self {
            Self::Srgb | Self::Ignored(_) => {}
            Self::Convert8(convert) => match &mut image {
                DynamicImage::ImageLuma8(pixels) => converted(&**convert, pixels),
                DynamicImage::ImageLumaA8(pixels) => converted(&**convert, pixels),
                DynamicImage::ImageRgb8(pixels) => converted(&**convert, pixels),
                DynamicImage::ImageRgba8(pixels) => converted(&**convert, pixels),
                _ => {}
            },
            Self::Convert16(convert) => match &mut image {
                DynamicImage::ImageLuma16(pixels) => converted(&**convert, pixels),
                DynamicImage::ImageLumaA16(pixels) => converted(&**convert, pixels),
                DynamicImage::ImageRgb16(pixels) => converted(&**convert, pixels),
                DynamicImage::ImageRgba16(pixels) => converted(&**convert, pixels),
                _ => {}
            },
        }
        image
    }
}

fn layout(of_colours: bool, has_alpha: bool) -> Layout {
    match (of_colours, has_alpha) {
        (false, false) => Layout::Gray,
        (false, true) => Layout::GrayAlpha,
        (true, false) => Layout::Rgb,
        (true, true) => Layout::Rgba,
    }
}

/// Converts numbers in place. An error leaves them; there is none where they are whole pixels.
fn converted<T: Copy + Default>(convert: &dyn TransformExecutor<T>, numbers: &mut [T]) {
    let mut converted = numbers.to_vec();
    if convert.transform(numbers, &mut converted).is_ok() {
        numbers.copy_from_slice(&converted);
    }
}

/// Whether a conversion gives back all of some evenly spaced colours.
fn changes_nothing(convert: &Transform8BitExecutor, layout: Layout) -> bool {
    const STEPS: [u8; 6] = [0, 51, 102, 153, 204, 255];
    let mut before = Vec::new();
    for (red, green, blue) in STEPS.iter().flat_map(|r| STEPS.iter().flat_map(move |g| STEPS.map(|b| (*r, *g, b)))) {
        match layout {
            Layout::Gray => before.push(blue),
            Layout::GrayAlpha => before.extend([blue, 255]),
            Layout::Rgb => before.extend([red, green, blue]),
            _ => before.extend([red, green, blue, 255]),
        }
    }
    let mut after = before.clone();
    converted(convert, &mut after);
    before.iter().zip(&after).all(|(before, after)| before.abs_diff(*after) <= ROUNDING)
}

#[cfg(test)]
mod tests;
