//! The bound of a batch of images, a timestep at a time.
//!
//! The images are copied to the device once, as bytes; only small inputs differ from timestep to timestep. x_t is computed on
//! the device, and one pass turns the network's output into two numbers for each image.

use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::buffer::copy;
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, bound, place, q_sample};
use ddpm_kernels::philox::Philox;
use ddpm_model::ModelError;
use ddpm_model::diffusion::{BitsPerDim, BoundTerms, DiffusionProcess, Timestep};
use ddpm_model::tape::Tape;
use ddpm_model::unet::{Condition, UNet};

use super::images::{EvalBatch, EvalImages};
use crate::engine::{Clock, Engine, Inputs, Phase, Results, Slots};
use crate::error::Error;
use crate::exchange::Model;
use crate::pixels::to_bytes;

/// Results for each image at a timestep: its term of the bound, and the squared error of x_0.
const RESULTS: usize = 2;

/// Evaluates a model on images.
pub(super) struct Judge<'a> {
    model: &'a Model,
    process: &'a DiffusionProcess,
    noise: Philox,
    steps: Vec<Step>,
    /// Images evaluated at once.
    batch_size: usize,
    engine: Engine,
    batch: Slots<BatchInputs>,
    step: Slots<StepInputs>,
    results: Results,
    in_network: Option<Duration>,
}

/// A timestep of the process: its own number, the network's, and its constants.
struct Step {
    t: Timestep,
    network_t: Timestep,
    constants: SampleConstants,
}

/// The inputs that are the same at every timestep.
struct BatchInputs {
    /// u8 `[N, H, W, C]`.
    images: Tensor,
    /// `[N]`, as the network takes them, if it has classes.
    labels: Option<Tensor>,
}

/// The inputs of one timestep.
struct StepInputs {
    /// f64 `[N, SampleConstants::WORDS]`.
    samples: Tensor,
    /// What the noise is drawn for: timestep and image.
    place: Tensor,
    /// `[N]`.
    timesteps: Tensor,
}

impl Inputs for BatchInputs {
    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self { images: f(&self.images)?, labels: self.labels.as_ref().map(f).transpose()? })
    }
}

impl Inputs for StepInputs {
    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self { samples: f(&self.samples)?, place: f(&self.place)?, timesteps: f(&self.timesteps)? })
    }
}

impl Step {
    /// The inputs of `unet` for `n` images from number `first` on.
    fn inputs(&self, unet: &UNet, n: usize, first: usize) -> Result<StepInputs, ModelError> {
        let t = self.network_t.index();
        Ok(StepInputs {
            samples: SampleConstants::tensor(&vec![self.constants; n], &Device::Cpu)?,
            place: Tensor::new(&place(t as u64, first as u64), &Device::Cpu)?,
            timesteps: Tensor::new(unet.times(&vec![t as f32; n]), &Device::Cpu)?,
        })
    }
}

impl<'a> Judge<'a> {
    /// Evaluates `model` with `process` on `images`, at most `batch_size` at once, with this noise.
    ///
    /// # Errors
    /// The GPU's memory is full.
    pub(super) fn new(
        model: &'a Model,
        process: &'a DiffusionProcess,
        images: &EvalImages,
        batch_size: usize,
        noise: Philox,
    ) -> Result<Self, Error> {
        let (schedule, device) = (process.schedule(), model.params.buffer().device());
        let steps = (0..schedule.len()).map(|index| {
            let t = schedule.timestep(index)?;
            let (network_t, constants) = (process.network_timestep(t)?, process.constants(t)?);
            Ok::<_, Error>(Step { t, network_t, constants })
        });
        let steps = steps.collect::<Result<Vec<_>, _>>()?;
        let engine = Engine::new(device)?;
        let batch_size = engine.batch_size(images.len(), batch_size);
        let image = model.unet.image_shape();
        let labels = model.config.data_classes().map(|_| vec![0; batch_size]);
        let pixels = vec![0; image.inputs(batch_size).iter().product()];
        let t = schedule.timestep(0)?;
        let any = Step { t, network_t: t, constants: SampleConstants::default() };
        let results = Tensor::zeros((batch_size, RESULTS), DType::F64, device).map_err(ModelError::from)?;
        Ok(Self {
            batch: engine.slots(&batch_inputs(model, pixels, labels.as_deref(), batch_size)?)?,
            step: engine.slots(&any.inputs(&model.unet, batch_size, 0)?)?,
            results: engine.results(vec![results])?,
            in_network: Some(Duration::ZERO),
            model,
            process,
            noise,
            steps,
            batch_size,
            engine,
        })
    }

    /// Images evaluated at once.
    pub(super) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The time spent in the network, if it was measured.
    pub(super) fn in_network(&self) -> Option<Duration> {
        self.in_network
    }

    /// The terms of every timestep, ascending, of every image in `batch`. `passed` is called after each pass through the
    /// network.
    ///
    /// # Errors
    /// Labels are unknown, missing or not needed; memory is full.
    pub(super) fn evaluate(&mut self, batch: &EvalBatch, passed: &mut dyn FnMut()) -> Result<Vec<BitsPerDim>, Error> {
        let mut images = BitsPerDim::before_any_step(self.process, &batch.x_start)?;
        let n = self.engine.computed(images.len(), self.batch_size);
        let sent = self.batch.send(self.padded(batch, n)?)?;
        // Discard the results of a batch that failed.
        while self.results.read()?.is_some() {}
        let mut read = 0;
        for number in 0..self.steps.len() {
            let inputs = self.step.send(self.steps[number].inputs(&self.model.unet, n, batch.first)?)?;
            let (model, noise, results) = (self.model, self.noise, self.results.tensor(0));
            self.engine.run(&mut |clock| pass(model, noise, &sent, &inputs, results, clock))?;
            self.results.ask()?;
            let phases = self.engine.phases();
            self.in_network = self.in_network.zip(phases).map(|(time, phases)| time + phases.forward);
            let last = number + 1 == self.steps.len();
            let most = if last { 0 } else { self.engine.most_pending().saturating_sub(1) };
            while self.results.pending() > most {
                self.read(read, &mut images)?;
                read += 1;
                passed();
            }
        }
        Ok(images)
    }

    /// Waits for the results of the oldest pending step.
    fn read(&mut self, number: usize, images: &mut [BitsPerDim]) -> Result<(), Error> {
        let Some(results) = self.results.read()? else {
            return Err(Error::other(format!("nothing was asked of timestep {number}")));
        };
        let of_images = results.iter().flat_map(|numbers| numbers.chunks_exact(RESULTS));
        for (image, of_image) in images.iter_mut().zip(of_images) {
            image.set(number, &BoundTerms::new(self.process, self.steps[number].t, of_image[0], of_image[1]));
        }
        Ok(())
    }

    /// `n` images that begin with those of `batch`. The rest are black, with the class of the first image.
    fn padded(&self, batch: &EvalBatch, n: usize) -> Result<BatchInputs, Error> {
        let conditional = self.model.config.data_classes().is_some();
        if batch.labels.is_some() != conditional {
            return Err(ModelError::Labels { conditional }.into());
        }
        let mut pixels = to_bytes(&batch.x_start)?;
        pixels.resize(n * pixels.len() / batch.x_start.dims()[0].max(1), 0);
        let labels = batch.labels.clone().map(|mut labels| {
            labels.resize(n, labels.first().copied().unwrap_or_default());
            labels
        });
        Ok(batch_inputs(self.model, pixels, labels.as_deref(), n)?)
    }
}

/// `n` images with these pixels.
fn batch_inputs(model: &Model, pixels: Vec<u8>, labels: Option<&[u32]>, n: usize) -> Result<BatchInputs, ModelError> {
    let image = model.unet.image_shape();
    let images = Tensor::from_vec(pixels, &image.inputs(n)[..], &Device::Cpu)?;
    let labels = model.unet.condition(&vec![0.0; n], labels, &Device::Cpu)?.labels;
    Ok(BatchInputs { images, labels })
}

/// One timestep: x_t, the network, and the bound, which is written to `results`.
fn pass(
    model: &Model,
    noise: Philox,
    batch: &BatchInputs,
    inputs: &StepInputs,
    results: &Tensor,
    clock: &mut Clock,
) -> Result<(), ModelError> {
    let StepInputs { samples, place, timesteps } = inputs;
    let noise = Noise::Drawn { stream: noise, place, first_position: 0 };
    let noisy = NoisyImages { images: &batch.images, samples, noise };
    let x_t = q_sample(&noisy, model.params.dtype())?;
    clock.begin(Phase::Forward)?;
    let condition = Condition { timesteps: timesteps.clone(), labels: batch.labels.clone() };
    let output = model.unet.forward_at(&mut Tape::inference(&model.params), &x_t, &condition)?;
    clock.end()?;
    Ok(copy(&bound(&noisy, output.value())?, &results.narrow(0, 0, timesteps.elem_count())?)?)
}
