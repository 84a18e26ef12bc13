//! The way from noise to images: Algorithm 2 of Ho et al. 2020, for every sampler, a step at a time.
//!
//! x_t stays on the network's device from its first noise to the last step. A step is a pass of the network (two with guidance)
//! and a pass of the sampler, which makes its noise itself; only t and the sampler's constants differ from step to step. On a
//! GPU a step is one upload and one replay, and the host, at most some steps ahead, waits only for the last. All memory is
//! allocated where a failure is reported as full memory, so that a caller that keeps some can free it.

use std::ops::Range;

use candle_core::{Device, Tensor};
use ddpm_kernels::ops::diffusion::{Noise, SamplerConstants, SamplerState, SamplerStep, place};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{Timestep, sampler_constants};
use ddpm_model::tape::{Tape, Var};
use ddpm_model::unet::Condition;

use super::request::{Glimpse, Onlooker, Painter, Request, Start};
use crate::engine::{Clock, Engine, Inputs, Phase, Slots};
use crate::error::Error;

/// A prepared walk, for one batch of images after another.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    painter: Painter<'a>,
    request: &'a Request<'a>,
    steps: Vec<(Timestep, SamplerConstants)>,
    /// Images computed at once: as many as were requested, or a few less so that all batches have one size.
    batch_size: usize,
    state: SamplerState,
    engine: Engine,
    start: Slots<StartInputs>,
    step: Slots<StepInputs>,
}

/// x_T, if the sampler does not make it: f32 `[N, H, W, C]`.
#[derive(Debug)]
struct StartInputs(Option<Tensor>);

/// The inputs of one step. N images.
#[derive(Debug)]
struct StepInputs {
    /// The sampler's constants, f64 `[SamplerConstants::WORDS]`.
    constants: Tensor,
    /// What the noise is drawn for: step and image.
    place: Tensor,
    condition: Condition,
    /// Labels of the class "none", with guidance; `[N]`.
    none: Option<Tensor>,
}

impl Inputs for StartInputs {
    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self(self.0.as_ref().map(f).transpose()?))
    }
}

impl Inputs for StepInputs {
    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self {
            constants: f(&self.constants)?,
            place: f(&self.place)?,
            condition: self.condition.map(f)?,
            none: self.none.as_ref().map(f).transpose()?,
        })
    }
}

impl<'a> Walk<'a> {
    /// # Errors
    /// The sampler does not fit the process, a class does not exist, or the GPU's memory is full.
    pub(super) fn new(painter: Painter<'a>, request: &'a Request<'a>) -> Result<Self, Error> {
        let device = painter.params.buffer().device();
        let weight = request.guidance.map_or(0.0, |guidance| guidance.weight);
        let steps = sampler_constants(painter.process, request.sampler, weight)?;
        if let Some(classes) = &request.classes {
            painter.unet.condition(&vec![0.0; classes.len()], Some(classes), &Device::Cpu)?;
        }
        let engine = Engine::new(device)?;
        let batch_size = engine.batch_size(request.num, request.batch_size);
        let state = SamplerState::new(shape(&painter, batch_size), painter.params.dtype(), device)?;
        let t = painter.process.schedule().timestep(0)?;
        let any = step_inputs(&painter, request, t, &SamplerConstants::default(), 0..batch_size, 0)?;
        let step = engine.slots(&any)?;
        let start = engine.slots(&start_inputs(&painter, request, 0, batch_size)?)?;
        Ok(Self { painter, request, steps, batch_size, state, engine, start, step })
    }

    /// Images computed at once.
    pub(super) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The `count` images from number `first` on, on the CPU.
    ///
    /// # Errors
    /// Memory is full; [`Error::Cancelled`], and the errors of `onlooker`.
    pub(super) fn draw(&mut self, first: usize, count: usize, onlooker: &mut Onlooker<'_>) -> Result<Tensor, Error> {
        let n = self.engine.computed(count, self.batch_size);
        if self.state.x_t().dims().first() != Some(&n) {
            let (dtype, device) = (self.painter.params.dtype(), self.painter.params.buffer().device());
            self.state = SamplerState::new(shape(&self.painter, n), dtype, device)?;
        }
        match self.start.send(start_inputs(&self.painter, self.request, first, n)?)? {
            StartInputs(Some(x_t)) => self.state.begin_at(&x_t)?,
            StartInputs(None) => self.state.begin(self.request.noise(), first as u64)?,
        }
        for (number, (t, constants)) in self.steps.iter().enumerate() {
            if !(onlooker.proceed)() {
                return Err(Error::Cancelled);
            }
            let images = first..first + n;
            let inputs = step_inputs(&self.painter, self.request, *t, constants, images, number)?;
            let inputs = self.step.send(inputs)?;
            let (painter, request, state) = (self.painter, self.request, &self.state);
            self.engine.run(&mut |clock| step(painter, request, state, &inputs, clock))?;
            let x_start = state.x_start().narrow(0, 0, count).map_err(ModelError::from)?;
            (onlooker.glimpse)(Glimpse { first, t: *t, x_start: &x_start })?;
        }
        let images = self.state.x_t().narrow(0, 0, count).and_then(|images| images.to_device(&Device::Cpu));
        Ok(images.map_err(ModelError::from)?)
    }
}

/// The labels of `n` images.
fn shape(painter: &Painter<'_>, n: usize) -> [usize; 4] {
    painter.unet.image_shape().inputs(n)
}

/// x_T of `n` images from number `first` on, if the sampler does not make it.
fn start_inputs(painter: &Painter<'_>, request: &Request<'_>, first: usize, n: usize) -> Result<StartInputs, Error> {
    match request.start {
        Start::Seed(_) => Ok(StartInputs(None)),
        Start::Between(from, to) => Ok(StartInputs(Some(request.between(from, to, first, &shape(painter, n))?))),
    }
}

/// The inputs of the `number`-th step, at `t`, for `images`.
fn step_inputs(
    painter: &Painter<'_>,
    request: &Request<'_>,
    t: Timestep,
    constants: &SamplerConstants,
    images: Range<usize>,
    number: usize,
) -> Result<StepInputs, ModelError> {
    let (host, timesteps) = (Device::Cpu, vec![t.index() as f32; images.len()]);
    let condition = |labels: Option<Vec<u32>>| painter.unet.condition(&timesteps, labels.as_deref(), &host);
    let none = request.guidance.map(|guidance| condition(Some(vec![guidance.none; images.len()]))).transpose()?;
    Ok(StepInputs {
        constants: Tensor::new(&constants.words(), &host)?,
        // Step 0 of the noise is x_T.
        place: Tensor::new(&place(number as u64 + 1, images.start as u64), &host)?,
        condition: condition(request.labels(images))?,
        none: none.and_then(|none| none.labels),
    })
}

/// One iteration of Algorithm 2's loop.
fn step(
    painter: Painter<'_>,
    request: &Request<'_>,
    state: &SamplerState,
    inputs: &StepInputs,
    clock: &mut Clock,
) -> Result<(), ModelError> {
    let predict = |labels: Option<&Tensor>| {
        let condition = Condition { timesteps: inputs.condition.timesteps.clone(), labels: labels.cloned() };
        painter.unet.forward_at(&mut Tape::inference(painter.params), state.input(), &condition)
    };
    clock.begin(Phase::Forward)?;
    let output = predict(inputs.condition.labels.as_ref())?;
    let unguided = request.guidance.map(|_| predict(inputs.none.as_ref())).transpose()?;
    clock.end()?;
    let step = SamplerStep {
        constants: &inputs.constants,
        noise: Noise::Drawn { stream: request.noise(), place: &inputs.place, first_position: 0 },
        output: output.value(),
        unguided: unguided.as_ref().map(Var::value),
    };
    Ok(state.step(&step)?)
}
