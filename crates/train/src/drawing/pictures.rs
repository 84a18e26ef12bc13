//! Images drawn from a model. Image `k` of a seed is a function of (weights, sampler, seed, k) alone: its noise is a stream of
//! its own, so neither the number of images nor the size of a batch changes it, and the pictures of a run can be
//! compared.
//!
//! `walk` takes the steps from noise to an image.

use std::ops::Range;

use candle_core::Tensor;
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{Timestep, slerp};
use ddpm_model::tape::Tape;
use ddpm_model::unet::ImageShape;

use super::request::{Glimpse, Images, Onlooker, Painter, Request, Start};
use super::walk::Walk;
use crate::error::Error;
use crate::noise::normals;
use crate::pixels::to_bytes;

impl Painter<'_> {
    /// Draws, or gives up with `None` once `is_over`, which is called before every pass through the network.
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
    /// The sampler does not fit the process, or a class does not exist; [`Error::Cancelled`], and the errors of `onlooker`.
    pub fn draw(&self, request: &Request<'_>, onlooker: &mut Onlooker<'_>) -> Result<Images, Error> {
        self.prepare(request)?.draw(onlooker)
    }

    /// Prepares everything that does not depend on the image.
    ///
    /// # Errors
    /// As [`Self::draw`].
    pub fn prepare<'a>(&'a self, request: &'a Request<'a>) -> Result<Drawing<'a>, Error> {
        Ok(Drawing { request, walk: Walk::new(*self, request)?, shape: self.unet.image_shape() })
    }

    /// The network's output at one t for all images.
    ///
    /// # Errors
    /// A class does not exist.
    pub fn denoise(&self, x_t: &Tensor, t: Timestep, labels: Option<&[u32]>) -> Result<Tensor, Error> {
        let timesteps = vec![t.index() as f32; x_t.dims()[0]];
        let mut tape = Tape::inference(self.params);
        Ok(self.unet.forward(&mut tape, x_t, &timesteps, labels)?.to_host()?)
    }
}

impl Request<'_> {
    /// The stream of all noise: step 0 of it is x_T, step 1 + s the noise of step s.
    pub(super) fn noise(&self) -> Philox {
        let (Start::Seed(seed) | Start::Between(seed, _)) = self.start;
        Philox::new(seed, Purpose::Sample)
    }

    /// The classes of the images of these numbers.
    pub(super) fn labels(&self, images: Range<usize>) -> Option<Vec<u32>> {
        let classes = self.classes.as_ref()?;
        Some(images.map(|k| classes[k % classes.len().max(1)]).collect())
    }

    /// x_T of the images from number `first` on, between the first noises of two seeds.
    pub(super) fn between(&self, from: u64, to: u64, first: usize, shape: &[usize; 4]) -> Result<Tensor, Error> {
        let one = [1, shape[1], shape[2], shape[3]];
        let noise = |seed| normals(Philox::new(seed, Purpose::Sample), 0, 0, &one);
        let (from, to) = (noise(from)?, noise(to)?);
        let last = self.num.saturating_sub(1).max(1) as f64;
        let latents = (first..first + shape[0]).map(|k| slerp(&from, &to, k as f64 / last));
        let latents = latents.collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&latents, 0).map_err(ModelError::from)?)
    }
}

/// A prepared request. Each time it draws the same images; a GPU replays the recorded steps.
#[derive(Debug)]
pub struct Drawing<'a> {
    request: &'a Request<'a>,
    walk: Walk<'a>,
    shape: ImageShape,
}

impl Drawing<'_> {
    /// Draws all images.
    ///
    /// # Errors
    /// As [`Painter::draw`].
    pub fn draw(&mut self, onlooker: &mut Onlooker<'_>) -> Result<Images, Error> {
        let shape = self.shape.inputs(self.request.num);
        let mut images = Images { pixels: room_for(shape)?, shape, not_finite: 0 };
        self.draw_parts::<Error>(&|_| false, onlooker, &mut |_, part| {
            images.pixels.extend(part.pixels);
            images.not_finite += part.not_finite;
            Ok(())
        })?;
        Ok(images)
    }

    /// Draws batch by batch: `keep` gets the number of a batch's first image and its images as soon as they are finished. Batches
    /// that `are_there` already are left out.
    ///
    /// # Errors
    /// As [`Painter::draw`], and those of `keep`.
    pub fn draw_parts<E: From<Error>>(
        &mut self,
        are_there: &dyn Fn(Range<usize>) -> bool,
        onlooker: &mut Onlooker<'_>,
        keep: &mut dyn FnMut(usize, Images) -> Result<(), E>,
    ) -> Result<(), E> {
        let (image, num, batch_size) = (self.shape, self.request.num, self.walk.batch_size());
        for first in (0..num).step_by(batch_size) {
            let count = batch_size.min(num - first);
            if !are_there(first..first + count) {
                keep(first, self.draw_part(first, count, image, onlooker)?)?;
            }
            (onlooker.progress)(first + count);
        }
        Ok(())
    }

    fn draw_part(
        &mut self,
        first: usize,
        count: usize,
        image: ImageShape,
        onlooker: &mut Onlooker<'_>,
    ) -> Result<Images, Error> {
        let x_start = self.walk.draw(first, count, onlooker)?;
        Ok(Images { pixels: to_bytes(&x_start)?, shape: image.inputs(count), not_finite: count_not_finite(&x_start)? })
    }
}

fn count_not_finite(images: &Tensor) -> Result<usize, ModelError> {
    let images = images.flatten_from(1)?.to_vec2::<f32>()?;
    Ok(images.iter().filter(|image| image.iter().any(|value| !value.is_finite())).count())
}

/// Memory for all images, allocated before hours are spent on them.
fn room_for(shape: [usize; 4]) -> Result<Vec<u8>, Error> {
    let mut pixels = Vec::new();
    let bytes = shape.iter().try_fold(1usize, |bytes, &size| bytes.checked_mul(size));
    if bytes.is_some_and(|bytes| pixels.try_reserve_exact(bytes).is_ok()) {
        return Ok(pixels);
    }
    let [count, height, width, _] = shape;
    Err(Error::ImagesTooMany { count, height, width })
}
