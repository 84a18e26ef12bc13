//! A bitmap for plotters to draw on, which needs no font file: letters are those of embedded-graphics, compiled in.
//!
//! Everything is drawn [`FINE`] times as large and then reduced, which smooths edges; a pixel of a letter is a block of fine ones, so
//! letters stay crisp.

use std::convert::Infallible;

use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_9X15_BOLD};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::{Dimensions, DrawTarget, Drawable, OriginDimensions, Pixel, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use image::{Rgb, RgbImage};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

/// Fine pixels along the edge of one of the picture.
pub(super) const FINE: u32 = 2;

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// See the module.
pub(super) struct Page<'a>(&'a mut RgbImage);

impl<'a> Page<'a> {
    /// Draws on a picture of fine pixels.
    pub(super) fn on(fine: &'a mut RgbImage) -> Self {
        Self(fine)
    }
}

/// The picture of which `fine` has the fine pixels: each the mean of its own.
pub(super) fn reduced(fine: &RgbImage) -> RgbImage {
    RgbImage::from_fn(fine.width() / FINE, fine.height() / FINE, |x, y| {
        let places = (0..FINE * FINE).map(|k| fine.get_pixel(x * FINE + k % FINE, y * FINE + k / FINE).0);
        let mean = |channel: usize| places.clone().map(|pixel| u32::from(pixel[channel])).sum::<u32>() / (FINE * FINE);
        Rgb([0, 1, 2].map(|channel| mean(channel) as u8))
    })
}

impl DrawingBackend for Page<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, colour: BackendColor) -> Drawn {
        let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
        if let Some(pixel) = place.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
            let over = |below: u8, above: u8| {
                (f64::from(below) + (f64::from(above) - f64::from(below)) * colour.alpha).round() as u8
            };
            let (r, g, b) = colour.rgb;
            let Rgb([below_r, below_g, below_b]) = *pixel;
            *pixel = Rgb([over(below_r, r), over(below_g, g), over(below_b, b)]);
        }
        Ok(())
    }

    /// Thick lines with round corners, a disc after the other; plotters' own are thin at acute angles.
    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn {
        let (radius, mut last) = (style.stroke_width() as i32 / 2, None);
        for to in path {
            let from = last.replace(to).unwrap_or(to);
            if radius == 0 {
                self.draw_line(from, to, style)?;
                continue;
            }
            let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).max(1);
            let between =
                |from: i32, to: i32, k: i32| from + ((to - from) * k + (to - from).signum() * steps / 2) / steps;
            for k in 0..=steps {
                self.disc((between(from.0, to.0, k), between(from.1, to.1, k)), radius, style.color())?;
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Drawn {
        let letters = Letters::new(text, style);
        let (width, height) = letters.size();
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        let top = match anchor.v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let transform = style.transform();
        for Point { x: letter_x, y: letter_y } in letters.dots() {
            for k in 0..(FINE * FINE) as i32 {
                let fine = FINE as i32;
                let (dx, dy) = (letter_x * fine + k % fine, letter_y * fine + k / fine);
                let (dx, dy) = transform.transform(left + dx, top + dy);
                self.draw_pixel((x + dx, y + dy), style.color())?;
            }
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let (width, height) = Letters::new(text, style).size();
        Ok((width.cast_unsigned(), height.cast_unsigned()))
    }
}

impl Page<'_> {
    fn disc(&mut self, (x, y): BackendCoord, radius: i32, colour: BackendColor) -> Drawn {
        for dy in -radius..=radius {
            for dx in -radius..=radius {
                if dx * dx + dy * dy <= radius * radius {
                    self.draw_pixel((x + dx, y + dy), colour)?;
                }
            }
        }
        Ok(())
    }
}

/// A text in the font that is nearest to its style.
struct Letters<'a>(Text<'a, MonoTextStyle<'static, BinaryColor>>);

impl<'a> Letters<'a> {
    fn new<S: BackendTextStyle>(text: &'a str, style: &S) -> Self {
        let font = if style.size() < f64::from(18 * FINE) { &FONT_7X13 } else { &FONT_9X15_BOLD };
        Self(Text::with_baseline(text, Point::zero(), MonoTextStyle::new(font, BinaryColor::On), Baseline::Top))
    }

    /// Width and height in fine pixels.
    fn size(&self) -> (i32, i32) {
        let Size { width, height } = self.0.bounding_box().size;
        ((width * FINE).cast_signed(), (height * FINE).cast_signed())
    }

    fn dots(&self) -> Vec<Point> {
        let mut dots = Dots(Vec::new());
        let Ok(_) = self.0.draw(&mut dots);
        dots.0
    }
}

/// Collects the dots of letters.
struct Dots(Vec<Point>);

impl OriginDimensions for Dots {
    fn size(&self) -> Size {
        Size::new_equal(u32::MAX)
    }
}

impl DrawTarget for Dots {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        self.0.extend(pixels.into_iter().filter(|Pixel(_, colour)| colour.is_on()).map(|Pixel(point, _)| point));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use plotters::prelude::{IntoDrawingArea as _, IntoFont as _, PathElement, RGBColor, Text};

    use super::*;

    const INK: RGBColor = RGBColor(0, 0, 0);

    fn drawn(draw: impl FnOnce(&mut Page<'_>) -> Drawn) -> RgbImage {
        let mut fine = RgbImage::from_pixel(200, 100, Rgb([255; 3]));
        assert!(draw(&mut Page::on(&mut fine)).is_ok());
        reduced(&fine)
    }

    /// The bounds of what is not white: left, top, right, bottom.
    fn bounds(picture: &RgbImage) -> [u32; 4] {
        let inked = || picture.enumerate_pixels().filter(|(_, _, pixel)| pixel.0 != [255; 3]);
        let (xs, ys) = (|| inked().map(|(x, ..)| x), || inked().map(|(_, y, _)| y));
        [xs().min(), ys().min(), xs().max(), ys().max()].map(|edge| edge.unwrap_or(u32::MAX))
    }

    #[test]
    fn letters_are_drawn_upright_and_turned_without_a_font_file() {
        let write = |turned: bool| {
            drawn(|page| {
                let area = Page::on(page.0).into_drawing_area();
                let font = ("sans-serif", 16 * FINE).into_font();
                let font = if turned { font.transform(plotters::prelude::FontTransform::Rotate270) } else { font };
                assert!(area.draw(&Text::new("loss", (60, 80), font.color(&INK))).is_ok());
                Ok(())
            })
        };
        let [left, top, right, bottom] = bounds(&write(false));
        assert!(left >= 30 && right <= 30 + 4 * 7 && top >= 40 && bottom <= 40 + 13, "{left} {top} {right} {bottom}");
        assert!(right - left > 20 && bottom - top < 13);
        let [left, top, right, bottom] = bounds(&write(true));
        assert!(left >= 30 && right <= 30 + 13 && bottom <= 40 && top >= 40 - 4 * 7, "{left} {top} {right} {bottom}");
    }

    #[test]
    fn a_thick_line_has_its_width_at_a_corner_and_translucent_ink_is_mixed() {
        let line = drawn(|page| {
            let area = Page::on(page.0).into_drawing_area();
            let path = vec![(20, 50), (100, 50), (20, 60)];
            assert!(area.draw(&PathElement::new(path, plotters::style::Color::stroke_width(&INK, 4))).is_ok());
            Ok(())
        });
        assert_eq!(bounds(&line)[2], 51, "a round end behind the corner");
        let pale = drawn(|page| page.draw_pixel((10, 10), BackendColor { alpha: 0.5, rgb: (0, 0, 0) }));
        assert_eq!(pale.get_pixel(5, 5).0, [(128 + 3 * 255) / 4; 3].map(|mean: u32| mean as u8));
    }
}
