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
fn the_profile_of_a_tiff_counts_though_it_is_larger_than_the_image() {
    let (_, p3, _) = fixture!("display-p3");
    let profile = profile_of(p3);
    let image = DynamicImage::from(image::RgbImage::from_pixel(2, 2, image::Rgb([200, 40, 90])));
    let mut tiff = Cursor::new(Vec::new());
    image.write_to(&mut tiff, ImageFormat::Tiff).unwrap();
    let tiff = with_profile(tiff.into_inner(), &profile);
    let decoded = read(&tiff);
    assert!(profile.len() > decoded.image.as_bytes().len() && matches!(decoded.colours, Colours::Convert8(_)));
    let wanted = Colours::of(&profile, ColorType::Rgb8).apply(image);
    assert_eq!(shown(&tiff), wanted);
}

/// A TIFF in little-endian order with a profile: its directory again, with one entry more, at the end.
fn with_profile(mut tiff: Vec<u8>, profile: &[u8]) -> Vec<u8> {
    assert!(tiff.starts_with(b"II*\0"));
    let long = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap());
    let directory = long(&tiff[4..]) as usize;
    let entries = usize::from(u16::from_le_bytes([tiff[directory], tiff[directory + 1]]));
    let given = tiff[directory + 2..][..12 * entries].to_vec();
    let at = tiff.len() as u32;
    tiff.extend(profile);
    let again = tiff.len() as u32;
    tiff.extend((entries as u16 + 1).to_le_bytes());
    tiff.extend(given);
    // The tag, whose number is above all others here, and UNDEFINED bytes.
    tiff.extend([0x8773_u16, 7].map(u16::to_le_bytes).concat());
    tiff.extend([profile.len() as u32, at, 0].map(u32::to_le_bytes).concat());
    tiff[4..8].copy_from_slice(&again.to_le_bytes());
    tiff
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
