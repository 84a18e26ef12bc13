//! The bound of images on a GPU: a timestep as work that is queued, recorded and replayed.
//!
//! Images are uploaded once, as bytes (to the few places that every upload has). What differs from timestep to timestep is a
//! small upload; then x_t is made where the network reads it, with the noise that the CPU would draw, and one launch makes of
//! the network's output the two numbers of each image. They come back a few timesteps later, so that the GPU never waits for
//! the host.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use ddpm_kernels::cuda::{Download, Gpu, IN_FLIGHT, Numbers, Upload};
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, bound, place, q_sample};
use ddpm_kernels::philox::Philox;
use ddpm_model::ModelError;
use ddpm_model::diffusion::{BitsPerDim, BoundTerms, DiffusionProcess, Timestep};
use ddpm_model::tape::Tape;
use ddpm_model::unet::Condition;

use super::images::{EvalBatch, EvalImages};
use crate::drawing::replay::{Labels, Replay, evenly, labels_dtype};
use crate::error::Error;
use crate::exchange::Model;
use crate::pixels::to_bytes;

/// The parts of a timestep's upload, in their order.
const CONSTANTS: usize = 0;
const PLACE: usize = 1;
const TIMESTEPS: usize = 2;
/// The parts of a batch's.
const PIXELS: usize = 0;
const LABELS: usize = 1;
/// Results of an image: its term of the bound, and the squared error of x_0.
const RESULTS: usize = 2;

/// An evaluation's memory on the GPU, and its recorded timestep.
pub(super) struct GpuNll<'a> {
    process: &'a DiffusionProcess,
    steps: Vec<Step>,
    batch: Upload,
    pass: Pass<'a>,
    download: Download,
    replay: Replay,
}

/// A timestep of the process: its own number and the network's, and what it makes of images.
struct Step {
    t: Timestep,
    network_t: Timestep,
    constants: SampleConstants,
}

/// A pass through the network: what it is made of, and where its numbers lie.
struct Pass<'a> {
    model: &'a Model,
    noise: Philox,
    gpu: Arc<Gpu>,
    /// Images computed at once.
    n: usize,
    upload: Upload,
    /// The format of labels, where there are any.
    labels: Option<DType>,
    /// f64 `[N, RESULTS]`.
    results: Tensor,
}

impl<'a> GpuNll<'a> {
    /// Of `model` by `process` on `images`, at most `batch_size` at once.
    ///
    /// # Errors
    /// A GPU without room.
    pub(super) fn new(
        model: &'a Model,
        process: &'a DiffusionProcess,
        images: &EvalImages,
        batch_size: usize,
        noise: Philox,
    ) -> Result<Self, Error> {
        let device = model.params.buffer().device();
        let (gpu, n) = (Gpu::of(device)?, evenly(images.len(), batch_size));
        let image = model.unet.image_shape();
        let labels = model.config.data_classes().map(|_| labels_dtype(&model.unet, &[0])).transpose()?.flatten();
        let mut shapes = vec![(DType::U8, vec![n, image.size, image.size, image.in_channels])];
        shapes.extend(labels.map(|dtype| (dtype, vec![n])));
        let of_step = [(DType::F64, vec![n, SampleConstants::WORDS]), (DType::U32, vec![4]), (DType::F32, vec![n])];
        let upload = Upload::new(&gpu, &of_step)?;
        let results = Tensor::zeros((n, RESULTS), DType::F64, device).map_err(ModelError::from)?;
        let schedule = process.schedule();
        let steps = (0..schedule.len()).map(|index| {
            let t = schedule.timestep(index)?;
            let (network_t, constants) = (process.network_timestep(t)?, process.constants(t)?);
            Ok::<_, Error>(Step { t, network_t, constants })
        });
        Ok(Self {
            process,
            steps: steps.collect::<Result<_, _>>()?,
            batch: Upload::new(&gpu, &shapes)?,
            download: Download::new(&gpu, &[n * RESULTS])?,
            replay: Replay::new(&gpu),
            pass: Pass { model, noise, gpu, n, upload, labels, results },
        })
    }

    /// Images computed at once.
    pub(super) fn batch_size(&self) -> usize {
        self.pass.n
    }

    /// The terms of every timestep, ascending, of every image in `batch`. `passed` is told of each pass through the network
    /// that is done.
    ///
    /// # Errors
    /// Labels that the model does not know or need; a full memory.
    pub(super) fn evaluate(&mut self, batch: &EvalBatch, passed: &mut dyn FnMut()) -> Result<Vec<BitsPerDim>, Error> {
        let mut images = BitsPerDim::before_any_step(self.process, &batch.x_start)?;
        self.send_batch(batch)?;
        // What a batch that failed has left.
        while self.download.read()?.is_some() {}
        for number in 0..self.steps.len() {
            self.queue(number, batch.first)?;
            if self.download.pending() == IN_FLIGHT {
                self.read(number + 1 - IN_FLIGHT, &mut images)?;
                passed();
            }
        }
        for number in self.steps.len() - self.download.pending()..self.steps.len() {
            self.read(number, &mut images)?;
            passed();
        }
        Ok(images)
    }

    /// Queues a step, and the way back of its results.
    fn queue(&mut self, number: usize, first: usize) -> Result<(), Error> {
        self.pass.send(&self.steps[number], first)?;
        self.replay.run(|| self.pass.queue(&self.batch))?;
        Ok(self.download.ask(&[&self.pass.results])?)
    }

    /// Waits for the results of a step, the oldest that is pending.
    fn read(&mut self, number: usize, images: &mut [BitsPerDim]) -> Result<(), Error> {
        let Some(results) = self.download.read()? else {
            return Err(Error::other(format!("nothing was asked of timestep {number}")));
        };
        let of_images = results.iter().flat_map(|numbers| numbers.chunks_exact(RESULTS));
        for (image, of_image) in images.iter_mut().zip(of_images) {
            image.set(number, &BoundTerms::new(self.process, self.steps[number].t, of_image[0], of_image[1]));
        }
        Ok(())
    }

    /// Queues the upload of the images. Those that a smaller batch lacks are black, and of its first image's class.
    fn send_batch(&mut self, batch: &EvalBatch) -> Result<(), Error> {
        let (n, unet) = (self.pass.n, &self.pass.model.unet);
        let mut pixels = to_bytes(&batch.x_start)?;
        pixels.resize(n * pixels.len() / batch.x_start.dims()[0].max(1), 0);
        if batch.labels.is_some() != self.pass.labels.is_some() {
            return Err(ModelError::Labels { conditional: self.pass.labels.is_some() }.into());
        }
        let labels = batch.labels.clone().zip(self.pass.labels).map(|(mut labels, dtype)| {
            labels_dtype(unet, &labels)?;
            labels.resize(n, labels.first().copied().unwrap_or_default());
            Ok::<_, Error>(Labels::new(labels, dtype))
        });
        let labels = labels.transpose()?;
        let numbers = [Some(Numbers::U8(&pixels)), labels.as_ref().map(Labels::numbers)];
        Ok(self.batch.send(&numbers.into_iter().flatten().collect::<Vec<_>>())?)
    }
}

impl Pass<'_> {
    /// Queues the upload of all that is the step's own, for images from number `first` on.
    fn send(&mut self, step: &Step, first: usize) -> Result<(), Error> {
        let t = step.network_t.index();
        let (constants, timesteps) = (step.constants.words().repeat(self.n), vec![t as f32; self.n]);
        let place = place(t as u64, first as u64);
        Ok(self.upload.send(&[Numbers::F64(&constants), Numbers::U32(&place), Numbers::F32(&timesteps)])?)
    }

    /// A timestep, queued: x_t, the network, the bound.
    fn queue(&self, batch: &Upload) -> Result<(), ModelError> {
        let noisy = NoisyImages {
            images: batch.tensor(PIXELS),
            samples: self.upload.tensor(CONSTANTS),
            noise: Noise::Drawn { stream: self.noise, place: self.upload.tensor(PLACE), first_position: 0 },
        };
        let params = &self.model.params;
        let x_t = q_sample(&noisy, params.dtype())?;
        let labels = self.labels.map(|_| batch.tensor(LABELS).clone());
        let condition = Condition { timesteps: self.upload.tensor(TIMESTEPS).clone(), labels };
        let output = self.model.unet.forward_at(&mut Tape::inference(params), &x_t, &condition)?;
        Ok(self.gpu.copy(&bound(&noisy, output.value())?, &self.results)?)
    }
}
