//! The loss scale of training in f16, to and from a checkpoint.
//!
//! It is adjusted on the device, where the gradients are, so the host must read it back. A resumed run needs it, and also the
//! number of skipped steps, which the bias correction of the moments does not count.

use ddpm_kernels::optim::StepState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::trainer::Trainer;
use crate::error::Error;

/// The part of a [`StepState`] that outlives a process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LossScale {
    scale: f64,
    steady_steps: u64,
    skipped: u64,
}

impl Trainer {
    /// The loss scale for a checkpoint, where there is one. Waits for the steps that are queued.
    pub(super) fn loss_scale(&self) -> Result<Option<Value>, Error> {
        let state = self.learner.judged.state()?;
        let StepState { loss_scale: scale, steady_steps, skipped, .. } = state;
        let saved = LossScale { scale, steady_steps, skipped };
        Ok(if state.dynamic { serde_json::to_value(saved).ok() } else { None })
    }

    /// Restores the loss scale from a checkpoint, if this training has one; false if the checkpoint's value is missing or
    /// invalid.
    pub(super) fn restore_loss_scale(&self, value: &Value) -> Result<bool, Error> {
        let Ok(LossScale { scale, steady_steps, skipped }) = LossScale::deserialize(value) else { return Ok(false) };
        if !(scale >= 1.0 && skipped <= self.steps_taken() && steady_steps <= self.steps_taken()) {
            return Ok(false);
        }
        let judged = &self.learner.judged;
        if judged.state()?.dynamic {
            judged.set_state(&StepState { steady_steps, skipped, ..StepState::scaled(scale) })?;
        }
        Ok(true)
    }
}
