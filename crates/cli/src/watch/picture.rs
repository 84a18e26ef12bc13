//! A picture in cells of a terminal: two pixels in a cell, its upper and its lower half, or where there are no colours, their brightness
//! in five steps.

use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::Color;

/// Which colours a terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// All.
    True,
    /// The 216 of xterm's cube.
    Cube,
    /// None.
    Plain,
}

impl Ink {
    /// Of a terminal that draws, from the environment.
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self::decide(&variable("NO_COLOR"), &variable("COLORTERM"))
    }

    fn decide(no_color: &str, colorterm: &str) -> Self {
        match (no_color, colorterm) {
            ("", "truecolor" | "24bit") => Self::True,
            ("", _) => Self::Cube,
            _ => Self::Plain,
        }
    }

    /// The colour that is nearest.
    pub(super) fn colour(self, rgb: [u8; 3]) -> Color {
        match self {
            Self::True => Color::Rgb(rgb[0], rgb[1], rgb[2]),
            Self::Cube => {
                let [r, g, b] = rgb.map(nearest_level);
                Color::Indexed(16 + 36 * r + 6 * g + b)
            }
            Self::Plain => Color::Reset,
        }
    }
}

/// Of the six levels of xterm's cube: 0, 95, 135, 175, 215, 255.
fn nearest_level(value: u8) -> u8 {
    match value {
        0..48 => 0,
        48..115 => 1,
        _ => (value - 35) / 40,
    }
}

/// Draws as much of `area` as the picture fills at its own shape; returns that part.
pub(super) fn draw(picture: &RgbImage, area: Rect, ink: Ink, buffer: &mut Buffer) -> Rect {
    let (width, height) = fitting(picture.dimensions(), (u32::from(area.width), 2 * u32::from(area.height)));
    if width == 0 || height == 0 {
        return Rect { width: 0, height: 0, ..area };
    }
    let pixels = resize(picture, width, height, FilterType::Triangle);
    for y in 0..height / 2 {
        for x in 0..width {
            let [upper, lower] = [2 * y, 2 * y + 1].map(|y| pixels.get_pixel(x, y).0);
            let Some(cell) = buffer.cell_mut((area.x + x as u16, area.y + y as u16)) else { continue };
            if ink == Ink::Plain {
                cell.set_symbol(shade(upper, lower));
            } else {
                cell.set_symbol("▀").set_fg(ink.colour(upper)).set_bg(ink.colour(lower));
            }
        }
    }
    Rect { width: width as u16, height: (height / 2) as u16, ..area }
}

/// The largest size of the same shape within `room`, of an even height.
fn fitting((width, height): (u32, u32), room: (u32, u32)) -> (u32, u32) {
    let scale = (f64::from(room.0) / f64::from(width)).min(f64::from(room.1) / f64::from(height));
    let fit = |edge: u32, room: u32| ((f64::from(edge) * scale).round() as u32).min(room);
    (fit(width, room.0), fit(height, room.1) / 2 * 2)
}

fn shade(upper: [u8; 3], lower: [u8; 3]) -> &'static str {
    let luma = |Rgb([r, g, b])| (299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b)) / 1000;
    let mean = u32::midpoint(luma(Rgb(upper)), luma(Rgb(lower)));
    [" ", "░", "▒", "▓", "█"][(mean / 52) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_two_pixels_and_the_shape_is_kept() {
        let picture = RgbImage::from_fn(2, 2, |_, y| Rgb(if y < 1 { [255, 0, 0] } else { [0, 0, 255] }));
        let area = Rect::new(1, 1, 10, 1);
        let mut buffer = Buffer::empty(Rect::new(0, 0, 12, 3));
        assert_eq!(draw(&picture, area, Ink::True, &mut buffer), Rect::new(1, 1, 2, 1));
        let cell = &buffer[(1, 1)];
        assert_eq!((cell.symbol(), cell.fg, cell.bg), ("▀", Color::Rgb(255, 0, 0), Color::Rgb(0, 0, 255)));
        assert_eq!(buffer[(3, 1)].symbol(), " ");
    }

    #[test]
    fn without_colours_brightness_is_shown() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 6, 1));
        let grey = |level: u8| RgbImage::from_pixel(2, 2, Rgb([level; 3]));
        for (x, level) in [(0, 0), (2, 130), (4, 255)] {
            draw(&grey(level), Rect::new(x, 0, 2, 1), Ink::Plain, &mut buffer);
        }
        let symbols: Vec<&str> = [0, 2, 4].iter().map(|x| buffer[(*x, 0)].symbol()).collect();
        assert_eq!(symbols, [" ", "▒", "█"]);
        assert_eq!(buffer[(4, 0)].fg, Color::Reset);
    }

    #[test]
    fn colours_are_those_that_the_terminal_says_it_has() {
        assert_eq!(Ink::decide("", "truecolor"), Ink::True);
        assert_eq!(Ink::decide("", ""), Ink::Cube);
        assert_eq!(Ink::decide("1", "truecolor"), Ink::Plain);
        assert_eq!(Ink::Cube.colour([255, 0, 100]), Color::Indexed(16 + 36 * 5 + 1));
        assert_eq!([0, 95, 135, 175, 215, 255].map(nearest_level), [0, 1, 2, 3, 4, 5]);
    }
}
