//! An optimizer step whose outcome is decided on the device, so that on a GPU it can be part of a captured graph.
//!
//! A step reads its settings ([`StepSettings`]) as numbers on the device. There they are combined with the gradient's norm into
//! factors, which the pass over the parameters reads; on a GPU the host knows none of these values and never waits for them.
//! The state that continues from step to step ([`StepState`]) is there too:
//!
//! - A gradient that is not finite changes nothing: the step is skipped. More than [`StepSettings::max_bad_steps`] in a row end
//!   the training: the number of the last one is kept, and no later step changes anything, until [`JudgedStep::set_state`]. So
//!   the host may check rarely. A loss that is not finite needs no separate check: its gradient is not finite either.
//! - On request a finite gradient that is much larger than usual is skipped too, but never more than that many in a row: then
//!   it is the new usual.
//! - With a dynamic loss scale (f16; Micikevicius et al. 2018, section 3.2) the first cause of a gradient that is not finite is
//!   the scale: it is halved, and doubled after 2,000 steps without that. Only when it is down to 1 is the network the cause.
//! - A skipped step does not count for the moments' bias.

use candle_core::{DType, Device, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{AdamW, AdamWBuffers, OP, adamw_step, clipping, norm};
use crate::buffer::{FlatBuffer, NarrowPart};
use crate::check;
use crate::error::{KernelError, Result};

/// Moving averages that a GPU's step can keep.
pub const MAX_AVERAGES: usize = 4;
/// Count of a step's settings before the averages' decays.
const BEFORE_DECAYS: usize = 9;
/// Count of the numbers of a step's state.
const STATE: usize = 8;
/// How the loss scale changes, as in `cuda/optim.cu`.
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const GROWTH_INTERVAL: u64 = 2000;
/// At or below the first, the scale is not the cause of a gradient that is not finite; the second limits the growth.
const LEAST_LOSS_SCALE: f64 = 1.0;
const MOST_LOSS_SCALE: f64 = 1_073_741_824.0;
/// How much the newest norm counts for the usual one: an average over some fifty steps.
const NEWEST: f64 = 0.02;

/// The settings of a step, from the host.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSettings {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decays of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0: no clipping.
    pub clip_grad_norm: f64,
    /// This step's number, from 1, skipped steps included.
    pub step: u64,
    /// How many bad steps in a row are skipped before the training ends.
    pub max_bad_steps: u64,
    /// A finite gradient is bad too if its norm is more than so many times the usual one; 0: never.
    pub spike_factor: f64,
    /// The decay of each moving average in this step.
    pub decays: Vec<f64>,
}

impl StepSettings {
    /// The settings of a step with so many averages as a tensor for [`JudgedStep::step`]. A GPU has room for [`MAX_AVERAGES`],
    /// of which not all must be used.
    pub fn len(averages: usize) -> usize {
        BEFORE_DECAYS + averages.max(MAX_AVERAGES)
    }

    /// The numbers themselves.
    pub fn words(&self) -> Vec<f64> {
        let [beta1, beta2] = self.betas;
        let mut words = vec![self.lr, beta1, beta2, self.eps, self.weight_decay, self.clip_grad_norm, self.step as f64];
        words.extend([self.max_bad_steps as f64, self.spike_factor]);
        words.extend(&self.decays);
        words.resize(Self::len(self.decays.len()), 0.0);
        words
    }

    /// The inverse of [`words`](Self::words) for so many averages.
    fn from_words(words: &[f64], averages: usize) -> Result<Self> {
        let &[lr, beta1, beta2, eps, weight_decay, clip_grad_norm, step, bad, spike_factor, ref decays @ ..] = words
        else {
            let (found, expected) = (vec![words.len()], vec![Self::len(averages)]);
            return Err(KernelError::Shape { op: OP, tensor: "settings", found, expected });
        };
        let (betas, decays) = ([beta1, beta2], decays[..averages].to_vec());
        let (step, max_bad_steps) = (step as u64, bad as u64);
        Ok(Self { lr, betas, eps, weight_decay, clip_grad_norm, step, max_bad_steps, spike_factor, decays })
    }
}

/// The state that continues from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepState {
    /// What the loss is multiplied by before its gradient is taken.
    pub loss_scale: f64,
    /// Whether the loss scale follows the gradients.
    pub dynamic: bool,
    /// Steps since the loss scale last changed.
    pub steady_steps: u64,
    /// Steps that changed nothing, of all steps.
    pub skipped: u64,
    /// The step at which training diverged.
    pub diverged: Option<u64>,
    /// Norm of the last gradient before clipping; of the one that was not finite, once training has diverged.
    pub norm: f64,
    /// Bad steps in a row, the last one included.
    pub bad_steps: u64,
    /// The usual norm: a moving average over the steps that changed something; 0 before the first.
    pub usual_norm: f64,
}

impl StepState {
    /// The state for formats whose range needs no loss scale.
    pub fn unscaled() -> Self {
        Self {
            loss_scale: 1.0,
            dynamic: false,
            steady_steps: 0,
            skipped: 0,
            diverged: None,
            norm: 0.0,
            bad_steps: 0,
            usual_norm: 0.0,
        }
    }

    /// A dynamic loss scale that starts here; PyTorch starts at 65,536.
    pub fn scaled(loss_scale: f64) -> Self {
        Self { loss_scale, dynamic: true, ..Self::unscaled() }
    }

    fn words(&self) -> [f64; STATE] {
        let dynamic = f64::from(u8::from(self.dynamic));
        let [steady, skipped, bad] = [self.steady_steps, self.skipped, self.bad_steps].map(|count| count as f64);
        let diverged = self.diverged.unwrap_or(0) as f64;
        [self.loss_scale, dynamic, steady, skipped, diverged, self.norm, bad, self.usual_norm]
    }

    /// The state from the numbers of [`JudgedStep::state_tensor`].
    ///
    /// # Errors
    /// Their count is wrong.
    pub fn from_numbers(numbers: &[f64]) -> Result<Self> {
        let &[loss_scale, dynamic, steady_steps, skipped, diverged, norm, bad_steps, usual_norm] = numbers else {
            let (found, expected) = (vec![numbers.len()], vec![STATE]);
            return Err(KernelError::Shape { op: OP, tensor: "state", found, expected });
        };
        Ok(Self {
            loss_scale,
            dynamic: dynamic != 0.0,
            steady_steps: steady_steps as u64,
            skipped: skipped as u64,
            diverged: (diverged != 0.0).then_some(diverged as u64),
            norm,
            bad_steps: bad_steps as u64,
            usual_norm,
        })
    }
}

impl StepState {
    /// Updates the state with the norm of the scaled gradient; returns the update to apply, if the step may change anything.
    fn judge(&mut self, settings: &StepSettings, scaled_norm: f64) -> Option<AdamW> {
        if self.diverged.is_some() {
            return None;
        }
        let scale = self.loss_scale;
        self.norm = scaled_norm / scale;
        let is_finite = self.norm.is_finite();
        if !is_finite {
            self.steady_steps = 0;
            if self.dynamic && scale > LEAST_LOSS_SCALE {
                self.loss_scale = (scale * BACKOFF).max(LEAST_LOSS_SCALE);
                self.skipped += 1;
                return None;
            }
        }
        let is_spike = settings.spike_factor > 0.0
            && self.usual_norm > 0.0
            && self.norm > settings.spike_factor * self.usual_norm
            && self.bad_steps < settings.max_bad_steps;
        if !is_finite || is_spike {
            self.bad_steps += 1;
            match self.bad_steps > settings.max_bad_steps {
                true => self.diverged = Some(settings.step),
                false => self.skipped += 1,
            }
            return None;
        }
        self.bad_steps = 0;
        self.usual_norm += (self.norm - self.usual_norm) * if self.usual_norm == 0.0 { 1.0 } else { NEWEST };
        self.steady_steps += 1;
        if self.dynamic && self.steady_steps >= GROWTH_INTERVAL {
            self.loss_scale = (scale * GROWTH).min(MOST_LOSS_SCALE);
            self.steady_steps = 0;
        }
        Some(AdamW {
            lr: settings.lr,
            beta1: settings.betas[0],
            beta2: settings.betas[1],
            eps: settings.eps,
            weight_decay: settings.weight_decay,
            step: settings.step - self.skipped,
            gradient_scale: clipping(settings.clip_grad_norm, self.norm) / scale,
        })
    }
}

/// The buffers a step reads and writes, all of the same length.
#[derive(Clone, Copy, Debug)]
pub struct StepBuffers<'a> {
    /// The parameters.
    pub parameters: &'a FlatBuffer,
    /// Their gradients, of the scaled loss.
    pub gradients: &'a FlatBuffer,
    /// The part of them that is stored elsewhere in 16 bits.
    pub narrow: Option<&'a NarrowPart>,
    /// First moment.
    pub exp_avg: &'a FlatBuffer,
    /// Second moment.
    pub exp_avg_sq: &'a FlatBuffer,
    /// Moving averages of the parameters.
    pub averages: &'a [&'a FlatBuffer],
    /// The parameters in bf16 or f16, as the network computes with them.
    pub compute: Option<&'a Tensor>,
}

/// A step's memory on the device.
#[derive(Debug)]
pub struct JudgedStep {
    state: Tensor,
    /// The factors that a GPU computes from settings and norm.
    #[cfg(feature = "cuda")]
    factors: Tensor,
}

impl JudgedStep {
    /// The memory of a training on `device` that begins or continues with `state`.
    ///
    /// # Errors
    /// The device's memory is full.
    pub fn new(device: &Device, state: &StepState) -> Result<Self> {
        Ok(Self {
            state: Tensor::from_slice(&state.words(), STATE, device)?,
            #[cfg(feature = "cuda")]
            factors: Tensor::zeros(cuda::FACTORS, DType::F32, device)?,
        })
    }

    /// The state, f64; its first number is the loss scale, which the loss reads.
    pub fn state_tensor(&self) -> &Tensor {
        &self.state
    }

    /// Reads the state back; on a GPU this waits for all queued work.
    ///
    /// # Errors
    /// Work queued before has failed.
    pub fn state(&self) -> Result<StepState> {
        StepState::from_numbers(&self.state.to_vec1::<f64>()?)
    }

    /// Overwrites the state in place, where captured graphs read it: after a divergence, or on resuming.
    ///
    /// # Errors
    /// The driver fails.
    pub fn set_state(&self, state: &StepState) -> Result<()> {
        match self.state.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::write_state(&self.state, &state.words()),
            device => Ok(self.state.slice_set(&Tensor::from_slice(&state.words(), STATE, device)?, 0, 0)?),
        }
    }

    /// Computes the gradient's norm and makes the step that it allows; on a GPU these are two launches, and nothing on the host
    /// depends on them. `settings` are [`StepSettings::words`], f64, on the device.
    ///
    /// # Errors
    /// The buffers have different lengths, the settings are for another number of averages, or the device does not have this
    /// operation; on a GPU also if there are more than [`MAX_AVERAGES`] averages, or the copy is neither bf16 nor f16.
    pub fn step(&self, settings: &Tensor, buffers: &StepBuffers<'_>) -> Result<()> {
        buffers.check()?;
        check::shape(OP, "settings", settings, &[StepSettings::len(buffers.averages.len())])?;
        match self.state.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::judged_step(&self.state, &self.factors, settings, buffers),
            Device::Cpu => self.step_now(settings, buffers),
            other => Err(KernelError::Device { op: OP, device: other.location() }),
        }
    }

    fn step_now(&self, settings: &Tensor, buffers: &StepBuffers<'_>) -> Result<()> {
        if let Some(copy) = buffers.compute {
            return Err(KernelError::Layout { op: OP, dtype: copy.dtype(), shape: copy.dims().to_vec() });
        }
        let settings = StepSettings::from_words(&settings.to_vec1::<f64>()?, buffers.averages.len())?;
        let mut state = self.state()?;
        if let Some(adamw) = state.judge(&settings, norm(buffers.gradients)?) {
            let averages: Vec<_> =
                buffers.averages.iter().map(|&average| average.clone()).zip(settings.decays).collect();
            let StepBuffers { parameters, gradients, exp_avg, exp_avg_sq, .. } = *buffers;
            adamw_step(&adamw, &AdamWBuffers { parameters, gradients, exp_avg, exp_avg_sq, averages: &averages })?;
        }
        self.set_state(&state)
    }
}

impl StepBuffers<'_> {
    fn check(&self) -> Result<()> {
        let len = self.parameters.len();
        let refuse =
            |tensor, found| Err(KernelError::Shape { op: OP, tensor, found: vec![found], expected: vec![len] });
        let averages = self.averages.iter().map(|average| ("average", average.len()));
        let others = [("gradients", self.gradients), ("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)];
        let mut lengths = others.into_iter().map(|(name, buffer)| (name, buffer.len())).chain(averages);
        if let Some((name, found)) = lengths.find(|(_, found)| *found != len) {
            return refuse(name, found);
        }
        #[cfg(feature = "cuda")]
        if let Some(NarrowPart { numbers, .. }) = self.narrow {
            if numbers.elem_count() != len {
                return refuse("gradients of 16 bits", numbers.elem_count());
            }
            if self.compute.is_some_and(|copy| copy.dtype() != numbers.dtype()) {
                return Err(KernelError::Layout { op: OP, dtype: numbers.dtype(), shape: numbers.dims().to_vec() });
            }
        }
        match self.compute {
            Some(copy) if !matches!(copy.dtype(), DType::BF16 | DType::F16) => {
                Err(KernelError::Layout { op: OP, dtype: copy.dtype(), shape: copy.dims().to_vec() })
            }
            Some(copy) if copy.elem_count() != len => refuse("copy for computing", copy.elem_count()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
