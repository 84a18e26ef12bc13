//! The variational bound on the likelihood, term by term (Ho et al. 2020, eq. 5), in bits per dimension.
//!
//! - `L_t`: a divergence of two Gaussians, at t = 0 the discretised decoder; computed in [`ddpm_kernels::ops::diffusion`];
//! - the prior term `L_T`: KL(q(x_T | x_0) || N(0, I)), which does not depend on the network.
//!
//! Bits per dimension are nats, averaged over an image's values, over ln 2.

use std::f64::consts::LN_2;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, bound};

use super::process::check_count;
use super::{DiffusionError, DiffusionProcess, Timestep};

/// The terms of one step for an image; all are means over its values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BoundTerms {
    /// `L_t` in bits per dimension.
    pub vb: f64,
    /// Squared error of the predicted x_0.
    pub xstart_mse: f64,
    /// Squared error of the eps that belongs to that x_0: `snr_t` times the error of x_0, since x_t is the same.
    pub mse: f64,
}

impl BoundTerms {
    /// The terms at `t`, a timestep of the process.
    pub fn new(process: &DiffusionProcess, t: Timestep, vb: f64, xstart_mse: f64) -> Self {
        Self { vb, xstart_mse, mse: process.schedule().snr()[t.index()] * xstart_mse }
    }
}

/// `L_t` of each of the images `x_start` `[N, H, W, C]` with this `noise`, and the errors behind it, for a predicted x_0 that is
/// clamped to [-1, 1], as is usual when a model is evaluated, but not in training.
///
/// # Errors
/// Tensors that do not fit together, or a timestep that the process does not have.
pub fn bound_terms(
    process: &DiffusionProcess,
    model_output: &Tensor,
    x_start: &Tensor,
    noise: &Tensor,
    t: &[Timestep],
) -> Result<Vec<BoundTerms>, DiffusionError> {
    check_count("vlb", "t", t.len(), x_start)?;
    process.check_output("vlb", model_output, x_start.dims())?;
    let samples = process.constants_at(t)?;
    let samples = SampleConstants::tensor(&samples, x_start.device())?;
    let images = NoisyImages { images: x_start, samples: &samples, noise: Noise::Given(noise) };
    let terms = bound(&images, &model_output.contiguous()?)?.to_vec2::<f64>()?;
    Ok(t.iter().zip(terms).map(|(&t, terms)| BoundTerms::new(process, t, terms[0], terms[1])).collect())
}

/// The prior term of each sample, in bits per dimension: `[N]`.
pub fn prior_bits(process: &DiffusionProcess, x_start: &Tensor) -> Result<Vec<f64>, DiffusionError> {
    let Some(&bar) = process.schedule().alphas_cumprod().last() else { return Ok(vec![]) };
    let x_start = x_start.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?;
    // KL(N(sqrt(bar) x, 1 - bar) || N(0, 1)) = (bar x^2 - bar - ln(1 - bar)) / 2
    let nats = |x: &f32| 0.5 * (bar * f64::from(*x).powi(2) - bar - (-bar).ln_1p());
    let images = x_start.to_vec2::<f32>()?;
    Ok(images.iter().map(|image| image.iter().map(nats).sum::<f64>() / (image.len() as f64 * LN_2)).collect())
}
