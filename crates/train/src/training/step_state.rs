//! The state that goes on from step to step, to and from a checkpoint: f16's loss scale, and the bad steps that were skipped.
//!
//! It changes on the device, where the gradients are, so the host must read it back. A resumed run needs it to skip the steps that
//! the unbroken one skips; and the bias correction of the moments does not count skipped steps.

use ddpm_kernels::optim::StepState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::trainer::Trainer;
use crate::error::Error;

/// The part of a [`StepState`] that outlives a process. What has a default was not yet written by version 0.1.0.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedState {
    /// The loss scale, where the format needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    steady_steps: u64,
    skipped: u64,
    #[serde(default)]
    bad_steps: u64,
    #[serde(default)]
    usual_norm: f64,
}

impl Trainer {
    /// The state for a checkpoint. Waits for the steps that are queued.
    pub(super) fn step_state(&self) -> Result<Value, Error> {
        let StepState { loss_scale, dynamic, steady_steps, skipped, bad_steps, usual_norm, .. } =
            self.learner.judged.state()?;
        let scale = dynamic.then_some(loss_scale);
        let saved = SavedState { scale, steady_steps, skipped, bad_steps, usual_norm };
        serde_json::to_value(saved).map_err(Error::caused("the state of a step cannot be written"))
    }

    /// Restores the state from a checkpoint; false if the value is invalid. A training whose format now needs a loss scale
    /// begins with the scale of a new run.
    pub(super) fn restore_step_state(&self, value: &Value) -> Result<bool, Error> {
        let Ok(saved) = SavedState::deserialize(value) else { return Ok(false) };
        let counts = [saved.steady_steps, saved.skipped, saved.bad_steps];
        let is_valid = counts.iter().all(|&count| count <= self.steps_taken())
            && saved.scale.is_none_or(|scale| scale >= 1.0 && scale.is_finite())
            && saved.usual_norm >= 0.0
            && saved.usual_norm.is_finite();
        if is_valid {
            let SavedState { scale, steady_steps, skipped, bad_steps, usual_norm } = saved;
            let judged = &self.learner.judged;
            let now = judged.state()?;
            let loss_scale = scale.filter(|_| now.dynamic).unwrap_or(now.loss_scale);
            judged.set_state(&StepState { loss_scale, steady_steps, skipped, bad_steps, usual_norm, ..now })?;
        }
        Ok(is_valid)
    }
}
