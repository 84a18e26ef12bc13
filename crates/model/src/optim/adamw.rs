//! AdamW over the flat buffers (Loshchilov & Hutter 2019), clipping by the whole gradient's norm, and exponential
//! moving averages of the weights with warm-up.

use std::sync::Arc;

use candle_core::Tensor;
use ddpm_kernels::buffer::FlatBuffer;
use ddpm_kernels::optim::{AdamW, JudgedStep, StepBuffers, StepSettings, clipping};

use crate::error::Result;
use crate::params::{Gradients, ParamLayout, Params};

/// The optimizer's constants.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decays of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0: no clipping.
    pub clip_grad_norm: f64,
    /// Decays of the moving averages.
    pub ema_decays: Vec<f64>,
    /// Whether their decays are smaller at first; as by `AdamWConfig::ema_decay`.
    pub ema_warmup: bool,
    /// How many bad steps in a row are skipped before the training ends.
    pub max_bad_steps: u64,
    /// A gradient whose norm is more than so many times the usual one is bad; 0: only one that is not finite is.
    pub spike_factor: f64,
}

impl AdamWConfig {
    /// The settings of step `step`, counted from 1, for a gradient of this norm.
    pub(crate) fn step(&self, lr: f64, step: u64, grad_norm: f64) -> AdamW {
        AdamW {
            lr,
            beta1: self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay: self.weight_decay,
            step,
            gradient_scale: clipping(self.clip_grad_norm, grad_norm),
        }
    }

    /// The decay that an average of this one has at step `step`, counted from 1. Early on, an average must forget its start:
    /// with warm-up it is at most `(1 + n) / (10 + n)`, which is what diffusers' `EMAModel` does where its own
    /// `use_ema_warmup`, another formula, is off. Improved DDPM has none.
    pub(crate) fn ema_decay(&self, decay: f64, step: u64) -> f64 {
        let n = step as f64;
        if self.ema_warmup { decay.min((1.0 + n) / (10.0 + n)) } else { decay }
    }
}

/// A moving average of the weights.
#[derive(Clone, Debug)]
pub struct Average {
    /// Its decay once warmed up.
    pub decay: f64,
    /// Its values.
    pub params: Params,
}

/// Both moments, the averages and the number of finished steps.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: AdamWConfig,
    layout: Arc<ParamLayout>,
    exp_avg: FlatBuffer,
    exp_avg_sq: FlatBuffer,
    averages: Vec<Average>,
    step: u64,
}

impl Optimizer {
    /// A new optimizer for `params`; the averages start as copies of them.
    pub fn new(config: AdamWConfig, params: &Params) -> Result<Self> {
        let averages = config
            .ema_decays
            .iter()
            .map(|&decay| Ok(Average { decay, params: params.duplicate()? }))
            .collect::<Result<_>>()?;
        let zeros = || FlatBuffer::zeros(params.buffer().len(), params.buffer().device());
        Ok(Self { config, layout: params.layout().clone(), exp_avg: zeros()?, exp_avg_sq: zeros()?, averages, step: 0 })
    }

    /// An optimizer that continues after `step` steps.
    pub fn restore(
        config: AdamWConfig,
        params: &Params,
        exp_avg: Vec<f32>,
        exp_avg_sq: Vec<f32>,
        averages: Vec<Average>,
        step: u64,
    ) -> Result<Self> {
        let device = params.buffer().device();
        Ok(Self {
            config,
            layout: params.layout().clone(),
            exp_avg: FlatBuffer::from_vec(exp_avg, device)?,
            exp_avg_sq: FlatBuffer::from_vec(exp_avg_sq, device)?,
            averages,
            step,
        })
    }

    /// Steps taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Both moments, in layout order.
    pub fn moments(&self) -> [&FlatBuffer; 2] {
        [&self.exp_avg, &self.exp_avg_sq]
    }

    /// The moving averages.
    pub fn averages(&self) -> &[Average] {
        &self.averages
    }

    /// The layout of the parameters.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// Counts the next step and returns its settings.
    pub fn count_step(&mut self, lr: f64) -> StepSettings {
        self.step += 1;
        StepSettings {
            lr,
            betas: self.config.betas,
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            clip_grad_norm: self.config.clip_grad_norm,
            step: self.step,
            max_bad_steps: self.config.max_bad_steps,
            spike_factor: self.config.spike_factor,
            decays: self.averages.iter().map(|average| self.config.ema_decay(average.decay, self.step)).collect(),
        }
    }

    /// Goes on after `step` steps, whose moments and averages were written into the buffers.
    pub fn go_on_after(&mut self, step: u64) {
        self.step = step;
    }

    /// Undoes [`count_step`](Self::count_step) for the steps from this number on, which changed nothing.
    pub fn uncount_from(&mut self, number: u64) {
        self.step = self.step.min(number.saturating_sub(1));
    }

    /// One step down the gradient, with the values in `settings` at the time it runs; see [`JudgedStep::step`].
    ///
    /// # Errors
    /// As there. A gradient that is not finite is no error: nothing is changed, and the state of `judged` records it.
    pub fn step(
        &self,
        judged: &JudgedStep,
        settings: &Tensor,
        params: &Params,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let averages: Vec<&FlatBuffer> = self.averages.iter().map(|average| average.params.buffer()).collect();
        let narrow = gradients.hand_over()?;
        let buffers = StepBuffers {
            parameters: params.buffer(),
            gradients: gradients.complete()?,
            narrow: narrow.as_ref(),
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
            averages: &averages,
            compute: params.compute_copy(),
        };
        Ok(judged.step(settings, &buffers)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::params::{FileLayout, Init};
    use candle_core::Device;
    use ddpm_kernels::optim::StepState;

    /// A step whose values the host all knows.
    fn step(optimizer: &mut Optimizer, params: &Params, gradients: &mut Gradients, lr: f64) -> StepState {
        let judged = JudgedStep::new(&Device::Cpu, &StepState::unscaled()).unwrap();
        let settings = Tensor::new(optimizer.count_step(lr).words(), &Device::Cpu).unwrap();
        optimizer.step(&judged, &settings, params, gradients).unwrap();
        judged.state().unwrap()
    }

    fn setup(clip: f64) -> (Params, Gradients, Optimizer) {
        let mut layout = ParamLayout::default();
        layout.push("w".into(), &[4], Init::Ones, FileLayout::Same);
        let layout = Arc::new(layout);
        let params = Params::initialise(&layout, 0, &Device::Cpu).unwrap();
        let gradients = Gradients::new(&layout, &Device::Cpu).unwrap();
        let config = AdamWConfig {
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            clip_grad_norm: clip,
            ema_decays: vec![0.5, 0.9],
            ema_warmup: true,
            max_bad_steps: 0,
            spike_factor: 0.0,
        };
        let optimizer = Optimizer::new(config, &params).unwrap();
        (params, gradients, optimizer)
    }

    fn set(gradients: &mut Gradients, value: f32) {
        gradients.reset();
        gradients.complete().unwrap().with_mut(|g| g.fill(value)).unwrap();
    }

    #[test]
    fn clipping_scales_the_moments_but_reports_the_norm_it_found() {
        let (params, mut gradients, mut optimizer) = setup(1.0);
        set(&mut gradients, 3.0);
        let state = step(&mut optimizer, &params, &mut gradients, 0.1);
        assert_eq!(state.norm, 6.0);
        let m = optimizer.moments()[0].to_vec().unwrap();
        assert!((m[0] - 0.1 * 0.5).abs() < 1e-7, "{m:?}");
    }

    #[test]
    fn averages_warm_up_and_then_keep_their_decay() {
        let (params, mut gradients, mut optimizer) = setup(0.0);
        set(&mut gradients, 1.0);
        step(&mut optimizer, &params, &mut gradients, 0.1);
        // Step 1: the weight goes from 1 to 0.9, and every average forgets all but 2/11 of its start.
        for average in optimizer.averages() {
            let ema = average.params.buffer().to_vec().unwrap()[0];
            assert!((f64::from(ema) - (0.9 + 0.1 * 2.0 / 11.0)).abs() < 1e-6, "{ema}");
        }
    }

    #[test]
    fn averages_without_warm_up_have_their_decay_from_the_first_step_on() {
        let (params, mut gradients, mut optimizer) = setup(0.0);
        optimizer.config.ema_warmup = false;
        set(&mut gradients, 1.0);
        step(&mut optimizer, &params, &mut gradients, 0.1);
        for average in optimizer.averages() {
            let ema = average.params.buffer().to_vec().unwrap()[0];
            assert!((f64::from(ema) - (0.9 + 0.1 * average.decay)).abs() < 1e-6, "{ema}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let (params, mut gradients, mut optimizer) = setup(1.0);
        set(&mut gradients, f32::NAN);
        assert_eq!(step(&mut optimizer, &params, &mut gradients, 0.1).diverged, Some(1));
        optimizer.uncount_from(1);
        assert_eq!(optimizer.steps_taken(), 0);
        assert_eq!(params.buffer().to_vec().unwrap(), [1.0; 4]);
    }
}
