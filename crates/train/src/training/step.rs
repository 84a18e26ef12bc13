//! One optimizer step: Algorithm 1 of Ho et al. 2020, line by line in [`Learner::step`] and [`Learner::take_gradient`].
//!
//! Everything random is a function of the seed, the step and the image's place in the global batch, so a step needs nothing
//! from the steps before it but the weights and the optimizer's state. Only its [`StepInputs`] change from step to step; the
//! [`Trainer`](super::trainer::Trainer) makes them, and an [`engine`](crate::engine) copies them to the device.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use ddpm_collective::Collective;
use ddpm_data::Share;
use ddpm_kernels::buffer::copy;
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, loss_and_grad, q_sample};
use ddpm_kernels::optim::JudgedStep;
use ddpm_kernels::philox::Philox;
use ddpm_model::ModelError;
use ddpm_model::optim::Optimizer;
use ddpm_model::params::{Gradients, Params};
use ddpm_model::tape::{DropoutStream, Tape};
use ddpm_model::unet::{Condition, UNet};

use crate::engine::{Clock, Inputs, Phase};

/// Results of a step for each image: its loss, its mean squared error, its term of the bound.
pub(super) const RESULTS: usize = 3;

/// The inputs of a step. N images: this rank's share of the global batch. Clones share their tensors.
#[derive(Clone, Debug)]
pub(super) struct StepInputs {
    /// u8 `[N, H, W, C]`.
    pub(super) images: Tensor,
    /// The constants of each image's t, for its noise and loss: f64 `[N, SampleConstants::WORDS]`.
    pub(super) samples: Tensor,
    /// The same t, and labels where the network has classes, each `[N]`.
    pub(super) condition: Condition,
    /// What noise and dropout are drawn for: the step's number, and the place of the first image in the global batch.
    pub(super) place: Tensor,
    /// The optimizer's settings.
    pub(super) settings: Tensor,
}

impl Inputs for StepInputs {
    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self {
            images: f(&self.images)?,
            samples: f(&self.samples)?,
            condition: self.condition.map(f)?,
            place: f(&self.place)?,
            settings: f(&self.settings)?,
        })
    }
}

impl StepInputs {
    /// The number of images.
    fn len(&self) -> usize {
        self.images.dims().first().copied().unwrap_or_default()
    }

    /// The inputs of some of the images.
    fn part(&self, images: &Range<usize>) -> Result<Self, ModelError> {
        let part = |tensor: &Tensor| Ok::<_, ModelError>(tensor.narrow(0, images.start, images.len())?);
        Ok(Self {
            images: part(&self.images)?,
            samples: part(&self.samples)?,
            condition: self.condition.map(&mut |tensor| part(tensor))?,
            place: self.place.clone(),
            settings: self.settings.clone(),
        })
    }

    /// The step's number, as dropout reads it.
    fn step(&self) -> Result<Tensor, ModelError> {
        Ok(self.place.narrow(0, 0, 2)?)
    }
}

/// The state that a step reads and changes.
#[derive(Debug)]
pub(super) struct Learner {
    pub(super) unet: UNet,
    pub(super) params: Params,
    pub(super) optimizer: Optimizer,
    pub(super) gradients: Gradients,
    /// Decides on each step, and keeps the loss scale.
    pub(super) judged: JudgedStep,
    /// f64 `[N, RESULTS]` of the last step's global batch.
    pub(super) losses: Tensor,
    pub(super) noise: Philox,
    pub(super) seed: u64,
    /// Which images of the global batch these are.
    pub(super) share: Share,
    /// Those who have the others.
    pub(super) ranks: Arc<dyn Collective>,
    /// Images computed at once.
    pub(super) micro_batch: usize,
    pub(super) checkpointing: bool,
}

impl Learner {
    /// One step: Algorithm 1 of Ho et al. 2020.
    pub(super) fn step(&mut self, inputs: &StepInputs, clock: &mut Clock) -> Result<(), ModelError> {
        self.take_gradient(inputs, clock)?;
        clock.begin(Phase::Optimizer)?;
        if self.ranks.world() > 1 {
            self.exchange()?;
        }
        self.optimizer.step(&self.judged, &inputs.settings, &self.params, &mut self.gradients)
    }

    /// The gradient of the loss, a micro-batch at a time. The loss is the mean over the global batch, whose size is part of each
    /// image's constants.
    pub(super) fn take_gradient(&mut self, inputs: &StepInputs, clock: &mut Clock) -> Result<(), ModelError> {
        self.gradients.reset();
        for first in (0..inputs.len()).step_by(self.micro_batch) {
            clock.begin(Phase::Forward)?;
            let images = first..(first + self.micro_batch).min(inputs.len());
            let part = inputs.part(&images)?;
            let noise = Noise::Drawn { stream: self.noise, place: &part.place, first_position: first as u64 };
            let noisy = NoisyImages { images: &part.images, samples: &part.samples, noise };
            let x_t = q_sample(&noisy, self.params.dtype())?;

            // The tape reads the step's number from the inputs.
            let first_position = (self.share.first() + first) as u64;
            let dropout = DropoutStream { seed: self.seed, step: 0, first_position };
            let mut tape =
                Tape::training(&self.params, dropout).stepping_at(&part.step()?).checkpointing(self.checkpointing);
            let output = self.unet.forward_at(&mut tape, &x_t, &part.condition)?;
            let loss = loss_and_grad(&noisy, output.value(), Some(self.judged.state_tensor()))?;
            copy(&loss.samples, &self.losses.narrow(0, self.share.first() + first, images.len())?)?;

            clock.begin(Phase::Backward)?;
            tape.backward(output, loss.grad, &mut self.gradients)?;
        }
        Ok(())
    }

    /// The gradient and the losses of the global batch, from those of all ranks. Each rank's gradient is its part of the mean over the
    /// global batch, so that the parts are added.
    fn exchange(&mut self) -> Result<(), ModelError> {
        let ranks = &self.ranks;
        self.gradients
            .complete()?
            .with_mut(|gradient| ranks.all_reduce_sum(gradient))?
            .map_err(candle_core::Error::wrap)?;
        let own = self.losses.narrow(0, self.share.first(), self.share.count())?.flatten_all()?.to_vec1::<f64>()?;
        let own: Vec<u8> = own.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        let all = ranks.gather(&own).map_err(candle_core::Error::wrap)?.concat();
        let all: Vec<f64> = all.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        Ok(copy(&Tensor::from_vec(all, self.losses.shape(), self.losses.device())?, &self.losses)?)
    }
}
