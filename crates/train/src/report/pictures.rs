//! Grids of pictures as PNG: many small images on one page, large enough to be seen.

use std::path::Path;

use ddpm_run::durable::replace_file;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};

use super::ReportError;

/// The most pixels of a picture: 400 MB of RGB is a mistake.
const MAX_PIXELS: u64 = 1 << 27;

/// Pictures are enlarged by a whole factor until an image's longer edge has about this many pixels.
const VISIBLE_EDGE: usize = 64;

/// How a grid is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Images in a row; `None` makes the grid as square as possible.
    pub columns: Option<usize>,
    /// Pixels of white around each image.
    pub margin: u32,
    /// Each pixel becomes a square of this edge, without smoothing.
    pub scale: u32,
}

impl Layout {
    /// Square, with a small margin, and 32x32 images twice as large.
    pub fn visible(height: usize, width: usize) -> Self {
        let scale = (VISIBLE_EDGE / height.max(width).max(1)).max(1) as u32;
        Self { columns: None, margin: 2, scale }
    }

    /// Images in a row of a grid of `count`.
    fn columns_of(&self, count: usize) -> usize {
        self.columns.unwrap_or_else(|| (count as f64).sqrt().ceil() as usize).clamp(1, count.max(1))
    }

    /// Offset in pixels of a cell on the page, whose image has this edge; for the cell after the last, the size of the page.
    fn start(&self, cell: usize, edge: usize) -> u64 {
        let margin = u64::from(self.margin);
        let pitch = (edge as u64).saturating_mul(u64::from(self.scale.max(1))).saturating_add(margin);
        (cell as u64).saturating_mul(pitch).saturating_add(margin)
    }
}

/// An encoded picture, RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Png {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Lays out `images`, bytes of shape `[N, H, W, C]` with C 1 or 3, row by row on white.
///
/// # Errors
/// The bytes do not fill the shape, there are no images, C is neither 1 nor 3, or the page would be too large.
pub fn grid(images: &[u8], shape: [usize; 4], layout: Layout) -> Result<RgbImage, ReportError> {
    let [count, height, width, channels] = checked_shape(images, shape)?;
    let (page_width, page_height) = page_size(count, [height, width], layout)?;
    let (columns, scale) = (layout.columns_of(count), layout.scale.max(1));
    let mut page = RgbImage::from_pixel(page_width, page_height, Rgb([255; 3]));
    for (index, image) in images.chunks_exact(height * width * channels).enumerate() {
        let left = layout.start(index % columns, width) as u32;
        let top = layout.start(index / columns, height) as u32;
        for (position, pixel) in image.chunks_exact(channels).enumerate() {
            let (x, y) = ((position % width) as u32 * scale, (position / width) as u32 * scale);
            let colour = if let [r, g, b] = *pixel { [r, g, b] } else { [pixel[0]; 3] };
            for (dx, dy) in (0..scale).flat_map(|dy| (0..scale).map(move |dx| (dx, dy))) {
                page.put_pixel(left + x + dx, top + y + dy, Rgb(colour));
            }
        }
    }
    Ok(page)
}

/// Width and height of the page that [`grid`] makes of `count` images; to be called before drawing them takes hours.
///
/// # Errors
/// The page would be too large.
pub fn page_size(count: usize, [height, width]: [usize; 2], layout: Layout) -> Result<(u32, u32), ReportError> {
    let columns = layout.columns_of(count);
    let (page_width, page_height) = (layout.start(columns, width), layout.start(count.div_ceil(columns), height));
    if page_width.saturating_mul(page_height) > MAX_PIXELS {
        return Err(wrong(format!("{page_width}x{page_height} pixels"), format!("at most {MAX_PIXELS} in all")));
    }
    Ok((page_width as u32, page_height as u32))
}

/// One image, bytes of shape `[H, W, C]`, in its own size.
///
/// # Errors
/// As [`grid`].
pub fn single(image: &[u8], [height, width, channels]: [usize; 3]) -> Result<RgbImage, ReportError> {
    grid(image, [1, height, width, channels], Layout { columns: None, margin: 0, scale: 1 })
}

/// Encodes a picture; equal pictures give equal bytes.
///
/// # Errors
/// The encoder fails.
pub fn encode(picture: &RgbImage) -> Result<Png, ReportError> {
    let (width, height) = picture.dimensions();
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(ReportError::Encode)?;
    Ok(Png { width, height, bytes })
}

/// Writes a picture under its final name only when it is complete.
///
/// # Errors
/// The disk refuses.
pub fn write(path: &Path, png: &Png) -> Result<(), ReportError> {
    replace_file(path, &png.bytes).map_err(ReportError::io("write the picture", path))
}

fn checked_shape(images: &[u8], shape: [usize; 4]) -> Result<[usize; 4], ReportError> {
    let size = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    if size != Some(images.len()) || images.is_empty() {
        return Err(wrong(
            format!("{} bytes", images.len()),
            format!("as many as the shape {shape:?} holds, not none"),
        ));
    }
    if !matches!(shape[3], 1 | 3) {
        return Err(wrong(format!("{} channels", shape[3]), "1 or 3".into()));
    }
    Ok(shape)
}

fn wrong(found: String, expected: String) -> ReportError {
    ReportError::Picture { found, expected }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TIGHT: Layout = Layout { columns: Some(2), margin: 1, scale: 2 };

    #[test]
    fn images_stand_row_by_row_enlarged_with_white_between() {
        // Three images of 1x2 pixels, one channel.
        let page = grid(&[10, 20, 30, 40, 50, 60], [3, 1, 2, 1], TIGHT).unwrap();
        assert_eq!(page.dimensions(), (2 * (4 + 1) + 1, 2 * (2 + 1) + 1));
        let grey = |x, y| page.get_pixel(x, y).0;
        assert_eq!([grey(1, 1), grey(2, 2), grey(3, 1), grey(4, 2)], [[10; 3], [10; 3], [20; 3], [20; 3]]);
        assert_eq!([grey(6, 1), grey(9, 2)], [[30; 3], [40; 3]]);
        assert_eq!([grey(1, 4), grey(4, 5)], [[50; 3], [60; 3]]);
        assert_eq!([grey(0, 0), grey(5, 1), grey(1, 3), grey(6, 4), grey(10, 6)], [[255; 3]; 5]);
    }

    #[test]
    fn colours_keep_their_order() {
        let page = single(&[1, 2, 3, 4, 5, 6], [1, 2, 3]).unwrap();
        assert_eq!(page.dimensions(), (2, 1));
        assert_eq!(page.as_raw(), &[1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn small_images_are_enlarged_and_large_ones_are_not() {
        assert_eq!(Layout::visible(32, 32).scale, 2);
        assert_eq!(Layout::visible(28, 28).scale, 2);
        assert_eq!(Layout::visible(256, 256).scale, 1);
        let page = grid(&[0; 9 * 32 * 32], [9, 32, 32, 1], Layout::visible(32, 32)).unwrap();
        assert_eq!(page.dimensions(), (3 * 66 + 2, 3 * 66 + 2));
    }

    #[test]
    fn a_picture_comes_back_from_its_file_and_is_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-000000010.png");
        let bytes: Vec<u8> = (0..4 * 8 * 8 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let page = grid(&bytes, [4, 8, 8, 3], TIGHT).unwrap();
        let png = encode(&page).unwrap();
        assert_eq!(png, encode(&page).unwrap());
        write(&path, &png).unwrap();
        assert_eq!(image::open(&path).unwrap().into_rgb8(), page);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for (bytes, shape) in
            [(5, [1, 2, 3, 1]), (0, [0, 2, 3, 1]), (0, [1, 0, 3, 1]), (8, [1, 2, 2, 2]), (1, [usize::MAX, 2, 1, 1])]
        {
            assert!(matches!(grid(&vec![0; bytes], shape, TIGHT), Err(ReportError::Picture { .. })), "{shape:?}");
        }
        let huge = Layout { columns: None, margin: 2, scale: u32::MAX };
        assert!(matches!(grid(&[0; 4], [1, 2, 2, 1], huge), Err(ReportError::Picture { .. })));
    }
}
