//! What training minimises, with its gradient by the network's output.
//!
//! The gradient is written out rather than recorded: each loss is a sum over elements, its derivative one line beside
//! it, and the tape starts from the tensor returned here. Sums are f64, the samples of a batch are independent, so
//! neither threads nor micro-batches change a result.

use std::f64::consts::LN_2;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::process::{check_count, check_dims};
use super::values::{on_host, values};
use super::vlb::BoundTerm;
use super::{DiffusionConfig, DiffusionError, DiffusionProcess, LossConfig, LossKind, PredictionType, Timestep};

/// A loss that fits its process.
#[derive(Clone, Debug)]
pub struct Loss {
    config: LossConfig,
}

/// A micro-batch of N samples and what the network made of it. Images are `[N, H, W, C]`.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a> {
    /// The network's output; `[N, H, W, 2 C]` where it learns the variance.
    pub model_output: &'a Tensor,
    /// The images x_0.
    pub x_start: &'a Tensor,
    /// `q_sample(x_start, t, noise)`.
    pub x_t: &'a Tensor,
    /// One timestep for each sample.
    pub t: &'a [Timestep],
    /// The noise in x_t.
    pub noise: &'a Tensor,
    /// One weight for each sample, from the timestep sampler.
    pub weights: &'a [f32],
    /// The number of samples in the whole batch, of which these N are a part: the divisor of the mean.
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
    /// The loss of `config` for a process of `diffusion`; an error where they do not fit.
    pub fn new(config: &LossConfig, diffusion: &DiffusionConfig) -> Result<Self, DiffusionError> {
        config.validate(diffusion)?;
        Ok(Self { config: config.clone() })
    }

    /// The loss of every sample, and the gradient of their weighted mean.
    pub fn compute(&self, process: &DiffusionProcess, inputs: &LossInputs<'_>) -> Result<LossValue, DiffusionError> {
        self.fits(process)?;
        check(process, inputs)?;
        let terms = inputs.t.iter().map(|&t| self.at(process, t)).collect::<Result<Vec<_>, _>>()?;

        let output = on_host(inputs.model_output)?;
        let images = [on_host(inputs.x_start)?, on_host(inputs.x_t)?, on_host(inputs.noise)?];
        let channels = inputs.x_start.dims()[inputs.x_start.rank() - 1];
        let n = terms.len();
        let (output, images) = (values(&output), images.each_ref().map(values));
        let (output, [x_start, x_t, noise]) = (output.as_slice()?, &images);
        let (x_start, x_t, noise) = (x_start.as_slice()?, x_t.as_slice()?, noise.as_slice()?);

        let mut grad = vec![0f32; output.len()];
        let (per_output, per_image) = (output.len() / n.max(1), x_start.len() / n.max(1));
        let parts: Vec<SampleParts> = grad
            .par_chunks_mut(per_output.max(1))
            .zip(&terms)
            .enumerate()
            .map(|(i, (grad, term))| {
                let image = i * per_image..(i + 1) * per_image;
                let output = &output[i * per_output..(i + 1) * per_output];
                let sample = SampleValues {
                    output,
                    x_start: &x_start[image.clone()],
                    x_t: &x_t[image.clone()],
                    noise: &noise[image],
                    channels,
                };
                term.compute(&sample, f64::from(inputs.weights[i]) / inputs.global_batch as f64, grad)
            })
            .collect();

        let grad = Tensor::from_vec(grad, inputs.model_output.dims(), &Device::Cpu)?
            .to_dtype(inputs.model_output.dtype())?
            .to_device(inputs.model_output.device())?;
        Ok(LossValue {
            per_sample: parts.iter().map(|parts| parts.loss).collect(),
            mse: parts.iter().map(|parts| parts.mse).collect(),
            vlb: parts.iter().map(|parts| parts.vlb).collect(),
            grad,
        })
    }

    /// Refuses a process of other settings than `new` saw: it could lack the variance channels that the bound reads.
    pub(super) fn fits(&self, process: &DiffusionProcess) -> Result<(), DiffusionError> {
        self.config.validate(process.config())
    }

    /// The loss of a sample at `t`.
    pub(super) fn at(&self, process: &DiffusionProcess, t: Timestep) -> Result<SampleLoss, DiffusionError> {
        SampleLoss::new(&self.config, process, t)
    }
}

fn check(process: &DiffusionProcess, inputs: &LossInputs<'_>) -> Result<(), DiffusionError> {
    const NAME: &str = "loss";
    let image = inputs.x_start.dims();
    check_dims(NAME, "x_t", inputs.x_t, image)?;
    check_dims(NAME, "noise", inputs.noise, image)?;
    process.check_output(NAME, inputs.model_output, image)?;
    check_count(NAME, "t", inputs.t.len(), inputs.x_start)?;
    check_count(NAME, "weights", inputs.weights.len(), inputs.x_start)?;
    check_global_batch(inputs.global_batch, inputs.t.len())
}

/// Refuses a whole batch smaller than a part of it.
pub(super) fn check_global_batch(global_batch: usize, samples: usize) -> Result<(), DiffusionError> {
    if global_batch >= samples {
        return Ok(());
    }
    Err(DiffusionError::setting(
        "global_batch",
        &global_batch,
        format!("at least the {samples} samples of the micro-batch"),
        "count the samples of all micro-batches",
    ))
}

/// One sample's slices; `output` has one or two values for each of the others'.
struct SampleValues<'a> {
    output: &'a [f32],
    x_start: &'a [f32],
    x_t: &'a [f32],
    noise: &'a [f32],
    channels: usize,
}

struct SampleParts {
    loss: f64,
    mse: f64,
    vlb: Option<f64>,
}

/// The loss at one t: `mse_weight * mse + bound.weight * L_t`.
pub(super) struct SampleLoss {
    /// The prediction's target, as factors of x_0 and eps.
    pub(super) target: (f64, f64),
    pub(super) mse_weight: f64,
    pub(super) bound: Option<WeightedBound>,
}

pub(super) struct WeightedBound {
    pub(super) term: BoundTerm,
    /// Per bit and dimension.
    pub(super) weight: f64,
    /// Whether only the variance learns from the bound.
    pub(super) mean_detached: bool,
}

impl SampleLoss {
    fn new(config: &LossConfig, process: &DiffusionProcess, t: Timestep) -> Result<Self, DiffusionError> {
        let index = process.schedule().checked(t)?;
        // The mean over a uniform t, times T, is the sum over t: the whole bound.
        let timesteps = process.schedule().len() as f64;
        let bound = |weight, mean_detached| -> Result<_, DiffusionError> {
            Ok(Some(WeightedBound { term: BoundTerm::new(process, t)?, weight, mean_detached }))
        };
        let (mse_weight, bound) = match config.kind {
            LossKind::Simple => (min_snr_weight(config, process, index), None),
            LossKind::VlbWeighted => (vlb_weight(process, index), None),
            LossKind::Vlb => (0.0, bound(timesteps, false)?),
            LossKind::Hybrid => (min_snr_weight(config, process, index), bound(config.vlb_lambda * timesteps, true)?),
        };
        Ok(Self { target: process.target(index), mse_weight, bound })
    }

    /// The sample's loss; adds `scale` times its gradient to `grad`.
    fn compute(&self, sample: &SampleValues<'_>, scale: f64, grad: &mut [f32]) -> SampleParts {
        let mse = self.squared_error(sample, scale * self.mse_weight, grad);
        let vlb = self.bound.as_ref().map(|bound| (bound.weight, bound.bits(sample, scale * bound.weight, grad)));
        let loss = self.mse_weight * mse + vlb.map_or(0.0, |(weight, bits)| weight * bits);
        SampleParts { loss, mse, vlb: vlb.map(|(_, bits)| bits) }
    }

    /// mean_flat((target - prediction)^2).
    fn squared_error(&self, sample: &SampleValues<'_>, scale: f64, grad: &mut [f32]) -> f64 {
        let (of_x_start, of_noise) = self.target;
        let count = sample.x_start.len() as f64;
        let derivative = 2.0 * scale / count;
        let mut sum = 0.0;
        for (pixel, (output, grad)) in sample.pixels(grad).enumerate() {
            for c in 0..sample.channels {
                let at = pixel * sample.channels + c;
                let target = of_x_start * f64::from(sample.x_start[at]) + of_noise * f64::from(sample.noise[at]);
                let error = f64::from(output[c]) - target;
                sum += error * error;
                grad[c] += (derivative * error) as f32;
            }
        }
        sum / count
    }
}

impl WeightedBound {
    /// `L_t` in bits per dimension.
    fn bits(&self, sample: &SampleValues<'_>, scale: f64, grad: &mut [f32]) -> f64 {
        let channels = sample.channels;
        let bits = 1.0 / (sample.x_start.len() as f64 * LN_2);
        let mut nats = 0.0;
        for (pixel, (output, grad)) in sample.pixels(grad).enumerate() {
            for c in 0..channels {
                let at = pixel * channels + c;
                let inputs = [sample.x_start[at], sample.x_t[at], output[c], output[channels + c]];
                let [x_start, x_t, prediction, variance_value] = inputs.map(f64::from);
                let term = self.term.at(x_start, x_t, prediction, variance_value, false);
                nats += term.nats;
                if !self.mean_detached {
                    grad[c] += (scale * bits * term.d_prediction) as f32;
                }
                grad[channels + c] += (scale * bits * term.d_variance_value) as f32;
            }
        }
        nats * bits
    }
}

impl<'a> SampleValues<'a> {
    /// The output's channels and their gradient, pixel by pixel.
    fn pixels<'g>(&self, grad: &'g mut [f32]) -> impl Iterator<Item = (&'a [f32], &'g mut [f32])> {
        let out_channels = self.channels * (self.output.len() / self.x_start.len().max(1));
        self.output.chunks_exact(out_channels).zip(grad.chunks_exact_mut(out_channels))
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
