//! An optimizer step that a GPU decides and takes on its own, so that it can be part of a captured graph.
//!
//! The host uploads a step's settings ([`StepSettings`], before every step) and never waits. The norm's kernel turns settings
//! and norm into factors; the step's kernel reads them. What goes on from step to step ([`StepState`]) lives on the GPU:
//!
//! - A gradient that is not finite changes nothing. Without a dynamic loss scale that ends the training: the step's number is
//!   kept, and no later step changes anything either, until [`DeviceStep::set_state`]. So the host may look rarely.
//! - With a dynamic loss scale (f16; Micikevicius et al. 2018, section 3.2) the step is skipped and the scale halved; after
//!   2,000 steps without that it is doubled. A skipped step does not count for the moments' bias. Only when the scale is down
//!   to 1 is a gradient that is not finite the network's own doing, and ends the training as above.

use candle_core::{DType, Device, Tensor};

use super::cuda::{
    FACTORS, Gradient, Judgement, MAX_AVERAGES, StepAddresses, addresses, check_count, queue_norm, queue_step,
};
use crate::buffer::{FlatBuffer, NarrowPart};
use crate::check;
use crate::cuda::{Address, Gpu, operand, write};
use crate::error::{KernelError, Result};

const OP: &str = "optimizer step";

/// Numbers of a step's settings and state.
const SETTINGS: usize = 7 + MAX_AVERAGES;
const STATE: usize = 6;

/// What the host says about a step.
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
    /// The decay of each moving average in this step.
    pub decays: Vec<f64>,
}

impl StepSettings {
    /// Numbers of [`words`](Self::words).
    pub const WORDS: usize = SETTINGS;

    /// What [`DeviceStep::queue`] wants to find in device memory.
    ///
    /// # Errors
    /// More than [`MAX_AVERAGES`] averages.
    pub fn words(&self) -> Result<[f64; SETTINGS]> {
        check_count(self.decays.len())?;
        let mut words = [0.0; SETTINGS];
        let [beta1, beta2] = self.betas;
        let known = [self.lr, beta1, beta2, self.eps, self.weight_decay, self.clip_grad_norm, self.step as f64];
        words[..known.len()].copy_from_slice(&known);
        words[known.len()..][..self.decays.len()].copy_from_slice(&self.decays);
        Ok(words)
    }
}

/// What goes on from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepState {
    /// What the loss is multiplied by before its gradient is taken.
    pub loss_scale: f64,
    /// Whether the loss scale follows the gradients.
    pub dynamic: bool,
    /// Steps since the loss scale last changed.
    pub steady_steps: u64,
    /// Steps that changed nothing because the gradient overflowed at its scale.
    pub skipped: u64,
    /// The step at which training diverged.
    pub diverged: Option<u64>,
    /// Norm of the last gradient before clipping; of the one that was not finite, once training has diverged.
    pub norm: f64,
}

impl StepState {
    /// For formats whose range needs no loss scale.
    pub fn unscaled() -> Self {
        Self { loss_scale: 1.0, dynamic: false, steady_steps: 0, skipped: 0, diverged: None, norm: 0.0 }
    }

    /// A dynamic loss scale that starts here; PyTorch starts at 65,536.
    pub fn scaled(loss_scale: f64) -> Self {
        Self { loss_scale, dynamic: true, ..Self::unscaled() }
    }

    fn words(&self) -> [f64; STATE] {
        let dynamic = f64::from(u8::from(self.dynamic));
        let diverged = self.diverged.unwrap_or(0) as f64;
        [self.loss_scale, dynamic, self.steady_steps as f64, self.skipped as f64, diverged, self.norm]
    }

    /// The state from the numbers of [`DeviceStep::state_tensor`].
    ///
    /// # Errors
    /// Another number of them.
    pub fn from_numbers(numbers: &[f64]) -> Result<Self> {
        let &[loss_scale, dynamic, steady_steps, skipped, diverged, norm] = numbers else {
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
        })
    }
}

/// The buffers a step reads and writes, all of the same length.
#[derive(Clone, Copy, Debug)]
pub struct DeviceBuffers<'a> {
    /// The parameters.
    pub parameters: &'a FlatBuffer,
    /// Their gradients, of the scaled loss.
    pub gradients: &'a FlatBuffer,
    /// What of them is in 16 bits elsewhere.
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

/// A step's memory on the GPU.
#[derive(Debug)]
pub struct DeviceStep {
    state: Tensor,
    factors: Tensor,
}

impl DeviceStep {
    /// The memory of a training on `device` that begins or goes on with `state`.
    ///
    /// # Errors
    /// The device is no GPU, or its memory is full.
    pub fn new(device: &Device, state: &StepState) -> Result<Self> {
        Gpu::of(device)?;
        let factors = Tensor::zeros(FACTORS, DType::F32, device)?;
        Ok(Self { state: Tensor::from_slice(&state.words(), STATE, device)?, factors })
    }

    /// The state, f64; its first number is the loss scale, which a loss on the GPU reads there.
    pub fn state_tensor(&self) -> &Tensor {
        &self.state
    }

    /// The state, read back; this waits for all that is queued.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn state(&self) -> Result<StepState> {
        StepState::from_numbers(&self.state.to_vec1::<f64>()?)
    }

    /// Overwrites the state in place, where graphs that were captured find it: after a divergence, or on resuming.
    ///
    /// # Errors
    /// The driver fails.
    pub fn set_state(&self, state: &StepState) -> Result<()> {
        write(&*Gpu::of(self.state.device())?, OP, &self.state, &state.words())
    }

    /// Queues the norm of the gradient and the step: two launches, nothing on the host depends on either. `settings` are
    /// [`StepSettings::words`] in device memory, f64 `[StepSettings::WORDS]`.
    ///
    /// # Errors
    /// Buffers of different lengths, more than [`MAX_AVERAGES`] averages, a copy that is neither bf16 nor f16, or a driver
    /// that fails.
    pub fn queue(&self, settings: &Tensor, buffers: &DeviceBuffers<'_>) -> Result<()> {
        buffers.check()?;
        check::shape(OP, "settings", settings, &[SETTINGS])?;
        let gpu = Gpu::of(self.state.device())?;
        let factors = operand(&gpu, OP, &self.factors, DType::F32)?;
        let judgement = Judgement {
            settings: operand(&gpu, OP, settings, DType::F64)?,
            state: operand(&gpu, OP, &self.state, DType::F64)?,
            factors,
        };
        queue_norm(&gpu, &buffers.gradient(), Address::NONE, &judgement)?;
        queue_step(&gpu, &buffers.addresses(&gpu, factors)?)
    }
}

impl<'a> DeviceBuffers<'a> {
    fn gradient(&self) -> Gradient<'a> {
        Gradient { buffer: self.gradients, narrow: self.narrow }
    }

    /// What the step's kernel takes, with the factors at `factors`.
    fn addresses(&self, gpu: &Gpu, factors: Address) -> Result<StepAddresses<'a>> {
        let compute = |copy: &Tensor| Ok::<_, KernelError>((operand(gpu, OP, copy, copy.dtype())?, copy.dtype()));
        Ok(StepAddresses {
            parameters: self.parameters.address(gpu)?,
            gradients: self.gradient(),
            exp_avg: self.exp_avg.address(gpu)?,
            exp_avg_sq: self.exp_avg_sq.address(gpu)?,
            averages: addresses(gpu, self.averages)?,
            compute: self.compute.map(compute).transpose()?,
            factors,
            len: self.parameters.len(),
        })
    }

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
