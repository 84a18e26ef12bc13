//! The outcome of a step: the loss of each image, the gradient's norm, and the time of each phase.

use ddpm_model::diffusion::{DrawnTimesteps, Timestep};

pub use crate::engine::Phases;

/// The outcome of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The loss of each image, with the timestep sampler's weight.
    pub losses: Vec<f64>,
    /// The timestep of each image.
    pub timesteps: Vec<Timestep>,
    /// The loss of each image without that weight.
    pub unweighted: Vec<f64>,
    /// The quarter of the timesteps, 0 to 3, that each image's t fell into.
    pub quartiles: Vec<usize>,
    /// The plain mean squared error of each image.
    pub mse: Vec<f64>,
    /// The variational bound's term of each image in bits per dimension, where the loss has it.
    pub vlb: Option<Vec<f64>>,
    /// The learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The time of each phase.
    pub phases: Phases,
}

/// The losses of some images: see [`StepOutcome`].
pub(super) struct SampleLosses {
    pub(super) per_sample: Vec<f64>,
    pub(super) mse: Vec<f64>,
    pub(super) vlb: Option<Vec<f64>>,
}

impl StepOutcome {
    /// The outcome of a step with this learning rate, before any of its `images` is added.
    pub(super) fn new(lr: f64, images: usize) -> Self {
        Self {
            losses: Vec::with_capacity(images),
            timesteps: Vec::with_capacity(images),
            unweighted: Vec::with_capacity(images),
            quartiles: Vec::with_capacity(images),
            mse: Vec::with_capacity(images),
            vlb: None,
            lr,
            grad_norm: 0.0,
            phases: Phases::default(),
        }
    }

    /// Adds the images that `drawn` belongs to; the process has `num_train_timesteps` timesteps.
    pub(super) fn take_in(&mut self, drawn: DrawnTimesteps, losses: SampleLosses, num_train_timesteps: usize) {
        self.losses.extend(losses.per_sample.iter().zip(&drawn.weights).map(|(l, w)| l * f64::from(*w)));
        self.quartiles.extend(drawn.timesteps.iter().map(|t| t.index() * 4 / num_train_timesteps));
        self.timesteps.extend(drawn.timesteps);
        self.unweighted.extend(losses.per_sample);
        self.mse.extend(losses.mse);
        if let Some(vlb) = losses.vlb {
            self.vlb.get_or_insert_default().extend(vlb);
        }
    }
}
