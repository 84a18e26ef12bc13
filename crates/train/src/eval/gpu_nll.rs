//! The bound of images on a GPU: a timestep as work that is queued, recorded and replayed.
//!
//! Images are uploaded once, as bytes. What differs from timestep to timestep is a small upload; then x_t is made where the
//! network reads it, with the noise that the CPU would draw, and one launch makes of the network's output the two numbers of
//! each image. They come back a few timesteps later, so that the GPU never waits for the host.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use ddpm_kernels::cuda::{Download, Gpu, IN_FLIGHT, Numbers, Upload};
use ddpm_kernels::ops::diffusion::{NoisyImages, SampleConstants, bound, place, q_sample};
use ddpm_kernels::philox::Philox;
use ddpm_model::ModelError;
use ddpm_model::diffusion::{BitsPerDim, BoundTerms, DiffusionProcess, Timestep, bound_constants};
use ddpm_model::tape::Tape;
use ddpm_model::unet::Condition;

use super::images::{EvalBatch, EvalImages};
use crate::error::Failure;
use crate::training::model::{Model, data_classes};
use crate::training::replay::{Labels, Replay, evenly, labels_dtype};

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
    /// By timestep: as the network knows it, and what it makes of images.
    steps: Vec<(Timestep, SampleConstants)>,
    batch: Upload,
    pass: Pass<'a>,
    download: Download,
    replay: Replay,
}

/// A timestep: what it is made of, and where its numbers lie.
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
    /// Exit code 4 for a GPU without room.
    pub(super) fn new(
        model: &'a Model,
        process: &'a DiffusionProcess,
        images: &EvalImages,
        batch_size: usize,
        noise: Philox,
    ) -> Result<Self, Failure> {
        let device = model.params.buffer().device();
        let (gpu, n) = (Gpu::of(device)?, evenly(images.len(), batch_size));
        let image = model.unet.image_shape();
        let labels = data_classes(&model.config).map(|_| labels_dtype(&model.unet, &[0])).transpose()?.flatten();
        let mut shapes = vec![(DType::U8, vec![n, image.size, image.size, image.in_channels])];
        shapes.extend(labels.map(|dtype| (dtype, vec![n])));
        let of_step = [(DType::F64, vec![n, SampleConstants::WORDS]), (DType::U32, vec![4]), (DType::F32, vec![n])];
        let upload = Upload::new(&gpu, &of_step)?;
        let results = Tensor::zeros((n, RESULTS), DType::F64, device).map_err(ModelError::from)?;
        let schedule = process.schedule();
        let steps = (0..schedule.len()).map(|index| {
            let t = schedule.timestep(index)?;
            Ok::<_, Failure>((process.network_timestep(t)?, bound_constants(process, t)?))
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

    /// The terms of every timestep, ascending, of every image in `batch`. `passed` is told of each pass through the network.
    ///
    /// # Errors
    /// Exit code 2 for a label that the model does not know, 4 where the memory is full.
    pub(super) fn evaluate(&mut self, batch: &EvalBatch, passed: &mut dyn FnMut()) -> Result<Vec<BitsPerDim>, Failure> {
        let mut images = BitsPerDim::before_any_step(self.process, &batch.x_start)?;
        self.send_batch(batch)?;
        let mut read = 0;
        for (t, constants) in &self.steps {
            self.pass.send(*t, constants, batch.first)?;
            self.replay.run(|| self.pass.queue(&self.batch))?;
            self.download.ask(&[&self.pass.results])?;
            passed();
            if self.download.pending() == IN_FLIGHT {
                read_step(&mut self.download, self.process, read, &mut images)?;
                read += 1;
            }
        }
        for index in read..self.steps.len() {
            read_step(&mut self.download, self.process, index, &mut images)?;
        }
        Ok(images)
    }

    /// Queues the upload of the images. Those that a smaller batch lacks are black, and of its first image's class.
    fn send_batch(&mut self, batch: &EvalBatch) -> Result<(), Failure> {
        let n = self.pass.n;
        let mut pixels = batch.pixels.clone();
        pixels.resize(n * pixels.len() / batch.x_start.dims()[0].max(1), 0);
        let labels = batch.labels.as_ref().zip(self.pass.labels);
        let labels = labels.map(|(labels, dtype)| {
            labels_dtype(&self.pass.model.unet, labels)?;
            let mut labels = labels.clone();
            labels.resize(n, labels.first().copied().unwrap_or_default());
            Ok::<_, Failure>(Labels::new(labels, dtype))
        });
        let labels = labels.transpose()?;
        let numbers = [Some(Numbers::U8(&pixels)), labels.as_ref().map(Labels::numbers)];
        Ok(self.batch.send(&numbers.into_iter().flatten().collect::<Vec<_>>())?)
    }
}

/// Waits for the oldest results, those of the step `index`.
fn read_step(
    download: &mut Download,
    process: &DiffusionProcess,
    index: usize,
    images: &mut [BitsPerDim],
) -> Result<(), Failure> {
    let results = download.read()?.unwrap_or_default();
    let snr = process.schedule().snr()[index];
    for (image, of_image) in images.iter_mut().zip(results.iter().flat_map(|numbers| numbers.chunks_exact(RESULTS))) {
        let [vb, xstart_mse] = [of_image[0], of_image[1]];
        image.set(index, &BoundTerms { vb, xstart_mse, mse: snr * xstart_mse });
    }
    Ok(())
}

impl Pass<'_> {
    /// Queues the upload of all that is `t`'s own, for images from number `first` on.
    fn send(&mut self, t: Timestep, constants: &SampleConstants, first: usize) -> Result<(), Failure> {
        let (constants, timesteps) = (constants.words().repeat(self.n), vec![t.index() as f32; self.n]);
        let place = place(t.index() as u64, first as u64);
        Ok(self.upload.send(&[Numbers::F64(&constants), Numbers::U32(&place), Numbers::F32(&timesteps)])?)
    }

    /// A timestep, queued: x_t, the network, the bound.
    fn queue(&self, batch: &Upload) -> Result<(), ModelError> {
        let noisy = NoisyImages {
            images: batch.tensor(PIXELS),
            samples: self.upload.tensor(CONSTANTS),
            noise: self.noise,
            place: self.upload.tensor(PLACE),
            first_position: 0,
        };
        let params = &self.model.params;
        let x_t = q_sample(&noisy, params.dtype())?;
        let labels = self.labels.map(|_| batch.tensor(LABELS).clone());
        let condition = Condition { timesteps: self.upload.tensor(TIMESTEPS).clone(), labels };
        let output = self.model.unet.forward_at(&mut Tape::inference(params), &x_t, &condition)?;
        Ok(self.gpu.copy(&bound(&noisy, output.value())?, &self.results)?)
    }
}
