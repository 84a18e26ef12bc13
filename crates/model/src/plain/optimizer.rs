//! Our optimizer for candle's own training loops: clipping by the whole gradient's norm, AdamW and moving averages, in one pass
//! over each variable where it lies (Loshchilov & Hutter 2019, algorithm 2).
//!
//! `candle_nn::AdamW` makes a tensor for each of a dozen steps of the formula and copies three of them; this reads and writes
//! each number once. It neither clips nor averages, and diffusion models are trained with both.

use candle_core::backprop::GradStore;
use candle_core::{Error, Result, Tensor, Var};
use candle_nn::Optimizer;
use ddpm_kernels::buffer::FlatBuffer;
use ddpm_kernels::optim::{AdamWBuffers, adamw_step, norm};

use crate::optim::AdamWConfig;

/// Settings of an [`AdamW`].
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Learning rate; see [`Optimizer::set_learning_rate`].
    pub lr: f64,
    /// All the rest.
    pub adamw: AdamWConfig,
}

/// See the module. Variables are f32, on the CPU or a GPU.
#[derive(Debug)]
pub struct AdamW {
    pub(super) slots: Vec<Slot>,
    settings: AdamWSettings,
    steps: u64,
}

/// A variable with what belongs to it, each in one piece.
#[derive(Debug)]
pub(super) struct Slot {
    var: Var,
    /// The variable's own memory.
    parameters: FlatBuffer,
    pub(super) exp_avg: FlatBuffer,
    exp_avg_sq: FlatBuffer,
    averages: Vec<FlatBuffer>,
}

impl Slot {
    fn new(var: Var, averages: usize) -> Result<Self> {
        let zeros = || FlatBuffer::zeros(var.elem_count(), var.device()).map_err(Error::wrap);
        let copy = |_| FlatBuffer::sharing(&var.as_detached_tensor().copy()?).map_err(Error::wrap);
        Ok(Self {
            parameters: FlatBuffer::sharing(&var.as_detached_tensor()).map_err(Error::wrap)?,
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            averages: (0..averages).map(copy).collect::<Result<_>>()?,
            var,
        })
    }
}

impl AdamW {
    /// The values of the moving average `number`, in the order of the variables.
    ///
    /// # Errors
    /// There is no such average.
    pub fn average(&self, number: usize) -> Result<Vec<Tensor>> {
        let of = |slot: &Slot| match slot.averages.get(number) {
            Some(average) => average.view(0, slot.var.dims()).map_err(Error::wrap),
            None => candle_core::bail!("there are {} averages, none of number {number}", slot.averages.len()),
        };
        self.slots.iter().map(of).collect()
    }

    /// The variables that have a gradient, each with it.
    fn gradients<'a>(&'a self, grads: &GradStore) -> Result<Vec<(&'a Slot, FlatBuffer)>> {
        let found = |slot: &'a Slot| {
            let gradient = grads.get(&slot.var)?;
            // A view may not be aligned for our passes; a copy is.
            let whole = FlatBuffer::sharing(gradient).or_else(|_| FlatBuffer::sharing(&gradient.force_contiguous()?));
            let whole = whole.map_err(Error::wrap);
            Some(whole.map(|gradient| (slot, gradient)))
        };
        self.slots.iter().filter_map(found).collect()
    }
}

impl Optimizer for AdamW {
    type Config = AdamWSettings;

    /// # Errors
    /// A variable that is not f32.
    fn new(vars: Vec<Var>, settings: AdamWSettings) -> Result<Self> {
        let averages = settings.adamw.ema_decays.len();
        let slots = vars.into_iter().map(|var| Slot::new(var, averages)).collect::<Result<_>>()?;
        Ok(Self { slots, settings, steps: 0 })
    }

    /// One step down the gradient. A variable without one stays as it is.
    ///
    /// # Errors
    /// A gradient that is not finite; nothing is changed then.
    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let gradients = self.gradients(grads)?;
        let norms = gradients.iter().map(|(_, gradient)| norm(gradient).map_err(Error::wrap));
        let grad_norm = norms.map(|norm| Ok(norm?.powi(2))).sum::<Result<f64>>()?.sqrt();
        if !grad_norm.is_finite() {
            return Err(Error::wrap(crate::ModelError::NotFinite { norm: grad_norm }));
        }
        let step = self.settings.adamw.step(self.settings.lr, self.steps + 1, grad_norm);
        let adamw = &self.settings.adamw;
        let decays = adamw.ema_decays.iter().map(|&decay| adamw.ema_decay(decay, self.steps + 1));
        for (slot, gradient) in &gradients {
            let averages: Vec<_> = slot.averages.iter().cloned().zip(decays.clone()).collect();
            let Slot { parameters, exp_avg, exp_avg_sq, .. } = slot;
            let buffers = AdamWBuffers { parameters, gradients: gradient, exp_avg, exp_avg_sq, averages: &averages };
            adamw_step(&step, &buffers).map_err(Error::wrap)?;
        }
        self.steps += 1;
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.settings.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.settings.lr = lr;
    }
}
