//! Images drawn on a GPU: a step of the sampler as work that is queued, recorded and replayed.
//!
//! x_t stays on the GPU from its first noise to the last step. A step is the network (twice where a class guides) and one
//! launch of the sampler; what differs from step to step, t and what the sampler makes of it, is uploaded in one small piece.
//! So a step is one upload and one replay, and the host, at most some steps ahead, waits for nothing but the last. All memory
//! is asked for where a full one is told as such, so that whoever keeps some can give it back.
//!
//! As in training, the first step runs as it is and finds the fastest algorithms, and the second is recorded. A recording is
//! of one batch size, so the images are split evenly and the last batch, where one image fewer is wanted, draws one that
//! nobody sees: less work than to find algorithms for another size.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::cuda::{Gpu, Numbers, Recording, Upload};
use ddpm_kernels::ops::diffusion::{SamplerConstants, SamplerState, SamplerStep, place};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{Timestep, sampler_constants};
use ddpm_model::tape::{Tape, Var};
use ddpm_model::unet::Condition;

use super::pictures::{Glimpse, Onlooker, Painter, Request, Start};
use crate::error::Failure;

/// The parts of an upload, in their order; labels come last, where there are any, and then those of no class.
const CONSTANTS: usize = 0;
const PLACE: usize = 1;
const TIMESTEPS: usize = 2;
const LABELS: usize = 3;
const NONE: usize = 4;

/// A drawing's memory on the GPU, and its recorded step.
pub(super) struct GpuPictures<'a> {
    painter: Painter<'a>,
    request: &'a Request<'a>,
    /// Images computed at once.
    n: usize,
    steps: Vec<(Timestep, SamplerConstants)>,
    gpu: Arc<Gpu>,
    upload: Upload,
    /// x_T, where it is not the GPU that makes it.
    start: Option<Upload>,
    state: SamplerState,
    /// The format of labels, where there are any.
    labels: Option<DType>,
    recording: Option<Recording>,
    /// Whether a step ran, so that the next one can be recorded.
    warm: bool,
}

impl fmt::Debug for GpuPictures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuPictures of {} at once", self.n)
    }
}

impl<'a> GpuPictures<'a> {
    /// # Errors
    /// Exit code 2 for a sampler that does not fit the process or a class that does not exist, 4 for a GPU without room.
    pub(super) fn new(painter: Painter<'a>, request: &'a Request<'a>) -> Result<Self, Failure> {
        let device = painter.params.buffer().device();
        let (image, gpu) = (painter.unet.image_shape(), Gpu::of(device)?);
        let n = request.num.div_ceil(request.num.div_ceil(request.batch_size.max(1)).max(1));
        let weight = request.guidance.map_or(0.0, |guidance| guidance.weight);
        let steps = sampler_constants(painter.process, request.sampler, weight)?;
        // What is uploaded later is not looked at again, so every class is looked at here.
        let check = |labels: &[u32]| painter.unet.condition(&vec![0.0; labels.len()], Some(labels), &Device::Cpu);
        let labels = request.classes.as_deref().map(check).transpose()?.and_then(|condition| condition.labels);
        request.guidance.map(|guidance| check(&[guidance.none])).transpose()?;
        let labels = labels.map(|labels| labels.dtype());
        let mut shapes =
            vec![(DType::F64, vec![SamplerConstants::WORDS]), (DType::U32, vec![4]), (DType::F32, vec![n])];
        shapes.extend(labels.map(|dtype| (dtype, vec![n])));
        shapes.extend(request.guidance.and(labels).map(|dtype| (dtype, vec![n])));
        let shape = [n, image.size, image.size, image.in_channels];
        let start = match request.start {
            Start::Seed(_) => None,
            Start::Between(..) => Some(Upload::new(&gpu, &[(DType::F32, shape.to_vec())])?),
        };
        Ok(Self {
            state: SamplerState::new(shape, painter.params.dtype(), device)?,
            upload: Upload::new(&gpu, &shapes)?,
            start,
            labels,
            painter,
            request,
            n,
            steps,
            gpu,
            recording: None,
            warm: false,
        })
    }

    /// Images computed at once: as many as were asked for, or a few less to make all batches alike.
    pub(super) fn batch_size(&self) -> usize {
        self.n
    }

    /// The `count` images from number `first` on, on the CPU.
    ///
    /// # Errors
    /// Exit code 4 where the memory is full; what `onlooker` returns.
    pub(super) fn draw_batch(
        &mut self,
        first: usize,
        count: usize,
        onlooker: &mut Onlooker<'_>,
    ) -> Result<Tensor, Failure> {
        self.begin(first)?;
        self.walk(first, count, onlooker)?;
        let images = self.state.x_t().narrow(0, 0, count).and_then(|images| images.to_device(&Device::Cpu));
        Ok(images.map_err(ModelError::from)?)
    }

    /// Queues x_T.
    fn begin(&mut self, first: usize) -> Result<(), Failure> {
        let Some(start) = &mut self.start else {
            return Ok(self.state.begin(self.request.noise(), first as u64)?);
        };
        let image = self.painter.unet.image_shape();
        let x_t = self.painter.start(self.request, first, &[self.n, image.size, image.size, image.in_channels])?;
        let x_t = x_t.flatten_all().and_then(|x_t| x_t.to_vec1::<f32>()).map_err(ModelError::from)?;
        start.send(&[Numbers::F32(&x_t)])?;
        Ok(self.state.begin_at(start.tensor(0))?)
    }

    /// Queues all steps.
    fn walk(&mut self, first: usize, count: usize, onlooker: &mut Onlooker<'_>) -> Result<(), Failure> {
        for step in 0..self.steps.len() {
            (onlooker.proceed)()?;
            self.send(step, first)?;
            self.run_or_replay()?;
            let x_start = self.state.x_start().narrow(0, 0, count).map_err(ModelError::from)?;
            (onlooker.glimpse)(Glimpse { first, t: self.steps[step].0, x_start: &x_start })?;
        }
        Ok(())
    }

    /// Queues the upload of all that is this step's own.
    fn send(&mut self, step: usize, first: usize) -> Result<(), Failure> {
        let (t, constants) = &self.steps[step];
        let (constants, timesteps) = (constants.words(), vec![t.index() as f32; self.n]);
        // Step 0 of the noise is x_T.
        let place = place(step as u64 + 1, first as u64);
        let labels = self.request.labels(first, self.n).unwrap_or_default();
        let none = self.request.guidance.map_or_else(Vec::new, |guidance| vec![guidance.none; self.n]);
        let as_numbers = [&labels, &none].map(|labels| labels.iter().map(|&l| l as f32).collect::<Vec<f32>>());
        let mut numbers = vec![Numbers::F64(&constants), Numbers::U32(&place), Numbers::F32(&timesteps)];
        // Where no class guides there is no part for the second.
        match self.labels {
            None => {}
            Some(DType::F32) => numbers.extend(as_numbers.iter().map(|labels| Numbers::F32(labels))),
            Some(_) => numbers.extend([Numbers::U32(&labels), Numbers::U32(&none)]),
        }
        Ok(self.upload.send(&numbers)?)
    }

    fn run_or_replay(&mut self) -> Result<(), Failure> {
        if let Some(recording) = &mut self.recording {
            return Ok(recording.replay()?);
        }
        if !self.warm {
            self.queue()?;
            self.warm = true;
            return Ok(());
        }
        // What the first step used belongs to the process; a recording has memory of its own.
        self.gpu.give_back_unused()?;
        let mut recording = self.gpu.record(|| self.queue())?;
        recording.replay()?;
        self.recording = Some(recording);
        Ok(())
    }

    /// One whole step, queued: a line of Algorithm 2 of Ho et al. 2020, for whichever sampler.
    fn queue(&self) -> Result<(), ModelError> {
        let labels = |part| self.labels.map(|_| self.upload.tensor(part).clone());
        let output = self.predict(labels(LABELS))?;
        let unguided = self.request.guidance.map(|_| self.predict(labels(NONE))).transpose()?;
        let step = SamplerStep {
            constants: self.upload.tensor(CONSTANTS),
            place: self.upload.tensor(PLACE),
            noise: self.request.noise(),
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
