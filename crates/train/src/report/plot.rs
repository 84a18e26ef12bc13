//! Curves over t on a white page, as PNG: plain panels with numbers at the ends of their axes.

use std::convert::Infallible;

use embedded_graphics::mono_font::{MonoTextStyle, ascii::FONT_7X13, ascii::FONT_9X15_BOLD};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, PrimitiveStyle, Rectangle};
pub use embedded_graphics::text::Alignment;
use embedded_graphics::text::Text;
use image::{Rgb, RgbImage};

/// Inner size of a panel, in pixels.
pub(crate) const PANEL: [u32; 2] = [300, 220];
/// Room left of a panel for its numbers, in pixels.
pub const MARGIN: i32 = 58;
/// Top of the first row of panels, in pixels: below their titles.
pub(crate) const PANEL_TOP: i32 = 60;

const INK: Rgb888 = Rgb888::new(40, 40, 40);
const FRAME: Rgb888 = Rgb888::new(190, 190, 190);
const CURVE: Rgb888 = Rgb888::new(30, 90, 200);
const MARK: Rgb888 = Rgb888::new(215, 70, 40);

/// A curve and how it is labelled.
#[derive(Clone, Copy, Debug)]
pub struct Curve<'a> {
    /// What it shows.
    pub title: &'a str,
    /// Its values, all finite.
    pub values: &'a [f64],
    /// The timestep of each value, ascending.
    pub timesteps: &'a [usize],
    /// What the horizontal axis counts up to, from 0.
    pub last: usize,
    /// Indices of `values` to be dotted.
    pub marks: &'a [usize],
}

/// A picture to draw on; pixels outside it are ignored.
pub struct Page(RgbImage);

impl OriginDimensions for Page {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Page {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            if let Some(pixel) = place.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
                *pixel = Rgb([colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

impl Page {
    /// A white page.
    pub fn new(width: u32, height: u32) -> Self {
        Self(RgbImage::from_pixel(width, height, Rgb([255; 3])))
    }

    /// A white page for one row of so many panels.
    pub fn for_panels(count: usize) -> Self {
        Self::new(panel_left(count) as u32 - 26, PANEL_TOP as u32 + PANEL[1] + 40)
    }

    /// The picture.
    pub fn into_picture(self) -> RgbImage {
        self.0
    }

    /// Puts a picture on the page.
    pub fn place(&mut self, picture: &RgbImage, left: i32, top: i32) {
        image::imageops::replace(&mut self.0, picture, i64::from(left), i64::from(top));
    }

    /// Small text.
    pub fn text(&mut self, text: &str, [x, y]: [i32; 2], alignment: Alignment) {
        self.draw(&Text::with_alignment(text, Point::new(x, y), MonoTextStyle::new(&FONT_7X13, INK), alignment));
    }

    /// A title.
    pub fn heading(&mut self, text: &str, [x, y]: [i32; 2]) {
        self.draw(&Text::new(text, Point::new(x, y), MonoTextStyle::new(&FONT_9X15_BOLD, INK)));
    }

    /// The frame and curve of the panel in this column of the first row.
    pub fn panel(&mut self, column: usize, curve: &Curve<'_>) {
        let (width, height, left) = (PANEL[0] as i32, PANEL[1] as i32, panel_left(column));
        let (values, corner) = (curve.values, Point::new(left, PANEL_TOP));
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
        let span = if high > low { high - low } else { 1.0 };
        let last = curve.last.max(1) as f64;
        let place = |index: usize| {
            let x = curve.timesteps[index] as f64 / last * f64::from(width - 1);
            let y = (high - values[index]) / span * f64::from(height - 1);
            corner + Point::new(x.round() as i32, y.round() as i32)
        };
        self.heading(curve.title, [left, PANEL_TOP - 14]);
        let frame = Rectangle::new(corner, Size::new(PANEL[0], PANEL[1]));
        self.draw(&frame.into_styled(PrimitiveStyle::with_stroke(FRAME, 1)));
        if low < 0.0 && high > 0.0 {
            let y = PANEL_TOP + (high / span * f64::from(height - 1)).round() as i32;
            let zero = Line::new(Point::new(left, y), Point::new(left + width - 1, y));
            self.draw(&zero.into_styled(PrimitiveStyle::with_stroke(FRAME, 1)));
        }
        let points: Vec<Point> = (0..values.len().min(curve.timesteps.len())).map(place).collect();
        // One by one: where two long lines meet at a sharp angle, the library's polyline overflows.
        for (&from, &to) in points.iter().zip(points.iter().skip(1)) {
            self.draw(&Line::new(from, to).into_styled(PrimitiveStyle::with_stroke(CURVE, 2)));
        }
        // A curve of one value has no length.
        if let [only] = points[..] {
            self.draw(&Circle::with_center(only, 5).into_styled(PrimitiveStyle::with_fill(CURVE)));
        }
        for &index in curve.marks {
            self.draw(&Circle::with_center(place(index), 5).into_styled(PrimitiveStyle::with_fill(MARK)));
        }
        let below = PANEL_TOP + height + 15;
        self.text(&tick(high), [left - 5, PANEL_TOP + 10], Alignment::Right);
        self.text(&tick(low), [left - 5, PANEL_TOP + height - 2], Alignment::Right);
        self.text("0", [left, below], Alignment::Left);
        self.text("t", [left + width / 2, below], Alignment::Center);
        self.text(&curve.last.to_string(), [left + width, below], Alignment::Right);
    }

    fn draw(&mut self, shape: &impl Drawable<Color = Rgb888>) {
        let Ok(_) = shape.draw(self);
    }
}

/// Left edge of the panel in this column, in pixels.
fn panel_left(column: usize) -> i32 {
    MARGIN + column as i32 * (PANEL[0] as i32 + MARGIN)
}

/// Writes a number beside an axis.
fn tick(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.0e}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(values: &[f64], timesteps: &[usize]) -> impl Fn(i32, i32) -> bool {
        let mut page = Page::for_panels(1);
        page.panel(0, &Curve { title: "t", values, timesteps, last: 9, marks: &[] });
        let picture = page.into_picture();
        move |x, y| {
            let (x, y) = ((MARGIN + x) as u32, (PANEL_TOP + y) as u32);
            picture.get_pixel(x, y).0 == [CURVE.r(), CURVE.g(), CURVE.b()]
        }
    }

    #[test]
    fn a_curve_runs_from_corner_to_corner_of_its_panel() {
        let [width, height] = PANEL.map(|edge| edge as i32);
        let blue = drawn(&[0.0, 1.0], &[0, 9]);
        assert!(blue(1, height - 2) && blue(width - 2, 1) && !blue(1, 1));
    }

    #[test]
    fn a_value_stands_above_its_timestep() {
        let [width, height] = PANEL.map(|edge| edge as i32);
        // Flat from t = 0 to t = 3, a third of the axis; then it rises to the end.
        let blue = drawn(&[0.0, 0.0, 1.0], &[0, 3, 9]);
        assert!(blue(width / 3 - 3, height - 1) && !blue(width / 2, height - 1) && blue(width - 2, 1));
    }

    #[test]
    fn a_few_values_far_apart_are_drawn_too() {
        let [right, bottom] = PANEL.map(|edge| edge as i32 - 1);
        let runs_through = |values: &[f64], timesteps: &[usize], points: &[[i32; 2]]| {
            let blue = drawn(values, timesteps);
            let near = |&[x, y]: &[i32; 2]| (-2..=2).any(|i| (-2..=2).any(|j| blue(x + i, y + j)));
            assert!(points.iter().all(near), "{values:?} at {timesteps:?}");
        };
        runs_through(&[0.0, 1.0, 0.0], &[0, 4, 9], &[[0, bottom], [right * 4 / 9, 0], [right, bottom]]);
        runs_through(&[1.0, 0.0, 1.0], &[0, 1, 9], &[[0, 0], [right / 9, bottom], [right, 0]]);
    }

    #[test]
    fn one_value_is_a_dot_and_equal_ones_are_a_line() {
        let width = PANEL[0] as i32;
        let dot = drawn(&[3.0], &[9]);
        assert!(dot(width - 1, 0) && !dot(width / 2, 0));
        let line = drawn(&[2.0, 2.0], &[0, 9]);
        assert!(line(0, 0) && line(width / 2, 0));
    }
}
