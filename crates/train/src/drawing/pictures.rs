//! Images drawn from a model. Image `k` of a seed is a function of (weights, sampler, seed, k) alone: its noise is a stream of
//! its own, so neither the number of images nor the size of a batch changes it, and the pictures of a run can be
//! compared.
//!
//! On a CPU the sampler is the model crate's, step by step; on a GPU a step is recorded and replayed (`gpu`).

use candle_core::{D, Tensor};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DiffusionProcess, SamplerConfig, Timestep, sample_observed, slerp};
use ddpm_model::params::Params;
use ddpm_model::tape::Tape;
use ddpm_model::unet::UNet;

#[cfg(feature = "cuda")]
use super::gpu::GpuPictures;
use crate::error::Error;
use crate::noise::normals;
use crate::pixels::to_bytes;

/// Images computed at once where nobody chose: enough for every core, few enough for little memory.
pub const BATCH: usize = 16;

/// A model to draw from.
#[derive(Clone, Copy, Debug)]
pub struct Painter<'a> {
    /// The network.
    pub unet: &'a UNet,
    /// Its weights.
    pub params: &'a Params,
    /// The diffusion process.
    pub process: &'a DiffusionProcess,
}

/// What to draw.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// How many images.
    pub num: usize,
    /// How.
    pub sampler: &'a SamplerConfig,
    /// Where they begin.
    pub start: Start,
    /// The classes, taken in turn; none for an unconditional model.
    pub classes: Option<Vec<u32>>,
    /// Classifier-free guidance.
    pub guidance: Option<Guidance>,
    /// Images computed at once.
    pub batch_size: usize,
}

/// The noise that images come out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Image `k` from the `k`-th noise of this seed.
    Seed(u64),
    /// From the first noise of one seed to the first noise of another, in even steps along the sphere.
    Between(u64, u64),
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
    /// Images with a value that is not a number, which shows as black.
    pub not_finite: usize,
}

/// What the network saw behind some of the images, on the way to them.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse<'a> {
    /// The number of the first of these images.
    pub first: usize,
    /// The timestep.
    pub t: Timestep,
    /// The predicted x_0, `[n, H, W, C]`; where it was computed, so that a GPU is waited for only by who reads it.
    pub x_start: &'a Tensor,
}

/// Who looks on while images are drawn.
pub struct Onlooker<'a> {
    /// Told the number of finished images.
    pub progress: &'a mut dyn FnMut(usize),
    /// Asked before every pass through the network whether to go on; if not, drawing ends with [`Error::Cancelled`].
    pub proceed: &'a dyn Fn() -> bool,
    /// Shown what the network sees.
    pub glimpse: &'a mut dyn FnMut(Glimpse<'_>) -> Result<(), Error>,
}

/// Whether to go on; an error if not.
pub(super) fn ask(proceed: &dyn Fn() -> bool) -> Result<(), Error> {
    if proceed() { Ok(()) } else { Err(Error::Cancelled) }
}

impl Painter<'_> {
    /// Draws, or gives up with `None` once `is_over`, which is asked before every pass through the network.
    ///
    /// # Errors
    /// As [`Self::draw`].
    pub fn draw_unless(&self, request: &Request<'_>, is_over: &dyn Fn() -> bool) -> Result<Option<Images>, Error> {
        let onlooker =
            &mut Onlooker { progress: &mut |_| (), proceed: &|| !is_over(), glimpse: &mut |_: Glimpse<'_>| Ok(()) };
        match self.draw(request, onlooker) {
            Err(Error::Cancelled) => Ok(None),
            drawn => drawn.map(Some),
        }
    }

    /// Draws.
    ///
    /// # Errors
    /// A sampler that does not fit the process or a class that does not exist; [`Error::Cancelled`], and what `onlooker` returns.
    pub fn draw(&self, request: &Request<'_>, onlooker: &mut Onlooker<'_>) -> Result<Images, Error> {
        self.prepare(request)?.draw(onlooker)
    }

    /// What can be made ready before the first image.
    ///
    /// # Errors
    /// As [`Self::draw`].
    pub fn prepare<'a>(&'a self, request: &'a Request<'a>) -> Result<Drawing<'a>, Error> {
        #[cfg(feature = "cuda")]
        let gpu = if self.params.buffer().device().is_cuda() && request.num > 0 {
            Some(Box::new(GpuPictures::new(*self, request)?))
        } else {
            None
        };
        Ok(Drawing {
            painter: *self,
            request,
            #[cfg(feature = "cuda")]
            gpu,
        })
    }

    /// x_T of the images `first..`.
    pub(super) fn start(&self, request: &Request<'_>, first: usize, shape: &[usize; 4]) -> Result<Tensor, Error> {
        let noise = |seed, first, dims: &[usize]| normals(Philox::new(seed, Purpose::Sample), 0, first, dims);
        let (from, to) = match request.start {
            Start::Seed(seed) => return Ok(noise(seed, first, shape)?),
            Start::Between(from, to) => (from, to),
        };
        let one = [1, shape[1], shape[2], shape[3]];
        let (from, to) = (noise(from, 0, &one)?, noise(to, 0, &one)?);
        let last = request.num.saturating_sub(1).max(1) as f64;
        let latents = (first..first + shape[0]).map(|k| slerp(&from, &to, k as f64 / last));
        let latents = latents.collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&latents, 0).map_err(ModelError::from)?)
    }

    /// The network's output at one t for all images, guided where that is asked for.
    ///
    /// # Errors
    /// A class that does not exist.
    pub fn denoise(
        &self,
        x_t: &Tensor,
        t: Timestep,
        labels: Option<&[u32]>,
        guidance: Option<Guidance>,
    ) -> Result<Tensor, Error> {
        let count = x_t.dims()[0];
        let timesteps = vec![t.index() as f32; count];
        let predict = |labels: Option<&[u32]>| -> Result<Tensor, Error> {
            let mut tape = Tape::inference(self.params);
            Ok(self.unet.forward(&mut tape, x_t, &timesteps, labels)?.to_host()?)
        };
        let conditional = predict(labels)?;
        let Some(Guidance { weight, none }) = guidance else { return Ok(conditional) };
        let unconditional = predict(Some(&vec![none; count]))?;
        let channels = self.unet.image_shape().in_channels;
        Ok(guided(&conditional, &unconditional, weight, channels).map_err(ModelError::from)?)
    }
}

impl Request<'_> {
    /// The stream of all noise: step 0 of it is x_T, step 1 + s the noise of step s.
    pub(super) fn noise(&self) -> Philox {
        let (Start::Seed(seed) | Start::Between(seed, _)) = self.start;
        Philox::new(seed, Purpose::Sample)
    }

    /// The classes of `count` images from number `first` on.
    pub(super) fn labels(&self, first: usize, count: usize) -> Option<Vec<u32>> {
        let classes = self.classes.as_ref()?;
        Some((first..first + count).map(|k| classes[k % classes.len().max(1)]).collect())
    }
}

/// A request with what is ready for it. Drawn again it gives the same images, on a GPU by the steps that were recorded.
#[derive(Debug)]
pub struct Drawing<'a> {
    painter: Painter<'a>,
    request: &'a Request<'a>,
    #[cfg(feature = "cuda")]
    gpu: Option<Box<GpuPictures<'a>>>,
}

impl Drawing<'_> {
    /// Draws all images.
    ///
    /// # Errors
    /// As [`Painter::draw`].
    pub fn draw(&mut self, onlooker: &mut Onlooker<'_>) -> Result<Images, Error> {
        let (image, num) = (self.painter.unet.image_shape(), self.request.num);
        let shape = [num, image.size, image.size, image.in_channels];
        let mut images = Images { pixels: room_for(shape)?, shape, not_finite: 0 };
        let batch_size = self.batch_size();
        for first in (0..num).step_by(batch_size) {
            let count = batch_size.min(num - first);
            let x_start = self.draw_batch(first, [count, shape[1], shape[2], shape[3]], onlooker)?;
            images.pixels.extend(to_bytes(&x_start)?);
            images.not_finite += count_not_finite(&x_start)?;
            (onlooker.progress)(first + count);
        }
        Ok(images)
    }

    fn batch_size(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.batch_size();
        }
        self.request.batch_size.max(1)
    }

    /// The images from number `first` on, on the CPU.
    fn draw_batch(&mut self, first: usize, shape: [usize; 4], onlooker: &mut Onlooker<'_>) -> Result<Tensor, Error> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            return gpu.draw_batch(first, shape[0], onlooker);
        }
        let (painter, request) = (self.painter, self.request);
        let labels = request.labels(first, shape[0]);
        let mut denoise = |x_t: &Tensor, t: Timestep| {
            ask(onlooker.proceed)?;
            painter.denoise(x_t, t, labels.as_deref(), request.guidance)
        };
        let philox = request.noise();
        let mut noise = |step| Ok(normals(philox, step as u64 + 1, first, &shape)?);
        let x_t = painter.start(request, first, &shape)?;
        let mut observe = |t, x_start: &Tensor| (onlooker.glimpse)(Glimpse { first, t, x_start });
        sample_observed(painter.process, request.sampler, x_t, &mut noise, &mut denoise, &mut observe)
    }
}

fn count_not_finite(images: &Tensor) -> Result<usize, ModelError> {
    let images = images.flatten_from(1)?.to_vec2::<f32>()?;
    Ok(images.iter().filter(|image| image.iter().any(|value| !value.is_finite())).count())
}

/// Guides the prediction, the first `channels`; a learned variance stays the conditional one, for it is no score.
fn guided(conditional: &Tensor, unconditional: &Tensor, weight: f64, channels: usize) -> candle_core::Result<Tensor> {
    let prediction = |output: &Tensor| output.narrow(D::Minus1, 0, channels);
    let guided = ((prediction(conditional)? * (1.0 + weight))? - (prediction(unconditional)? * weight)?)?;
    match conditional.dim(D::Minus1)? - channels {
        0 => Ok(guided),
        rest => Tensor::cat(&[&guided, &conditional.narrow(D::Minus1, channels, rest)?], D::Minus1),
    }
}

/// Memory for all images, asked for before hours are spent on them.
fn room_for(shape: [usize; 4]) -> Result<Vec<u8>, Error> {
    let mut pixels = Vec::new();
    let bytes = shape.iter().try_fold(1usize, |bytes, &size| bytes.checked_mul(size));
    if bytes.is_some_and(|bytes| pixels.try_reserve_exact(bytes).is_ok()) {
        return Ok(pixels);
    }
    let [count, height, width, _] = shape;
    Err(Error::ImagesTooMany { count, height, width })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    #[test]
    fn guidance_exaggerates_the_prediction_and_leaves_a_learned_variance() {
        let output = |values: [f32; 4]| Tensor::new(&[[[values]]], &Device::Cpu).unwrap();
        let (conditional, unconditional) = (output([1.0, 2.0, 0.5, -0.5]), output([0.0, 3.0, 9.0, 9.0]));
        let got = |channels| guided(&conditional, &unconditional, 2.0, channels).unwrap().flatten_all().unwrap();
        assert_eq!(got(2).to_vec1::<f32>().unwrap(), [3.0, 0.0, 0.5, -0.5]);
        assert_eq!(got(4).to_vec1::<f32>().unwrap(), [3.0, 0.0, -16.5, -19.5]);
    }
}
