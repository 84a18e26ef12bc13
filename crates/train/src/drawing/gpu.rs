//! Images drawn on a GPU: a step of the sampler as work that is queued, recorded and replayed.
//!
//! x_t stays on the GPU from its first noise to the last step. A step is the network (twice where a class guides) and one
//! launch of the sampler; what differs from step to step, t and what the sampler makes of it, is uploaded in one small piece.
//! So a step is one upload and one replay, and the host, at most some steps ahead, waits for nothing but the last. All memory
//! is asked for where a full one is told as such, so that whoever keeps some can give it back.
//!
//! The images are split evenly: the last batch, where one image fewer is wanted, draws one that nobody sees.

use std::fmt;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::cuda::{Gpu, Numbers, Upload};
use ddpm_kernels::ops::diffusion::{Noise, SamplerConstants, SamplerState, SamplerStep, place};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{Timestep, sampler_constants};
use ddpm_model::tape::{Tape, Var};
use ddpm_model::unet::Condition;

use super::pictures::{Glimpse, Onlooker, Painter, Request, Start, ask};
use super::replay::{Labels, Replay, evenly, labels_dtype};
use crate::error::Error;

/// The parts of an upload, in their order; labels come last, where there are any, and then those of no class.
const CONSTANTS: usize = 0;
const PLACE: usize = 1;
const TIMESTEPS: usize = 2;
const LABELS: usize = 3;
const NONE: usize = 4;

/// A drawing's memory on the GPU, and its recorded step.
pub(super) struct GpuPictures<'a> {
    steps: Vec<(Timestep, SamplerConstants)>,
    /// x_T, where it is not the GPU that makes it.
    start: Option<Upload>,
    step: Step<'a>,
    replay: Replay,
}

/// A step: what it is made of, and where its numbers lie.
struct Step<'a> {
    painter: Painter<'a>,
    request: &'a Request<'a>,
    /// Images computed at once.
    n: usize,
    upload: Upload,
    state: SamplerState,
    /// The format of labels, where there are any.
    labels: Option<DType>,
}

impl fmt::Debug for GpuPictures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuPictures of {} at once", self.step.n)
    }
}

impl<'a> GpuPictures<'a> {
    /// # Errors
    /// A sampler that does not fit the process, a class that does not exist, or a GPU without room.
    pub(super) fn new(painter: Painter<'a>, request: &'a Request<'a>) -> Result<Self, Error> {
        let device = painter.params.buffer().device();
        let (image, gpu) = (painter.unet.image_shape(), Gpu::of(device)?);
        let n = evenly(request.num, request.batch_size);
        let weight = request.guidance.map_or(0.0, |guidance| guidance.weight);
        let steps = sampler_constants(painter.process, request.sampler, weight)?;
        let labels =
            request.classes.as_deref().map(|classes| labels_dtype(painter.unet, classes)).transpose()?.flatten();
        request.guidance.map(|guidance| labels_dtype(painter.unet, &[guidance.none])).transpose()?;
        let mut shapes =
            vec![(DType::F64, vec![SamplerConstants::WORDS]), (DType::U32, vec![4]), (DType::F32, vec![n])];
        shapes.extend(labels.map(|dtype| (dtype, vec![n])));
        shapes.extend(request.guidance.and(labels).map(|dtype| (dtype, vec![n])));
        let shape = [n, image.size, image.size, image.in_channels];
        let start = match request.start {
            Start::Seed(_) => None,
            Start::Between(..) => Some(Upload::new(&gpu, &[(DType::F32, shape.to_vec())])?),
        };
        let state = SamplerState::new(shape, painter.params.dtype(), device)?;
        let step = Step { painter, request, n, upload: Upload::new(&gpu, &shapes)?, state, labels };
        Ok(Self { steps, start, step, replay: Replay::new(&gpu) })
    }

    /// Images computed at once: as many as were asked for, or a few less to make all batches alike.
    pub(super) fn batch_size(&self) -> usize {
        self.step.n
    }

    /// The `count` images from number `first` on, on the CPU.
    ///
    /// # Errors
    /// A full memory; [`Error::Cancelled`], and what `onlooker` returns.
    pub(super) fn draw_batch(
        &mut self,
        first: usize,
        count: usize,
        onlooker: &mut Onlooker<'_>,
    ) -> Result<Tensor, Error> {
        self.begin(first)?;
        self.walk(first, count, onlooker)?;
        let images = self.step.state.x_t().narrow(0, 0, count).and_then(|images| images.to_device(&Device::Cpu));
        Ok(images.map_err(ModelError::from)?)
    }

    /// Queues x_T.
    fn begin(&mut self, first: usize) -> Result<(), Error> {
        let Step { painter, request, n, state, .. } = &self.step;
        let Some(start) = &mut self.start else {
            return Ok(state.begin(request.noise(), first as u64)?);
        };
        let image = painter.unet.image_shape();
        let x_t = painter.start(request, first, &[*n, image.size, image.size, image.in_channels])?;
        let x_t = x_t.flatten_all().and_then(|x_t| x_t.to_vec1::<f32>()).map_err(ModelError::from)?;
        start.send(&[Numbers::F32(&x_t)])?;
        Ok(state.begin_at(start.tensor(0))?)
    }

    /// Queues all steps.
    fn walk(&mut self, first: usize, count: usize, onlooker: &mut Onlooker<'_>) -> Result<(), Error> {
        for (number, (t, constants)) in self.steps.iter().enumerate() {
            ask(onlooker.proceed)?;
            self.step.send(number, *t, constants, first)?;
            self.replay.run(|| self.step.queue())?;
            let x_start = self.step.state.x_start().narrow(0, 0, count).map_err(ModelError::from)?;
            (onlooker.glimpse)(Glimpse { first, t: *t, x_start: &x_start })?;
        }
        Ok(())
    }
}

impl Step<'_> {
    /// Queues the upload of all that is the own of the `number`-th step, to `t`, of images from number `first` on.
    fn send(&mut self, number: usize, t: Timestep, constants: &SamplerConstants, first: usize) -> Result<(), Error> {
        let (constants, timesteps) = (constants.words(), vec![t.index() as f32; self.n]);
        // Step 0 of the noise is x_T.
        let place = place(number as u64 + 1, first as u64);
        let mut numbers = vec![Numbers::F64(&constants), Numbers::U32(&place), Numbers::F32(&timesteps)];
        let none = self.request.guidance.map(|guidance| vec![guidance.none; self.n]);
        let labels = [self.request.labels(first, self.n), none].map(|labels| Some(Labels::new(labels?, self.labels?)));
        numbers.extend(labels.iter().flatten().map(Labels::numbers));
        Ok(self.upload.send(&numbers)?)
    }

    /// One whole step, queued: a line of Algorithm 2 of Ho et al. 2020, for whichever sampler.
    fn queue(&self) -> Result<(), ModelError> {
        let labels = |part| self.labels.map(|_| self.upload.tensor(part).clone());
        let output = self.predict(labels(LABELS))?;
        let unguided = self.request.guidance.map(|_| self.predict(labels(NONE))).transpose()?;
        let step = SamplerStep {
            constants: self.upload.tensor(CONSTANTS),
            noise: Noise::Drawn { stream: self.request.noise(), place: self.upload.tensor(PLACE), first_position: 0 },
            output: output.value(),
            unguided: unguided.as_ref().map(Var::value),
        };
        Ok(self.state.step(&step)?)
    }

    fn predict(&self, labels: Option<Tensor>) -> Result<Var, ModelError> {
        let mut tape = Tape::inference(self.painter.params);
        let condition = Condition { timesteps: self.upload.tensor(TIMESTEPS).clone(), labels };
        self.painter.unet.forward_at(&mut tape, self.state.input(), &condition)
    }
}
