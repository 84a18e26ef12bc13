//! What training minimises, with its gradient with respect to the network's output.
//!
//! A kind of loss is a few numbers for each sample ([`SampleConstants`]): the target of the prediction, and the weights of its
//! squared error and of the bound's term. From these [`loss_and_grad`](ddpm_kernels::ops::diffusion::loss_and_grad) computes
//! the loss with its gradient, on a CPU and on a GPU; the tape starts from that gradient.

use candle_core::Tensor;
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, loss_and_grad};

use super::process::{check_count, check_dims};
use super::{DiffusionConfig, DiffusionError, DiffusionProcess, LossConfig, LossKind, PredictionType, Timestep};

/// A loss that was checked against its process.
#[derive(Clone, Debug)]
pub struct Loss {
    config: LossConfig,
}

/// A micro-batch of N samples and the network's output for it. Images are `[N, H, W, C]`.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a> {
    /// The network's output; `[N, H, W, 2 C]` where it learns the variance.
    pub model_output: &'a Tensor,
    /// The images x_0.
    pub x_start: &'a Tensor,
    /// One timestep for each sample.
    pub t: &'a [Timestep],
    /// The noise that was added to them.
    pub noise: &'a Tensor,
    /// One weight for each sample, from the timestep sampler.
    pub weights: &'a [f32],
    /// The number of samples in the whole batch, which contains these N: the divisor of the mean.
    pub global_batch: usize,
}

/// The loss of a micro-batch.
#[derive(Clone, Debug)]
pub struct LossValue {
    /// The loss of each sample, not multiplied by its weight.
    pub per_sample: Vec<f64>,
    /// The plain mean squared error of each sample's prediction, whichever loss is minimised.
    pub mse: Vec<f64>,
    /// `L_t` of each sample in bits per dimension, where the loss has the bound in it.
    pub vlb: Option<Vec<f64>>,
    /// d/d model_output of `sum over samples of weight * loss / global_batch`, shaped and placed like it.
    pub grad: Tensor,
}

impl Loss {
    /// The loss of `config` for a process with the settings `diffusion`; an error if they do not fit together.
    pub fn new(config: &LossConfig, diffusion: &DiffusionConfig) -> Result<Self, DiffusionError> {
        config.validate(diffusion)?;
        Ok(Self { config: config.clone() })
    }

    /// Whether the bound is part of the loss.
    pub fn has_bound(&self) -> bool {
        self.config.kind.has_bound()
    }

    /// The loss of every sample, and the gradient of their weighted mean.
    ///
    /// # Errors
    /// The inputs do not fit together, or an error of [`constants`](Self::constants).
    pub fn compute(&self, process: &DiffusionProcess, inputs: &LossInputs<'_>) -> Result<LossValue, DiffusionError> {
        const NAME: &str = "loss";
        self.fits(process)?;
        let LossInputs { model_output, x_start, t, noise, weights, global_batch } = *inputs;
        check_dims(NAME, "noise", noise, x_start.dims())?;
        process.check_output(NAME, model_output, x_start.dims())?;
        check_count(NAME, "t", t.len(), x_start)?;
        let samples = self.constants(process, t, weights, global_batch)?;
        let samples = SampleConstants::tensor(&samples, x_start.device())?;
        let images = NoisyImages { images: x_start, samples: &samples, noise: Noise::Given(noise) };
        let loss = loss_and_grad(&images, &model_output.contiguous()?, None)?;
        let columns = loss.samples.t()?.to_vec2::<f64>()?;
        let [per_sample, mse, bits] = <[Vec<f64>; 3]>::try_from(columns).unwrap_or_default();
        Ok(LossValue { per_sample, mse, vlb: self.has_bound().then_some(bits), grad: loss.grad })
    }

    /// The constants for the noise and the loss of every sample, from its timestep `t`, its weight from the timestep sampler,
    /// and the number of samples in the whole batch.
    ///
    /// # Errors
    /// The process does not have a timestep, the number of weights is wrong, the whole batch is smaller than this part of it,
    /// or the process has other settings than those given to `new`: it could lack the variance channels that the bound reads.
    pub fn constants(
        &self,
        process: &DiffusionProcess,
        t: &[Timestep],
        weights: &[f32],
        global_batch: usize,
    ) -> Result<Vec<SampleConstants>, DiffusionError> {
        self.fits(process)?;
        if weights.len() != t.len() {
            let (found, expected) = (vec![weights.len()], vec![t.len()]);
            return Err(DiffusionError::Shape { operation: "loss", name: "weights", found, expected });
        }
        if global_batch < t.len() {
            return Err(DiffusionError::setting(
                "global_batch",
                &global_batch,
                format!("at least the {} samples of the micro-batch", t.len()),
                "count the samples of all micro-batches",
            ));
        }
        let of_samples = t.iter().zip(weights);
        of_samples.map(|(&t, &weight)| self.sample(process, t, f64::from(weight) / global_batch as f64)).collect()
    }

    fn fits(&self, process: &DiffusionProcess) -> Result<(), DiffusionError> {
        self.config.validate(process.config())
    }

    /// The constants of `mse_weight * mse + bound_weight * L_t` at `t`, which the minimised sum contains `scale` times.
    fn sample(&self, process: &DiffusionProcess, t: Timestep, scale: f64) -> Result<SampleConstants, DiffusionError> {
        let constants = process.constants(t)?;
        let (config, index) = (&self.config, t.index());
        // The mean over a uniform t, times T, is the sum over t: the whole bound.
        let timesteps = process.schedule().len() as f64;
        let (mse_weight, bound, bound_weight) = match config.kind {
            LossKind::Simple => (min_snr_weight(config, process, index), 0.0, 0.0),
            LossKind::VlbWeighted => (vlb_weight(process, index), 0.0, 0.0),
            LossKind::Vlb => (0.0, 1.0, timesteps),
            LossKind::Hybrid => (min_snr_weight(config, process, index), 2.0, config.vlb_lambda * timesteps),
        };
        let (target_x_start, target_noise) = process.target(index);
        Ok(SampleConstants { target_x_start, target_noise, mse_weight, scale, bound, bound_weight, ..constants })
    }
}

/// Min-SNR weighting (Hang et al. 2023, section 3.4); 1 where it is off.
fn min_snr_weight(config: &LossConfig, process: &DiffusionProcess, t: usize) -> f64 {
    let Some(gamma) = config.min_snr_gamma else { return 1.0 };
    let snr = process.schedule().snr()[t];
    match process.config().prediction_type {
        PredictionType::Epsilon => snr.min(gamma) / snr,
        PredictionType::Sample => snr.min(gamma),
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
    }
}

/// beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)), the weight of eps' squared error in the bound (Ho et al. 2020,
/// eq. 12). At a given x_t eps is linear in the prediction, so another prediction's error has its factor squared.
fn vlb_weight(process: &DiffusionProcess, t: usize) -> f64 {
    let schedule = process.schedule();
    let (beta, bar) = (schedule.betas()[t], schedule.alphas_cumprod()[t]);
    let sigma_squared = process.log_variance_range(t).lower.variance();
    let of_noise = beta * beta / (2.0 * sigma_squared * (1.0 - beta) * (1.0 - bar));
    of_noise * process.noise_in_prediction(t).prediction.powi(2)
}
