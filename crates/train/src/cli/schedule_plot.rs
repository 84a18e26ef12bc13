//! The picture of `ddpm schedule --plot`: three curves over t, and one real image on its way to noise.

use std::convert::Infallible;

use ddpm_data::OpenOptions;
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{Schedule, Timestep};
use embedded_graphics::mono_font::{MonoTextStyle, ascii::FONT_7X13, ascii::FONT_9X15_BOLD};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, Polyline, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Text};
use image::{GrayImage, Rgb, RgbImage};

use crate::error::{ExitCode, Failure};

const PAGE: Size = Size::new(1100, 560);
/// Inner size of a panel with a curve.
const PANEL: Size = Size::new(300, 220);
const PANEL_TOP: i32 = 60;
/// Room left of a panel for its numbers.
const MARGIN: i32 = 58;
/// Images in the strip, and the side of each, in pixels.
const STRIP: usize = 8;
const STRIP_SIDE: u32 = 128;
const STRIP_TOP: i32 = 370;

const INK: Rgb888 = Rgb888::new(40, 40, 40);
const FRAME: Rgb888 = Rgb888::new(190, 190, 190);
const CURVE: Rgb888 = Rgb888::new(30, 90, 200);
const VISITED: Rgb888 = Rgb888::new(215, 70, 40);

/// Draws the schedule a model is trained with; `visited` marks the steps a sampler takes.
pub(super) fn plot(schedule: &Schedule, visited: Option<&Vec<Timestep>>) -> Result<RgbImage, Failure> {
    let mut page = Page(RgbImage::from_pixel(PAGE.width, PAGE.height, Rgb([255; 3])));
    let marks: Vec<usize> = visited.into_iter().flatten().map(|t| t.index()).collect();
    let log_snr: Vec<f64> = schedule.snr().iter().map(|snr| snr.log10()).collect();
    let panels = [("alpha_bar", schedule.alphas_cumprod()), ("beta", schedule.betas()), ("log10 SNR", &log_snr)];
    for (column, (title, values)) in panels.into_iter().enumerate() {
        let left = MARGIN + column as i32 * (PANEL.width as i32 + MARGIN);
        page.panel(left, title, values, &marks);
    }
    page.strip(schedule)?;
    Ok(page.0)
}

/// A picture that embedded-graphics can draw on; what falls outside is not drawn.
struct Page(RgbImage);

impl OriginDimensions for Page {
    fn size(&self) -> Size {
        PAGE
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
    fn draw(&mut self, shape: &impl Drawable<Color = Rgb888>) {
        let Ok(_) = shape.draw(self);
    }

    fn text(&mut self, text: &str, at: Point, alignment: Alignment) {
        self.draw(&Text::with_alignment(text, at, MonoTextStyle::new(&FONT_7X13, INK), alignment));
    }

    /// A frame with a curve over t; `marks` are timesteps to be dotted.
    fn panel(&mut self, left: i32, title: &str, values: &[f64], marks: &[usize]) {
        let (width, height) = (PANEL.width as i32, PANEL.height as i32);
        let corner = Point::new(left, PANEL_TOP);
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
        let span = if high > low { high - low } else { 1.0 };
        let last = (values.len() - 1).max(1) as f64;
        let place = |t: usize| {
            let x = t as f64 / last * f64::from(width - 1);
            let y = (high - values[t]) / span * f64::from(height - 1);
            corner + Point::new(x.round() as i32, y.round() as i32)
        };
        let heading = MonoTextStyle::new(&FONT_9X15_BOLD, INK);
        self.draw(&Text::new(title, corner - Point::new(0, 14), heading));
        self.draw(&Rectangle::new(corner, PANEL).into_styled(PrimitiveStyle::with_stroke(FRAME, 1)));
        if low < 0.0 && high > 0.0 {
            let y = PANEL_TOP + (high / span * f64::from(height - 1)).round() as i32;
            let zero = Line::new(Point::new(left, y), Point::new(left + width - 1, y));
            self.draw(&zero.into_styled(PrimitiveStyle::with_stroke(FRAME, 1)));
        }
        let points: Vec<Point> = (0..values.len()).map(place).collect();
        self.draw(&Polyline::new(&points).into_styled(PrimitiveStyle::with_stroke(CURVE, 2)));
        for &t in marks {
            self.draw(&Circle::with_center(place(t), 5).into_styled(PrimitiveStyle::with_fill(VISITED)));
        }
        self.text(&tick(high), corner + Point::new(-5, 10), Alignment::Right);
        self.text(&tick(low), corner + Point::new(-5, height - 2), Alignment::Right);
        self.text("0", corner + Point::new(0, height + 15), Alignment::Left);
        self.text("t", corner + Point::new(width / 2, height + 15), Alignment::Center);
        self.text(&(values.len() - 1).to_string(), corner + Point::new(width, height + 15), Alignment::Right);
    }

    /// One image at several t, from clear to noise.
    fn strip(&mut self, schedule: &Schedule) -> Result<(), Failure> {
        let image = example_image()?;
        let heading = MonoTextStyle::new(&FONT_9X15_BOLD, INK);
        self.draw(&Text::new("x_t of one image", Point::new(MARGIN, STRIP_TOP - 12), heading));
        let gap = (PAGE.width as i32 - 2 * 20 - STRIP as i32 * STRIP_SIDE as i32) / (STRIP as i32 - 1);
        for place in 0..STRIP {
            // Most of the change is early, so the first places stand closer together.
            let t = place * place * (schedule.len() - 1) / (STRIP - 1).pow(2);
            let left = 20 + place as i32 * (STRIP_SIDE as i32 + gap);
            let noised = noised(&image, schedule.alphas_cumprod()[t]);
            let enlarged = image::imageops::resize(&noised, STRIP_SIDE, STRIP_SIDE, image::imageops::Nearest);
            let coloured = image::DynamicImage::ImageLuma8(enlarged).into_rgb8();
            image::imageops::replace(&mut self.0, &coloured, i64::from(left), i64::from(STRIP_TOP));
            let below = Point::new(left + STRIP_SIDE as i32 / 2, STRIP_TOP + STRIP_SIDE as i32 + 16);
            self.text(&format!("t = {t}"), below, Alignment::Center);
        }
        Ok(())
    }
}

/// A number beside an axis.
fn tick(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.0e}") } else { format!("{value:.2}") }
}

/// The first image of the embedded data set.
fn example_image() -> Result<GrayImage, Failure> {
    let source = ddpm_data::open("builtin:fashion10k", &OpenOptions::default())?;
    let raw = source.read(0)?;
    let decoded = image::load_from_memory(&raw.bytes);
    let decoded = decoded.map_err(|error| Failure::caused_by(ExitCode::Data, raw.id, &error))?;
    Ok(decoded.into_luma8())
}

/// x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (Ho et al. 2020, eq. 4), with the same eps for every t.
fn noised(image: &GrayImage, alpha_bar: f64) -> GrayImage {
    let mut noise = vec![0.0f32; image.len()];
    Philox::new(0, Purpose::Noise).fill_normal(0, 0, &mut noise);
    let mut noised = image.clone();
    for (pixel, noise) in noised.iter_mut().zip(noise) {
        let x_start = f64::from(*pixel) / 127.5 - 1.0;
        let x_t = alpha_bar.sqrt() * x_start + (1.0 - alpha_bar).sqrt() * f64::from(noise);
        *pixel = ((x_t + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    }
    noised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_noise_is_the_image() {
        let image = GrayImage::from_fn(4, 4, |x, y| image::Luma([(x * 60 + y) as u8]));
        assert_eq!(noised(&image, 1.0), image);
        assert_ne!(noised(&image, 0.5), image);
    }
}
