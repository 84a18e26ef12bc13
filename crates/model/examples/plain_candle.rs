//! Draws an image with candle alone, from a folder that `ddpm export` or diffusers wrote:
//!
//! ```sh
//! ddpm export runs/quickstart --to clothes
//! cargo run --release -p ddpm-model --example plain_candle -- clothes shirt.png
//! ```
//! The network is `ddpm_model::plain::UNet2DModel`, out of `candle_nn`'s layers; the sampler is DDIM (Song et al. 2020, equation
//! 12 with sigma = 0) in 50 steps, written out below. `ddpm sample` does the same many times faster.

use std::error::Error;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddpm_model::diffusers;
use ddpm_model::diffusion::{PredictionType, Schedule};
use ddpm_model::plain::UNet2DModel;

const STEPS: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let [_, folder, picture] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: plain_candle FOLDER PICTURE.png".into());
    };
    let (folder, device) = (Path::new(folder), Device::Cpu);
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).map_err(|error| format!("{file}: {error}"));
    let config = diffusers::parse_unet(&read("unet/config.json")?)?;
    let (diffusion, _) = diffusers::read_scheduler(&serde_json::from_str(&read("scheduler/scheduler_config.json")?)?)?;
    if diffusion.prediction_type != PredictionType::Epsilon {
        return Err("this example draws with networks that predict the noise".into());
    }
    let alphas_cumprod = Schedule::new(&diffusion)?.alphas_cumprod().to_vec();

    let weights = [folder.join("unet/diffusion_pytorch_model.safetensors")];
    // SAFETY: the file is not changed while this runs.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&weights, DType::F32, &device)? };
    let unet = UNet2DModel::new(&config, vb)?;

    let shape = config.image_shape()?;
    let label = config.num_class_embeds.map(|_| [0]);
    let mut x_t = Tensor::randn(0f32, 1.0, (1, shape.in_channels, shape.size.height, shape.size.width), &device)?;
    for step in (0..STEPS).rev() {
        let t = (step + 1) * alphas_cumprod.len() / STEPS - 1;
        let next = (step * alphas_cumprod.len() / STEPS).checked_sub(1);
        let (now, then) = (alphas_cumprod[t], next.map_or(1.0, |t| alphas_cumprod[t]));
        // A learned variance comes behind the noise.
        let output = unet.forward(&x_t, &[t as f32], label.as_ref().map(|label| &label[..]))?;
        let noise = output.narrow(1, 0, shape.in_channels)?;
        let x_start = ((&x_t - (&noise * (1.0 - now).sqrt())?)? / now.sqrt())?.clamp(-1f32, 1f32)?;
        x_t = ((x_start * then.sqrt())? + (noise * (1.0 - then).sqrt())?)?;
    }
    save(&x_t, picture)
}

/// Writes `[1, C, H, W]` in [-1, 1], grey or RGB.
fn save(image: &Tensor, path: &str) -> Result<(), Box<dyn Error>> {
    let (_, channels, height, width) = image.dims4()?;
    let bytes = ((image.clamp(-1f32, 1f32)? + 1.0)? * 127.5)?.round()?.to_dtype(DType::U8)?;
    let bytes = bytes.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<u8>()?;
    let colour = if channels == 1 { image::ColorType::L8 } else { image::ColorType::Rgb8 };
    Ok(image::save_buffer(path, &bytes, width as u32, height as u32, colour)?)
}
