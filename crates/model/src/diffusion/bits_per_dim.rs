//! The bound of an image, step by step (Ho et al. 2020, eq. 5), for `eval nll`.
//!
//! ```text
//! -log2 p(x_0) <= sum_t L_t + L_T           per dimension
//! ```
//! Every t is visited once, with one draw of noise: an unbiased estimate of the bound, whose error the spread over images
//! shows. Predicted x_0 are clamped to [-1, 1], as in the reference implementation.

use candle_core::Tensor;

use super::vlb::{BoundTerms, bound_terms, prior_bits};
use super::{DiffusionError, DiffusionProcess, Timestep};

/// The bound of each image: bits per dimension of each step, and the errors behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct BitsPerDim {
    /// `L_T`: the information about the image that is left in x_T.
    pub prior: f64,
    /// `L_t` for each of the process' steps.
    pub vb: Vec<f64>,
    /// Mean squared error of eps.
    pub mse: Vec<f64>,
    /// Mean squared error of the predicted x_0.
    pub xstart_mse: Vec<f64>,
}

impl BitsPerDim {
    /// For each image of `x_start`, `[N, H, W, C]` in [-1, 1]: the prior term, which needs no network, and room for the steps.
    ///
    /// # Errors
    /// Candle's own.
    pub fn before_any_step(process: &DiffusionProcess, x_start: &Tensor) -> Result<Vec<Self>, DiffusionError> {
        let zeros = || vec![0.0; process.schedule().len()];
        let empty = |prior| Self { prior, vb: zeros(), mse: zeros(), xstart_mse: zeros() };
        Ok(prior_bits(process, x_start)?.into_iter().map(empty).collect())
    }

    /// Stores the terms of a step.
    pub fn set(&mut self, index: usize, terms: &BoundTerms) {
        self.vb[index] = terms.vb;
        self.mse[index] = terms.mse;
        self.xstart_mse[index] = terms.xstart_mse;
    }

    /// The bound: bits per dimension in all.
    pub fn total(&self) -> f64 {
        self.prior + self.vb.iter().sum::<f64>()
    }
}

/// The bound of each of the images `x_start`, `[N, H, W, C]` in [-1, 1].
///
/// `process` may be respaced. `noise(t)` and `denoise(x_t, t)` are given the timestep that the network knows; both may
/// fail with the caller's error.
pub fn bits_per_dim<E: From<DiffusionError>>(
    process: &DiffusionProcess,
    x_start: &Tensor,
    noise: &mut dyn FnMut(Timestep) -> Result<Tensor, E>,
    denoise: &mut dyn FnMut(&Tensor, Timestep) -> Result<Tensor, E>,
) -> Result<Vec<BitsPerDim>, E> {
    let mut images = BitsPerDim::before_any_step(process, x_start)?;
    for index in 0..process.schedule().len() {
        let t = process.schedule().timestep(index)?;
        let network_t = process.network_timestep(t)?;
        let batch = vec![t; images.len()];
        let noise = noise(network_t)?;
        let output = denoise(&process.q_sample(x_start, &batch, &noise)?, network_t)?;
        let terms = bound_terms(process, &output, x_start, &noise, &batch)?;
        for (image, terms) in images.iter_mut().zip(terms) {
            image.set(index, &terms);
        }
    }
    Ok(images)
}
