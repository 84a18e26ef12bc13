//! The variational bound on the likelihood, term by term (Ho et al. 2020, eq. 5), in bits per dimension.
//!
//! - `L_t`, t > 0: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), a divergence of two Gaussians;
//! - `L_0`: the discretised decoder, see [`likelihood`](super::likelihood);
//! - the prior term `L_T`: KL(q(x_T | x_0) || N(0, I)), which nothing can learn.
//!
//! Bits per dimension are nats, averaged over an image's values, over ln 2.

use std::f64::consts::LN_2;

use candle_core::Tensor;
use rayon::prelude::*;

use super::likelihood::{Nats, negative_log_likelihood};
use super::process::{Linear, LogVarianceRange, check_count, check_dims};
use super::values::{on_host, values};
use super::{DiffusionError, DiffusionProcess, LogVariance, Timestep};

/// What one step of the bound says about an image; all are means over its values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BoundTerms {
    /// `L_t` in bits per dimension.
    pub vb: f64,
    /// Squared error of the predicted x_0.
    pub xstart_mse: f64,
    /// Squared error of the eps that belongs to that x_0: `snr_t` times as much, for x_t is the same.
    pub mse: f64,
}

impl BoundTerms {
    /// At `t`, one of the process'.
    pub fn new(process: &DiffusionProcess, t: Timestep, vb: f64, xstart_mse: f64) -> Self {
        Self { vb, xstart_mse, mse: process.schedule().snr()[t.index()] * xstart_mse }
    }
}

/// `L_t` of each of the N samples, with the errors behind it.
///
/// `clip` clamps the predicted x_0 to [-1, 1], as one does when evaluating and not when training.
pub fn bound_terms(
    process: &DiffusionProcess,
    model_output: &Tensor,
    x_start: &Tensor,
    x_t: &Tensor,
    t: &[Timestep],
    clip: bool,
) -> Result<Vec<BoundTerms>, DiffusionError> {
    check_dims("vlb", "x_t", x_t, x_start.dims())?;
    check_count("vlb", "t", t.len(), x_start)?;
    process.check_output("vlb", model_output, x_start.dims())?;
    let terms = t.iter().map(|&t| BoundTerm::new(process, t)).collect::<Result<Vec<_>, _>>()?;

    let [output, x_start, x_t] = [on_host(model_output)?, on_host(x_start)?, on_host(x_t)?];
    let channels = x_start.dims()[x_start.rank() - 1];
    let [output, x_start, x_t] = [values(&output), values(&x_start), values(&x_t)];
    let (output, x_start, x_t) = (output.as_slice()?, x_start.as_slice()?, x_t.as_slice()?);
    let (per_output, per_image) = (output.len() / t.len().max(1), x_start.len() / t.len().max(1));
    let of_samples = terms.par_iter().enumerate().map(|(i, term)| {
        let image = i * per_image..(i + 1) * per_image;
        let output = &output[i * per_output..(i + 1) * per_output];
        let (vb, xstart_mse) = term.means(output, &x_start[image.clone()], &x_t[image], channels, clip);
        BoundTerms::new(process, t[i], vb, xstart_mse)
    });
    Ok(of_samples.collect())
}

/// The prior term of each sample, in bits per dimension: `[N]`.
pub fn prior_bits(process: &DiffusionProcess, x_start: &Tensor) -> Result<Vec<f64>, DiffusionError> {
    let Some(&bar) = process.schedule().alphas_cumprod().last() else { return Ok(vec![]) };
    let x_start = on_host(x_start)?.flatten_from(1)?;
    // KL(N(sqrt(bar) x, 1 - bar) || N(0, 1)) = (bar x^2 - bar - ln(1 - bar)) / 2
    let nats = |x: &f32| 0.5 * (bar * f64::from(*x).powi(2) - bar - (-bar).ln_1p());
    let images = x_start.to_vec2::<f32>()?;
    Ok(images.iter().map(|image| image.iter().map(nats).sum::<f64>() / (image.len() as f64 * LN_2)).collect())
}

/// One element's share of `L_t` in nats, and its derivatives by the two halves of the network's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct ElementTerm {
    pub(super) nats: f64,
    pub(super) d_prediction: f64,
    pub(super) d_variance_value: f64,
    /// Squared error of the predicted x_0.
    pub(super) squared_error: f64,
}

/// `L_t` at one t: everything that does not depend on the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct BoundTerm {
    pub(super) is_decoder: bool,
    pub(super) x_start: Linear,
    pub(super) mean_coef1: f64,
    pub(super) mean_coef2: f64,
    pub(super) posterior: LogVariance,
    pub(super) log_variance: LogVarianceRange,
}

impl BoundTerm {
    pub(super) fn new(process: &DiffusionProcess, t: Timestep) -> Result<Self, DiffusionError> {
        let schedule = process.schedule();
        let t = schedule.checked(t)?;
        Ok(Self {
            is_decoder: t == 0,
            x_start: process.x_start_in_prediction(t),
            mean_coef1: schedule.posterior_mean_coef1()[t],
            mean_coef2: schedule.posterior_mean_coef2()[t],
            posterior: LogVariance(schedule.posterior_log_variance_clipped()[t]),
            log_variance: process.log_variance_range(t),
        })
    }

    /// The term at one element. `variance_value` is the output's v, unused where the variance is fixed.
    pub(super) fn at(&self, x_start: f64, x_t: f64, prediction: f64, variance_value: f64, clip: bool) -> ElementTerm {
        let LogVarianceRange { lower, width } = self.log_variance;
        let log_variance = LogVariance(lower.0 + 0.5 * (variance_value + 1.0) * width);
        let unclipped = self.x_start.x_t * x_t + self.x_start.prediction * prediction;
        let predicted = if clip { unclipped.clamp(-1.0, 1.0) } else { unclipped };
        let nats = if self.is_decoder {
            let mean = self.mean_coef1 * predicted + self.mean_coef2 * x_t;
            negative_log_likelihood(x_start, mean, log_variance.0)
        } else {
            // Both means hold the same x_t, so that only the two x_0 differ.
            normal_kl(self.mean_coef1 * (predicted - x_start), self.posterior, log_variance)
        };
        let d_mean = if predicted == unclipped { self.mean_coef1 * self.x_start.prediction } else { 0.0 };
        ElementTerm {
            nats: nats.value,
            d_prediction: nats.d_mean * d_mean,
            d_variance_value: nats.d_log_variance * 0.5 * width,
            squared_error: (predicted - x_start).powi(2),
        }
    }

    /// (`L_t` in bits per dimension, squared error of x_0), means over an image.
    fn means(&self, output: &[f32], x_start: &[f32], x_t: &[f32], channels: usize, clip: bool) -> (f64, f64) {
        let pixels = output.chunks_exact(channels * (output.len() / x_start.len().max(1)));
        let images = x_start.chunks_exact(channels).zip(x_t.chunks_exact(channels));
        let (mut nats, mut squared_error) = (0.0, 0.0);
        for (output, (x_start, x_t)) in pixels.zip(images) {
            for c in 0..channels {
                let variance_value = output.get(channels + c).copied().unwrap_or_default();
                let [x_start, x_t, prediction, v] = [x_start[c], x_t[c], output[c], variance_value].map(f64::from);
                let term = self.at(x_start, x_t, prediction, v, clip);
                nats += term.nats;
                squared_error += term.squared_error;
            }
        }
        let values = x_start.len() as f64;
        (nats / (values * LN_2), squared_error / values)
    }
}

/// KL(N(mean - mean_error, q) || N(mean, p)), with its derivatives by p's mean and log variance.
fn normal_kl(mean_error: f64, q: LogVariance, p: LogVariance) -> Nats {
    let precision = (-p.0).exp();
    let ratio = q.variance() * precision;
    let squared = mean_error * mean_error * precision;
    Nats {
        value: 0.5 * (p.0 - q.0 - 1.0 + ratio + squared),
        d_mean: mean_error * precision,
        d_log_variance: 0.5 * (1.0 - ratio - squared),
    }
}
