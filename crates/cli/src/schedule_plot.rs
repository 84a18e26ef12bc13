//! The picture of `ddpm schedule --plot`: three curves over t, and one real image on its way to noise.

use ddpm_data::OpenOptions;
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{Schedule, Timestep};
use ddpm_train::report::plot::{Alignment, Curve, MARGIN, Page};
use image::{GrayImage, RgbImage};

use crate::failure::{ExitCode, Failure};

const PAGE: [u32; 2] = [1100, 560];
/// Images in the strip, and the side of each, in pixels.
const STRIP: usize = 8;
const STRIP_SIDE: u32 = 128;
const STRIP_TOP: i32 = 370;

/// Draws the schedule a model is trained with; `visited` marks the steps a sampler takes.
pub(super) fn plot(schedule: &Schedule, visited: Option<&Vec<Timestep>>) -> Result<RgbImage, Failure> {
    let mut page = Page::new(PAGE[0], PAGE[1]);
    let marks: Vec<usize> = visited.into_iter().flatten().map(|t| t.index()).collect();
    let all: Vec<usize> = (0..schedule.len()).collect();
    let log_snr: Vec<f64> = schedule.snr().iter().map(|snr| snr.log10()).collect();
    let panels = [("alpha_bar", schedule.alphas_cumprod()), ("beta", schedule.betas()), ("log10 SNR", &log_snr)];
    for (column, (title, values)) in panels.into_iter().enumerate() {
        page.panel(column, &Curve { title, values, timesteps: &all, last: schedule.len() - 1, marks: &marks });
    }
    strip(&mut page, schedule)?;
    Ok(page.into_picture())
}

/// One image at several t, from clean to noise.
fn strip(page: &mut Page, schedule: &Schedule) -> Result<(), Failure> {
    let image = example_image()?;
    page.heading("x_t of one image", [MARGIN, STRIP_TOP - 12]);
    let gap = (PAGE[0] as i32 - 2 * 20 - STRIP as i32 * STRIP_SIDE as i32) / (STRIP as i32 - 1);
    let mut shown = None;
    for place in 0..STRIP {
        // Most of the change is early, so the first timesteps are closer together.
        let t = place * place * (schedule.len() - 1) / (STRIP - 1).pow(2);
        if shown == Some(t) {
            continue;
        }
        shown = Some(t);
        let left = 20 + place as i32 * (STRIP_SIDE as i32 + gap);
        let noised = noised(&image, schedule.alphas_cumprod()[t]);
        let enlarged = image::imageops::resize(&noised, STRIP_SIDE, STRIP_SIDE, image::imageops::Nearest);
        page.place(&image::DynamicImage::ImageLuma8(enlarged).into_rgb8(), left, STRIP_TOP);
        let below = [left + STRIP_SIDE as i32 / 2, STRIP_TOP + STRIP_SIDE as i32 + 16];
        page.text(&format!("t = {t}"), below, Alignment::Center);
    }
    Ok(())
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
