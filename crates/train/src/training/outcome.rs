//! The outcome of a step: the loss of each image, the gradient's norm, and the time of each phase.

use ddpm_kernels::optim::StepState;
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DrawnTimesteps, Timestep};

pub use crate::engine::Phases;

/// The outcome of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The step's number, from 1.
    pub step: u64,
    /// The loss of each image, with the timestep sampler's weight.
    pub losses: Vec<f64>,
    /// The timestep of each image.
    pub timesteps: Vec<Timestep>,
    /// The loss of each image without that weight.
    pub unweighted: Vec<f64>,
    /// The quarter of the timesteps, 0 to 3, that each image's t fell into.
    pub quartiles: Vec<usize>,
    /// The plain mean squared error of each image, with the sampler's weight: a mean over drawn timesteps is then one over all,
    /// like that of the loss.
    pub mse: Vec<f64>,
    /// The variational bound's term of each image in bits per dimension, where the loss has it; with that weight.
    pub vlb: Option<Vec<f64>>,
    /// The learning rate.
    pub lr: f64,
    /// How the step was judged: the gradient's norm before clipping, and whether it was skipped.
    pub state: StepState,
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
    /// The outcome of step `step` with this learning rate, before any of its `images` is added.
    pub(super) fn new(step: u64, lr: f64, state: StepState, images: usize) -> Self {
        Self {
            step,
            losses: Vec::with_capacity(images),
            timesteps: Vec::with_capacity(images),
            unweighted: Vec::with_capacity(images),
            quartiles: Vec::with_capacity(images),
            mse: Vec::with_capacity(images),
            vlb: None,
            lr,
            state,
            phases: Phases::default(),
        }
    }

    /// The mean loss.
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len() as f64
    }

    /// What is wrong with a bad step, in words.
    pub(super) fn complaint(&self) -> String {
        let StepState { norm, usual_norm, .. } = self.state;
        match self.losses.iter().find(|loss| !loss.is_finite()) {
            Some(loss) => format!("the loss is {loss}"),
            None if norm.is_finite() => format!("the gradient's norm is {norm:.3e}, usual is {usual_norm:.3e}"),
            None => ModelError::NotFinite { norm }.to_string(),
        }
    }

    /// Whether the step changed nothing, because its loss, its gradient or the gradient's norm was not as it should be.
    pub fn is_bad(&self) -> bool {
        self.state.bad_steps > 0
    }

    /// Adds the images that `drawn` belongs to; the process has `num_train_timesteps` timesteps.
    pub(super) fn take_in(&mut self, drawn: DrawnTimesteps, losses: SampleLosses, num_train_timesteps: usize) {
        let weighted = |values: &[f64]| {
            values.iter().zip(&drawn.weights).map(|(value, weight)| value * f64::from(*weight)).collect::<Vec<_>>()
        };
        self.losses.extend(weighted(&losses.per_sample));
        self.mse.extend(weighted(&losses.mse));
        if let Some(vlb) = &losses.vlb {
            self.vlb.get_or_insert_default().extend(weighted(vlb));
        }
        self.quartiles.extend(drawn.timesteps.iter().map(|t| t.index() * 4 / num_train_timesteps));
        self.timesteps.extend(drawn.timesteps);
        self.unweighted.extend(losses.per_sample);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_parts_of_a_loss_have_the_weights_of_the_loss() {
        let mut outcome = StepOutcome::new(1, 1e-3, StepState::unscaled(), 2);
        let timesteps = [1, 7].map(|t| Timestep::new(t, 8).unwrap()).to_vec();
        let drawn = DrawnTimesteps { timesteps, weights: vec![0.5, 4.0] };
        let losses = SampleLosses { per_sample: vec![2.0, 1.0], mse: vec![1.0, 0.5], vlb: Some(vec![0.25, 3.0]) };
        outcome.take_in(drawn, losses, 8);
        assert_eq!((&outcome.losses[..], &outcome.unweighted[..]), (&[1.0, 4.0][..], &[2.0, 1.0][..]));
        assert_eq!((&outcome.mse[..], outcome.vlb.as_deref()), (&[0.5, 2.0][..], Some(&[0.125, 12.0][..])));
    }
}
