//! Against what Little CMS makes of the same images (`scripts/make-colour-fixtures.py`).
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{ImageDecoder, ImageEncoder, ImageFormat, ImageReader};

use super::*;
use crate::decode::{Decoded, decode};
use crate::image_limits::ImageLimits;

macro_rules! fixture {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../fixtures/colour/", $name, ".png")).as_slice(),
            include_bytes!(concat!("../fixtures/colour/", $name, "-srgb.png")).as_slice(),
        )
    };
}

fn read(bytes: &[u8]) -> Decoded {
    decode(bytes, ImageLimits::default()).unwrap()
}

/// An image in sRGB.
fn shown(bytes: &[u8]) -> DynamicImage {
    let Decoded { image, colours, .. } = read(bytes);
    colours.apply(image)
}

fn profile_of(png: &[u8]) -> Vec<u8> {
    let mut decoder = ImageReader::with_format(Cursor::new(png), ImageFormat::Png).into_decoder().unwrap();
    decoder.icc_profile().unwrap().unwrap()
}

/// The largest and the mean difference of two images' 8 bits.
fn difference(a: &DynamicImage, b: &DynamicImage) -> (u8, f64) {
    let (a, b) = (a.to_rgb8().into_raw(), b.to_rgb8().into_raw());
    assert_eq!(a.len(), b.len());
    let all: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).collect();
    (all.iter().copied().max().unwrap(), all.iter().map(|&d| f64::from(d)).sum::<f64>() / all.len() as f64)
}

#[test]
fn profiles_mean_what_little_cms_takes_them_for() {
    for (name, ours, theirs) in [fixture!("display-p3"), fixture!("adobe"), fixture!("rec2020"), fixture!("grey")] {
        let (image, want) = (shown(ours), shown(theirs));
        let (untouched, _) = difference(&read(ours).image, &want);
        let (most, mean) = difference(&image, &want);
        // Both compute with tables and round to 8 bits; in the dark a step of a table is a step of the result.
        assert!(untouched > 10 && most <= 2 && mean < 0.5, "{name}: untouched {untouched}, now {most}, {mean:.3}");
    }
}

#[test]
fn srgbs_own_profile_changes_no_bit() {
    let (_, ours, _) = fixture!("srgb");
    let decoded = read(ours);
    assert!(matches!(decoded.colours, Colours::Srgb), "{:?}", decoded.colours);
    let srgb = profile_of(ours);
    assert!(matches!(Colours::of(&srgb, ColorType::L8), Colours::Srgb), "also on grey images");
    assert!(matches!(Colours::of(&srgb, ColorType::Rgba16), Colours::Srgb));
}

#[test]
fn images_with_16_bits_and_with_alpha_get_the_same_colours() {
    let (_, p3, _) = fixture!("display-p3");
    let (profile, image, want) = (profile_of(p3), read(p3).image, shown(p3));
    let deep = DynamicImage::ImageRgb16(image.to_rgb16());
    let clear = DynamicImage::ImageRgba8(image.to_rgba8());
    for image in [deep, clear] {
        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_icc_profile(profile.clone()).unwrap();
        encoder.write_image(image.as_bytes(), image.width(), image.height(), image.color().into()).unwrap();
        let (most, _) = difference(&shown(&png), &want);
        assert!(most <= 1, "{:?}: {most}", image.color());
    }
}

#[test]
fn what_cannot_be_used_is_named_and_leaves_the_colours() {
    let inks = include_bytes!("../fixtures/colour/cmyk.jpg");
    assert!(matches!(read(inks).colours, Colours::Ignored("CMYK")));
    let (_, p3, _) = fixture!("display-p3");
    let profile = profile_of(p3);
    assert!(matches!(Colours::of(&profile, ColorType::L8), Colours::Ignored("for other channels than the image has")));
    for damaged in [&profile[..100], &profile[..profile.len() - 60], b"", b"no profile at all"] {
        let colours = Colours::of(damaged, ColorType::Rgb8);
        assert!(matches!(colours, Colours::Ignored(_)), "{} bytes: {colours:?}", damaged.len());
        let image = read(p3).image;
        assert_eq!(colours.apply(image.clone()), image);
    }
}

#[test]
fn a_damaged_profile_never_panics() {
    let (_, p3, _) = fixture!("display-p3");
    let profile = profile_of(p3);
    for at in 0..profile.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut damaged = profile.clone();
            damaged[at] ^= flip;
            drop(Colours::of(&damaged, ColorType::Rgb8).apply(read(p3).image));
        }
    }
}
