#![allow(clippy::unwrap_used)]
use image::{GrayImage, Luma, Rgb, Rgba};

use super::*;
use crate::fitting::{Background, Fit};
use crate::testing::{encode, gradient};

/// Smaller images keep their size.
const FRAMED: Fitting = Fitting { fit: Fit::Crop, upscale: false, background: Background::WhiteAndBlack };

fn transform(side: usize, channels: usize, crop: Crop, flip: bool) -> Transform {
    Transform::new(7, ImageSize::square(side), channels, crop, FRAMED, flip).unwrap()
}

/// Within the usual limits.
fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    super::decode(bytes, ImageLimits::default())
}

/// An image as if it had been decoded from a file without a profile.
fn plain(image: DynamicImage) -> Decoded {
    Decoded { image, format: "png", colours: Colours::Srgb }
}

fn pixels(transform: &Transform, image: DynamicImage, position: u64) -> Vec<u8> {
    let mut out = vec![99; transform.image_len()];
    transform.apply(plain(image), "sample", position, &mut out).unwrap();
    out
}

const FORMATS: [(ImageFormat, &str); 6] = [
    (ImageFormat::Png, "png"),
    (ImageFormat::Jpeg, "jpeg"),
    (ImageFormat::WebP, "webp"),
    (ImageFormat::Gif, "gif"),
    (ImageFormat::Bmp, "bmp"),
    (ImageFormat::Tiff, "tiff"),
];

#[test]
fn each_format_is_decoded_and_named() {
    for (format, name) in FORMATS {
        let decoded = decode(&encode(&gradient(9, 7), format)).unwrap();
        assert_eq!((decoded.format, decoded.image.width(), decoded.image.height()), (name, 9, 7));
    }
}

#[test]
fn a_photo_taken_upright_is_turned_upright() {
    let jpeg = encode(&gradient(9, 7), ImageFormat::Jpeg);
    // An EXIF segment with one entry: orientation (0x0112) = 6, a quarter turn, as 16 bits and as 32.
    let short = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
    let long = [0x01, 0x12, 0, 4, 0, 0, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0];
    let none = [0x01, 0x12, 0, 4, 0, 0, 0, 1, 0, 0, 1, 6, 0, 0, 0, 0];
    for (entry, size) in [(short, (7, 9)), (long, (7, 9)), (none, (9, 7))] {
        let exif = [b"Exif\0\0MM\0*\0\0\0\x08\0\x01".as_slice(), &entry].concat();
        let length = (exif.len() as u16 + 2).to_be_bytes();
        let turned = [&jpeg[..2], &[0xFF, 0xE1], &length, &exif, &jpeg[2..]].concat();
        let image = decode(&turned).unwrap().image;
        assert_eq!((image.width(), image.height()), size);
    }
    for hostile in [b"".as_slice(), b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01"] {
        assert_eq!(long_orientation(hostile), None);
    }
}

#[test]
fn a_film_behind_a_photo_is_no_damage_and_a_cut_photo_with_a_thumbnail_is() {
    let jpeg = encode(&gradient(40, 40), ImageFormat::Jpeg);
    // Bytes of a film in which a scan seems to begin and never ends.
    let film = [jpeg.as_slice(), b"\0\0\0\x18ftypmp42\xFF\xDA\x12\x34\xFF\xC0\xFF"].concat();
    assert!(decode(&film).is_ok());
    let cut = &jpeg[..jpeg.len() * 3 / 4];
    // A whole JPEG inside an application segment of one that is cut.
    let thumbnail = encode(&gradient(8, 8), ImageFormat::Jpeg);
    let length = (thumbnail.len() as u16 + 2).to_be_bytes();
    let with_thumbnail = [&cut[..2], &[0xFF, 0xE2], &length, &thumbnail, &cut[2..]].concat();
    assert_eq!(decode(&with_thumbnail).unwrap_err(), "the JPEG data is truncated");
    assert_eq!(decode(&[cut, &[0; 4096]].concat()).unwrap_err(), "the JPEG data is truncated");
}

#[test]
fn inks_become_the_colours_they_print() {
    // 8x8 of (230, 210, 180), written by Pillow: as inks, and as inks stored like YCbCr (Adobe's transform 2).
    for jpeg in [include_bytes!("fixtures/cmyk.jpg").as_slice(), include_bytes!("fixtures/ycck.jpg")] {
        let image = decode(jpeg).unwrap().image.into_rgb8();
        let worst =
            image.as_raw().chunks(3).flat_map(|p| p.iter().zip([230u8, 210, 180])).map(|(a, b)| a.abs_diff(b)).max();
        assert!(worst.unwrap() <= 3, "{worst:?}: {:?}", image.get_pixel(4, 4));
    }
}

#[test]
fn palettes_with_transparency_and_16_bits_are_read() {
    // A palette of 2 colours, red opaque and green transparent, two pixels wide.
    let image = decode(include_bytes!("fixtures/palette.png")).unwrap().image;
    assert_eq!(pixels(&transform(2, 3, Crop::Center, false), image, 0)[..6], [255, 0, 0, 255, 255, 255]);
    let deep = image::ImageBuffer::from_fn(2, 1, |x, _| Luma([if x == 0 { 0u16 } else { 0x80FF }]));
    let image = decode(&encode(&DynamicImage::ImageLuma16(deep), ImageFormat::Png)).unwrap().image;
    assert_eq!(image.into_luma8().into_raw(), [0, 0x80]);
}

#[test]
fn of_an_animation_the_first_frame_is_read() {
    let mut gif = Vec::new();
    let frames = [10u8, 200].map(|v| image::Frame::new(image::RgbaImage::from_pixel(4, 4, Rgba([v, v, v, 255]))));
    image::codecs::gif::GifEncoder::new(&mut gif).encode_frames(frames).unwrap();
    let first = decode(&gif).unwrap().image.into_luma8().into_raw();
    assert!(first.iter().all(|&value| value.abs_diff(10) < 4), "{first:?}");
}

#[test]
fn files_cut_anywhere_are_refused_without_a_panic() {
    for (format, name) in FORMATS {
        let bytes = encode(&gradient(40, 40), format);
        for len in 0..bytes.len().min(bytes.len() * 3 / 4) {
            assert!(decode(&bytes[..len]).is_err(), "{name} cut to {len} of {} bytes", bytes.len());
        }
        (bytes.len() * 3 / 4..bytes.len()).for_each(|len| drop(decode(&bytes[..len])));
    }
}

#[test]
fn damaged_bytes_never_panic() {
    for (format, _) in FORMATS {
        let bytes = encode(&gradient(24, 24), format);
        for at in (0..bytes.len()).step_by(3) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x5A;
            drop(decode(&damaged));
        }
    }
}

#[test]
fn a_header_that_claims_a_giant_picture_is_refused() {
    let mut png = encode(&gradient(8, 8), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // IHDR: 65,536 x 65,536
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let reason = decode(&png).unwrap_err();
    assert!(reason.contains("data.max_pixels = 268435456") || reason.contains("data.max_bytes"), "{reason}");
}

#[test]
fn what_an_image_may_take_is_a_setting_that_its_refusal_names() {
    for (format, name) in FORMATS {
        let bytes = encode(&gradient(30, 20), format);
        let limits = |max_pixels, max_bytes| super::decode(&bytes, ImageLimits { max_pixels, max_bytes });
        assert!(limits(600, 1 << 20).is_ok(), "{name}");
        let pixels = "30x20 are 600 pixels, more than data.max_pixels = 599 allows";
        assert_eq!(limits(599, 1 << 20).unwrap_err(), pixels, "{name}");
        let reason = limits(600, 500).unwrap_err();
        assert!(reason.contains("data.max_bytes = 500 allows"), "{name}: {reason}");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg()))
    })
}

#[test]
fn a_smaller_image_is_centred_on_black_and_not_resampled() {
    let image = DynamicImage::ImageLuma8(GrayImage::from_fn(28, 28, |x, y| Luma([(x * 7 + y) as u8 + 1])));
    let out = pixels(&transform(32, 1, Crop::Center, false), image, 0);
    assert_eq!(out[0], 0);
    assert_eq!(out[31 * 32 + 31], 0);
    assert_eq!(out[2 * 32 + 2], 1);
    assert_eq!(out[(2 + 5) * 32 + 2 + 3], 3 * 7 + 5 + 1);
    assert_eq!(out.iter().filter(|&&p| p != 0).count(), 28 * 28);
}

#[test]
fn the_exact_size_passes_untouched_under_every_crop() {
    let image = gradient(16, 16);
    for crop in [Crop::Center, Crop::Random, Crop::None] {
        let out = pixels(&transform(16, 3, crop, false), image.clone(), 4);
        assert_eq!(out, image.to_rgb8().into_raw());
    }
}

#[test]
fn a_larger_image_is_cut_to_its_middle_square_and_shrunk() {
    // Red, green, blue stripes of 40x40: the middle square is all green.
    let image = image::RgbImage::from_fn(120, 40, |x, _| {
        Rgb([if x < 40 { 255 } else { 0 }, if (40..80).contains(&x) { 255 } else { 0 }, if x >= 80 { 255 } else { 0 }])
    });
    let out = pixels(&transform(10, 3, Crop::Center, false), DynamicImage::ImageRgb8(image), 0);
    assert!(out.chunks(3).all(|p| p == [0, 255, 0]), "{:?}", &out[..9]);
}

#[test]
fn random_crops_depend_on_the_position_and_reach_both_ends() {
    let image = DynamicImage::ImageLuma8(GrayImage::from_fn(24, 8, |x, _| Luma([x as u8])));
    let transform = transform(8, 1, Crop::Random, false);
    let starts: Vec<u8> = (0..200).map(|p| pixels(&transform, image.clone(), p)[0]).collect();
    assert_eq!(starts, (0..200).map(|p| pixels(&transform, image.clone(), p)[0]).collect::<Vec<_>>());
    assert_eq!((starts.iter().min(), starts.iter().max()), (Some(&0), Some(&16)));
}

#[test]
fn no_crop_refuses_a_larger_image_by_name_and_key() {
    let mut out = [0; 64];
    let error = transform(8, 1, Crop::None, false).apply(plain(gradient(9, 8)), "cat.png", 0, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "cat.png: 9x8 pixels, but data.crop = \"none\" expects at most 8x8");
    assert!(error.help().is_some_and(|h| h.contains("data.crop")));
}

#[test]
fn no_crop_puts_a_small_image_of_another_shape_in_a_frame_though_others_are_enlarged() {
    let uncut = Transform::new(7, ImageSize::square(8), 1, Crop::None, Fitting::default(), false).unwrap();
    let light = |width, height| DynamicImage::ImageLuma8(GrayImage::from_pixel(width, height, Luma([200])));
    let filled = |image| pixels(&uncut, image, 0).iter().filter(|&&pixel| pixel == 200).count();
    assert_eq!((filled(light(4, 2)), filled(light(4, 4))), (8, 64));
}

#[test]
fn a_long_strip_costs_no_memory() {
    let out = pixels(&transform(256, 1, Crop::Center, false), DynamicImage::new_luma8(1, 16_000), 0);
    assert_eq!(out.len(), 256 * 256);
}

#[test]
fn transparency_becomes_white_before_and_after_resizing() {
    let image = image::RgbaImage::from_pixel(64, 64, Rgba([255, 0, 0, 0]));
    for size in [64, 16] {
        let out = pixels(&transform(size, 3, Crop::Center, false), DynamicImage::ImageRgba8(image.clone()), 0);
        assert!(out.iter().all(|&p| p == 255), "{size}");
    }
    let half = image::RgbaImage::from_pixel(4, 4, Rgba([255, 0, 0, 128]));
    let out = pixels(&transform(4, 3, Crop::Center, false), DynamicImage::ImageRgba8(half), 0);
    assert_eq!(out[..3], [255, 127, 127]);
}

#[test]
fn about_half_the_positions_are_mirrored() {
    let image = gradient(6, 6);
    let (plain, flipping) = (transform(6, 3, Crop::Center, false), transform(6, 3, Crop::Center, true));
    let (straight, mut mirrored) = (pixels(&plain, image.clone(), 0), pixels(&plain, image.clone(), 0));
    mirrored.chunks_exact_mut(18).for_each(|row| mirror(row, 3));
    assert_eq!(mirrored[..3], straight[15..18]);
    let flipped = (0..400)
        .filter(|&position| {
            let out = pixels(&flipping, image.clone(), position);
            assert!(out == straight || out == mirrored);
            out == mirrored
        })
        .count();
    assert!((150..250).contains(&flipped), "{flipped} of 400");
}

#[test]
fn impossible_settings_are_named() {
    let error = Transform::new(0, ImageSize::square(0), 3, Crop::Center, Fitting::default(), false).unwrap_err();
    assert_eq!(error.to_string(), "data.image_size = 0: expected 1 to 4096 pixels");
    let error = Transform::new(0, ImageSize::square(32), 4, Crop::Center, Fitting::default(), false).unwrap_err();
    assert_eq!(error.to_string(), "data.channels = 4: expected 1 (grey) or 3 (RGB)");
}

#[test]
fn both_sides_of_a_size_are_checked() {
    for (height, width, found) in [(0, 32, "[0, 32]"), (32, 4097, "[32, 4097]")] {
        let size = ImageSize { height, width };
        let error = Transform::new(0, size, 3, Crop::Center, Fitting::default(), false).unwrap_err();
        assert_eq!(error.to_string(), format!("data.image_size = {found}: expected 1 to 4096 pixels"));
    }
}

/// A transform to 12x8, grey.
fn wide(fit: Fit, crop: Crop, flip: bool) -> Transform {
    let size = ImageSize { height: 8, width: 12 };
    Transform::new(7, size, 1, crop, Fitting { fit, ..FRAMED }, flip).unwrap()
}

/// An image whose left half is 60 and whose right half is 200.
fn halves(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageLuma8(GrayImage::from_fn(width, height, |x, _| Luma([if x < width / 2 { 60 } else { 200 }])))
}

#[test]
fn a_network_that_is_not_square_sees_its_own_shape() {
    let rows = |out: &[u8]| -> Vec<Vec<u8>> { out.chunks_exact(12).map(<[u8]>::to_vec).collect() };
    let (row, bar) = ([[60; 6], [200; 6]].concat(), vec![0; 12]);
    for image in [halves(12, 8), halves(12, 40)] {
        // Of the second the middle 12x8 is kept, which needs no resizing.
        assert_eq!(rows(&pixels(&wide(Fit::Crop, Crop::Center, false), image, 0)), vec![row.clone(); 8]);
    }
    assert_eq!(rows(&pixels(&wide(Fit::Crop, Crop::None, false), halves(12, 8), 0)), vec![row.clone(); 8]);
    // 24x8 to 12x4, between bars; a smaller image in the middle.
    let padded = rows(&pixels(&wide(Fit::Pad, Crop::Center, false), halves(24, 8), 0));
    assert_eq!((&padded[1], padded[2][0], padded[5][11], &padded[6]), (&bar, 60, 200, &bar));
    let framed = rows(&pixels(&wide(Fit::Crop, Crop::Center, false), halves(4, 2), 0));
    assert_eq!(framed[3], [0, 0, 0, 0, 60, 60, 200, 200, 0, 0, 0, 0]);
    assert_eq!((&framed[2], &framed[5], framed.len()), (&bar, &bar, 8));
    let mirrored: Vec<u8> = row.iter().rev().copied().collect();
    let flipping = wide(Fit::Crop, Crop::Center, true);
    let seen: Vec<_> = (0..20).map(|position| rows(&pixels(&flipping, halves(12, 8), position))[0].clone()).collect();
    assert!(seen.contains(&row) && seen.contains(&mirrored));
}

#[test]
fn a_random_cut_for_a_network_that_is_not_square_stays_in_the_image() {
    let image = DynamicImage::ImageLuma8(GrayImage::from_fn(12, 30, |_, y| Luma([y as u8])));
    let random = wide(Fit::Crop, Crop::Random, false);
    let tops: Vec<u8> = (0..400).map(|position| pixels(&random, image.clone(), position)[0]).collect();
    assert_eq!((tops.iter().min(), tops.iter().max()), (Some(&0), Some(&22)));
    let error = wide(Fit::Crop, Crop::None, false).apply(plain(image), "tall.png", 0, &mut [0; 96]).unwrap_err();
    assert_eq!(error.to_string(), "tall.png: 12x30 pixels, but data.crop = \"none\" expects at most 12x8");
}

/// A transform to 8x8 RGB.
fn fitting(fit: Fit, upscale: bool, background: Background) -> Transform {
    let fitting = Fitting { fit, upscale, background };
    Transform::new(7, ImageSize::square(8), 3, Crop::Center, fitting, false).unwrap()
}

#[test]
fn a_padded_image_keeps_its_proportions_between_bars_of_the_background() {
    let red = DynamicImage::ImageRgb8(RgbImage::from_pixel(40, 20, Rgb([200, 0, 0])));
    let out = pixels(&fitting(Fit::Pad, false, Background::Colour([1, 2, 3])), red.clone(), 0);
    let rows: Vec<_> = out.chunks_exact(8 * 3).map(|row| row[..3].to_vec()).collect();
    let (bar, image) = (vec![1, 2, 3], vec![200, 0, 0]);
    assert_eq!(rows, [&bar, &bar, &image, &image, &image, &image, &bar, &bar].map(Clone::clone));
    let stretched = pixels(&fitting(Fit::Stretch, false, Background::default()), red, 0);
    assert!(stretched.chunks_exact(3).all(|pixel| pixel == [200, 0, 0]));
}

#[test]
fn a_small_image_is_enlarged_only_where_asked_for() {
    let small = DynamicImage::ImageRgb8(RgbImage::from_pixel(4, 4, Rgb([0, 90, 0])));
    let filled = |upscale| {
        let out = pixels(&fitting(Fit::Crop, upscale, Background::default()), small.clone(), 0);
        out.chunks_exact(3).filter(|pixel| *pixel == [0, 90, 0]).count()
    };
    assert_eq!((filled(false), filled(true)), (16, 64));
}

#[test]
fn transparency_lies_on_the_background() {
    let clear = DynamicImage::ImageRgba8(image::RgbaImage::from_pixel(8, 8, Rgba([9, 9, 9, 0])));
    for (background, want) in [(Background::default(), [255; 3]), (Background::Colour([10, 20, 30]), [10, 20, 30])] {
        let out = pixels(&fitting(Fit::Crop, false, background), clear.clone(), 0);
        assert!(out.chunks_exact(3).all(|pixel| pixel == want), "{background:?}");
    }
}
