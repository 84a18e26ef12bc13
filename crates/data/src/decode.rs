//! Bytes to pixels: decode, flatten, crop, resize, pad, flip. `[H, W, C]` u8, the size the network trains at.
//!
//! What becomes of an image of another size is [`Fate`]'s to say. One that keeps its size is centred on the background; one that is
//! cut is cut first and resized then, with Lanczos. Resizing first would give the same, but so the work and memory stay bounded for
//! a 1x10000 strip.
//!
//! Transparency is laid on the background. EXIF orientation is applied, so that photos train upright.
//! The crop's place and the flip are drawn at the sample's position in the run (images seen before it): see
//! `ddpm_kernels::philox`.

mod colour;

use std::io::Cursor;

use ddpm_kernels::image_size::ImageSize;
use ddpm_kernels::philox::{Philox, Purpose};
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits, RgbImage};

pub(crate) use self::colour::Colours;
use crate::error::{DataError, guard};
use crate::fitted::Fitted;
use crate::fitting::{Crop, Fate, Fitting};
use crate::image_limits::ImageLimits;
use crate::resample;

/// The largest training size; far beyond what a pixel-space diffusion model is trained at.
pub const MAX_IMAGE_SIZE: usize = 4096;

/// A decoded file, before it is fitted to the network.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) image: DynamicImage,
    pub(crate) format: &'static str,
    pub(crate) colours: Colours,
}

/// Decodes an image file's bytes (the first frame of an animation); the error says why it cannot be.
pub(crate) fn decode(bytes: &[u8], limits: ImageLimits) -> Result<Decoded, String> {
    if bytes.is_empty() {
        return Err("the image has no bytes".into());
    }
    guard(|| {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
        let format = reader.format().ok_or("not a PNG, JPEG, WebP, GIF, BMP or TIFF image")?;
        if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
            return Err("the JPEG data is truncated".into());
        }
        let (image, colours) = decode_frame(bytes, reader, limits)?;
        Ok(Decoded { image, format: format_name(format), colours })
    })
}

fn decode_frame(
    bytes: &[u8],
    mut reader: ImageReader<Cursor<&[u8]>>,
    limits: ImageLimits,
) -> Result<(DynamicImage, Colours), String> {
    let reason = |error| match error {
        ImageError::Limits(_) => limits.exceeded(),
        other => other.to_string(),
    };
    let mut of_decoder = Limits::no_limits();
    of_decoder.max_alloc = Some(limits.max_bytes);
    reader.limits(of_decoder);
    let is_tiff = reader.format() == Some(ImageFormat::Tiff);
    let mut decoder = reader.into_decoder().map_err(reason)?;
    // Not every decoder counts the buffer it is given, so its size is checked before it is allocated.
    limits.check_image(decoder.dimensions(), decoder.total_bytes())?;
    // Damaged EXIF data is no reason to lose the picture.
    let orientation = match decoder.orientation().unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => decoder.exif_metadata().ok().flatten().and_then(|exif| long_orientation(&exif)),
        other => Some(other),
    };
    let profile = if is_tiff { profile_of_tiff(bytes) } else { decoder.icc_profile() };
    let mut image = DynamicImage::from_decoder(decoder).map_err(reason)?;
    image.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    let colours = match profile {
        Ok(Some(profile)) => Colours::of(&profile, image.color()),
        Ok(None) => Colours::Srgb,
        Err(_) => Colours::Ignored("damaged"),
    };
    Ok((image, colours))
}

/// The profile in a TIFF. A decoder with limits allows a profile as many bytes as the image has, of which a small image has too
/// few, and says nothing. One without allows it 256 MiB, and fails at the end of the file where less is there.
fn profile_of_tiff(bytes: &[u8]) -> ImageResult<Option<Vec<u8>>> {
    TiffDecoder::new(Cursor::new(bytes))?.icc_profile()
}

/// The orientation of EXIF data that holds it as a number of 32 bits. The standard says 16, which the decoders read; some cameras
/// and editors write 32, which other programs follow.
fn long_orientation(exif: &[u8]) -> Option<Orientation> {
    const ORIENTATION: u16 = 0x0112;
    const LONG: u16 = 4;
    let little = exif.starts_with(b"II");
    let short = |at: usize| {
        let bytes = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let long = |at: usize| {
        let bytes = exif.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let directory = long(4)? as usize;
    let entries = usize::from(short(directory)?);
    // Entries of 12 bytes: tag, type, count, value.
    let mut entries = (0..entries).filter_map(|entry| directory.checked_add(2 + 12 * entry));
    let entry = entries.find(|&at| short(at) == Some(ORIENTATION) && short(at + 2) == Some(LONG))?;
    Orientation::from_exif(u8::try_from(long(entry + 8)?).ok()?)
}

/// The JPEG decoder fills what is missing with grey and reports nothing, so a cut file is recognised here: behind a scan
/// there must be an end-of-image marker. Walked from the start, segment by segment: a thumbnail inside a segment has
/// markers of its own, and some phones append a film, in whose bytes any marker may occur by chance.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let (mut at, mut scanned) = (0, false);
    // Everything that is no marker, above all the coded pixels, is skipped.
    while let Some(marker) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) {
        at += marker;
        match bytes.get(at + 1) {
            // A fill byte.
            Some(0xFF) => at += 1,
            // A coded 0xFF, and markers that stand alone.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            Some(0xD9) => return scanned,
            Some(&kind) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                scanned |= kind == 0xDA;
            }
            None => return false,
        }
    }
    false
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "jpeg",
        other => other.extensions_str().first().copied().unwrap_or("other"),
    }
}

/// How decoded images become the network's input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transform {
    size: ImageSize,
    channels: usize,
    crop: Crop,
    fitting: Fitting,
    flip: bool,
    crop_draws: Philox,
    flip_draws: Philox,
}

impl Transform {
    /// Checks the settings; an error names the key.
    pub(crate) fn new(
        seed: u64,
        size: ImageSize,
        channels: usize,
        crop: Crop,
        fitting: Fitting,
        flip: bool,
    ) -> Result<Self, DataError> {
        if !size.sides().iter().all(|side| (1..=MAX_IMAGE_SIZE).contains(side)) {
            let (key, found) = ("data.image_size", size.to_string());
            return Err(DataError::Setting { key, found, expected: "1 to 4096 pixels" });
        }
        if !matches!(channels, 1 | 3) {
            let (key, found) = ("data.channels", channels.to_string());
            return Err(DataError::Setting { key, found, expected: "1 (grey) or 3 (RGB)" });
        }
        let (crop_draws, flip_draws) = (Philox::new(seed, Purpose::Crop), Philox::new(seed, Purpose::Flip));
        Ok(Self { size, channels, crop, fitting, flip, crop_draws, flip_draws })
    }

    /// Bytes of one image, `H * W * C`.
    pub(crate) fn image_len(&self) -> usize {
        self.size.pixels() * self.channels
    }

    /// Fits an image to the network and writes it to `out`, `[H, W, C]`, `image_len()` bytes.
    pub(crate) fn apply(&self, decoded: Decoded, sample: &str, position: u64, out: &mut [u8]) -> Result<(), DataError> {
        let Decoded { image, colours, .. } = decoded;
        let fitted = if image.has_alpha() {
            // The background that it is laid on is in sRGB.
            self.fit(colours.apply(image), sample, position)?
        } else {
            colours.apply(self.fit(image, sample, position)?)
        };
        let (width, height) = (fitted.width() as usize, fitted.height() as usize);
        let flat = self.flatten(fitted);
        let (left, top) = ((self.size.width - width) / 2, (self.size.height - height) / 2);
        let around = self.fitting.background.around(self.channels);
        out.chunks_exact_mut(self.channels).for_each(|pixel| pixel.copy_from_slice(&around));
        let rows = out.chunks_exact_mut(self.size.width * self.channels).skip(top);
        for (row, pixels) in rows.zip(flat.chunks_exact(width * self.channels)) {
            row[left * self.channels..][..pixels.len()].copy_from_slice(pixels);
        }
        if self.flip && self.flip_draws.u64(0, position) & 1 == 1 {
            out.chunks_exact_mut(self.size.width * self.channels).for_each(|row| mirror(row, self.channels));
        }
        Ok(())
    }

    /// What is done to an image.
    pub(crate) fn note(&self, fitted: &mut Fitted, decoded: &Decoded) {
        let size = (decoded.image.width(), decoded.image.height());
        fitted.add(size, self.size, Fate::of(size, self.size, self.crop, self.fitting));
        if let Colours::Ignored(profile) = decoded.colours {
            fitted.add_ignored(profile);
        }
    }

    /// At most the network's size in both directions.
    fn fit(&self, image: DynamicImage, sample: &str, position: u64) -> Result<DynamicImage, DataError> {
        let (width, height) = (image.width(), image.height());
        match Fate::of((width, height), self.size, self.crop, self.fitting) {
            Fate::Kept { .. } => Ok(image),
            Fate::Resized { part, to: (to_width, to_height) } => {
                Ok(self.resize(self.cut(image, part, position), to_width, to_height))
            }
            Fate::Refused => {
                Err(DataError::CropNeeded { sample: sample.to_owned(), width, height, image_size: self.size })
            }
        }
    }

    /// The part of an image that has this width and height.
    fn cut(&self, image: DynamicImage, (part_width, part_height): (u32, u32), position: u64) -> DynamicImage {
        let room = (image.width() - part_width, image.height() - part_height);
        if room == (0, 0) {
            return image;
        }
        let draw = |axis, room| self.crop_draws.below(axis, position, u64::from(room) + 1) as u32;
        let (x, y) =
            if self.crop == Crop::Random { (draw(0, room.0), draw(1, room.1)) } else { (room.0 / 2, room.1 / 2) };
        image.crop_imm(x, y, part_width, part_height)
    }

    fn resize(&self, image: DynamicImage, width: u32, height: u32) -> DynamicImage {
        if (image.width(), image.height()) == (width, height) {
            return image;
        }
        // Transparency first: resampling colour and alpha apart would bleed the colour of invisible pixels.
        resample::resize(&self.opaque(image), width, height)
    }

    /// The pixels as `[H, W, channels]` bytes.
    fn flatten(&self, image: DynamicImage) -> Vec<u8> {
        let image = self.opaque(image);
        if self.channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() }
    }

    /// The image without transparency, laid on the background.
    fn opaque(&self, image: DynamicImage) -> DynamicImage {
        if !image.has_alpha() {
            return image;
        }
        let (image, under) = (image.into_rgba8(), self.fitting.background.under().map(u32::from));
        let mut flat = RgbImage::new(image.width(), image.height());
        for (to, from) in flat.pixels_mut().zip(image.pixels()) {
            let [colour @ .., alpha] = from.0.map(u32::from);
            let blend = |at: usize| ((colour[at] * alpha + under[at] * (255 - alpha) + 127) / 255) as u8;
            to.0 = [blend(0), blend(1), blend(2)];
        }
        DynamicImage::ImageRgb8(flat)
    }
}

/// Reverses the pixels of a row.
fn mirror(row: &mut [u8], channels: usize) {
    row.reverse();
    row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
}

#[cfg(test)]
mod tests;
