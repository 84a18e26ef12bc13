//! Images drawn from a model. Image `k` of a seed is a function of (weights, sampler, seed, k) alone: its noise is a stream of
//! its own, so neither the number of images nor the size of a batch changes it, and the pictures of a run can be
//! compared.

use std::cell::Cell;

use candle_core::{Device, Tensor};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DiffusionProcess, SamplerConfig, sample};
use ddpm_model::params::Params;
use ddpm_model::tape::Tape;
use ddpm_model::unet::UNet;

use super::noise::normals;
use crate::error::{ExitCode, Failure};

/// Images computed at once: enough for every core, few enough for little memory.
const BATCH: usize = 16;

/// A model to draw from.
#[derive(Clone, Copy, Debug)]
pub struct Painter<'a> {
    /// The network.
    pub unet: &'a UNet,
    /// Its weights.
    pub params: &'a Params,
    /// The diffusion process.
    pub process: &'a DiffusionProcess,
    /// Where to compute.
    pub device: &'a Device,
}

/// What to draw.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// How many images.
    pub num: usize,
    /// How.
    pub sampler: &'a SamplerConfig,
    /// The seed of the noise.
    pub seed: u64,
    /// The classes, taken in turn; none for an unconditional model.
    pub classes: Option<Vec<u32>>,
    /// Classifier-free guidance.
    pub guidance: Option<Guidance>,
}

/// Classifier-free guidance (Ho & Salimans 2022): `(1 + w) conditional - w unconditional`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// w.
    pub weight: f64,
    /// The class that stands for "none".
    pub none: u32,
}

/// Images as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Pixels, `[N, H, W, C]`.
    pub pixels: Vec<u8>,
    /// `[N, H, W, C]`.
    pub shape: [usize; 4],
}

impl Painter<'_> {
    /// Draws.
    ///
    /// # Errors
    /// Exit code 2 for a sampler that does not fit the process or a class that does not exist.
    pub fn draw(&self, request: &Request<'_>, progress: impl FnMut(usize)) -> Result<Images, Failure> {
        self.draw_while(request, progress, &|| Ok(()))
    }

    /// Draws, or gives up with `None` once `is_over`, which is asked before every pass through the network.
    ///
    /// # Errors
    /// As [`Self::draw`].
    pub fn draw_unless(&self, request: &Request<'_>, is_over: &dyn Fn() -> bool) -> Result<Option<Images>, Failure> {
        let given_up = Cell::new(false);
        let proceed = || {
            given_up.set(is_over());
            if given_up.get() { Err(Failure::new(ExitCode::Other, "given up")) } else { Ok(()) }
        };
        match self.draw_while(request, |_| (), &proceed) {
            Err(_) if given_up.get() => Ok(None),
            drawn => drawn.map(Some),
        }
    }

    fn draw_while(
        &self,
        request: &Request<'_>,
        mut progress: impl FnMut(usize),
        proceed: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Images, Failure> {
        let image = self.unet.image_shape();
        let shape = [request.num, image.size, image.size, image.in_channels];
        let mut pixels = room_for(shape)?;
        for first in (0..request.num).step_by(BATCH) {
            let count = BATCH.min(request.num - first);
            let x_start = self.draw_batch(request, first, [count, shape[1], shape[2], shape[3]], proceed)?;
            let values = x_start.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(ModelError::from)?;
            pixels.extend(values.iter().map(|v| to_byte(*v)));
            progress(first + count);
        }
        Ok(Images { pixels, shape })
    }

    fn draw_batch(
        &self,
        request: &Request<'_>,
        first: usize,
        shape: [usize; 4],
        proceed: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Tensor, Failure> {
        let philox = Philox::new(request.seed, Purpose::Sample);
        let noise = |stream: u64| Ok(normals(philox, stream, first, &shape, self.device)?);
        let labels = request.classes.as_ref().map(|classes| -> Vec<u32> {
            (first..first + shape[0]).map(|k| classes[k % classes.len().max(1)]).collect()
        });
        let predict = |x_t: &Tensor, timesteps: &[f32], labels: Option<&[u32]>| -> Result<Tensor, Failure> {
            let mut tape = Tape::inference(self.params);
            Ok(self.unet.forward(&mut tape, x_t, timesteps, labels)?.value().clone())
        };
        let mut denoise = |x_t: &Tensor, t: ddpm_model::diffusion::Timestep| -> Result<Tensor, Failure> {
            proceed()?;
            let timesteps = vec![t.index() as f32; shape[0]];
            let conditional = predict(x_t, &timesteps, labels.as_deref())?;
            let Some(Guidance { weight, none }) = request.guidance else { return Ok(conditional) };
            let unconditional = predict(x_t, &timesteps, Some(&vec![none; shape[0]]))?;
            Ok(((conditional * (1.0 + weight)).and_then(|c| c - (unconditional * weight)?))
                .map_err(ModelError::from)?)
        };
        // Stream 0 is x_T, stream 1 + s the noise of step s.
        sample(self.process, request.sampler, noise(0)?, &mut |step| noise(step as u64 + 1), &mut denoise)
    }
}

/// Memory for all images, asked for before hours are spent on them.
fn room_for(shape: [usize; 4]) -> Result<Vec<u8>, Failure> {
    let mut pixels = Vec::new();
    let bytes = shape.iter().try_fold(1usize, |bytes, &size| bytes.checked_mul(size));
    if bytes.is_some_and(|bytes| pixels.try_reserve_exact(bytes).is_ok()) {
        return Ok(pixels);
    }
    let [count, height, width, _] = shape;
    let failure = Failure::new(ExitCode::Device, format!("{count} images of {height}x{width} do not fit into memory"));
    Err(failure.hint("draw fewer at a time, each time with another seed"))
}

/// [-1, 1] to 0..=255.
fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_normalisation_and_back() {
        for byte in 0..=255u8 {
            assert_eq!(to_byte(f32::from(byte) / 127.5 - 1.0), byte);
        }
        assert_eq!((to_byte(-7.0), to_byte(7.0), to_byte(f32::NAN)), (0, 255, 0));
    }
}
