//! DDIM (Song et al. 2020, arXiv 2010.02502): the same marginals as the forward process, with as much noise as wanted.

use candle_core::Tensor;

use super::{Transition, predicted_x_start};
use crate::diffusion::{DiffusionError, DiffusionProcess, Timestep};

/// What a step is made of.
pub(super) struct Factors {
    /// Factor of x_0 in the mean.
    pub(super) x_start: f64,
    /// Factor of eps in it.
    pub(super) noise: f64,
    /// Standard deviation of the noise that is added.
    pub(super) sigma: f64,
}

/// Eq. 12, with the sigma of eq. 16.
pub(super) fn factors(process: &DiffusionProcess, t: Timestep, eta: f64) -> Factors {
    let bar = process.schedule().alphas_cumprod()[t.index()];
    let bar_prev = process.schedule().alphas_cumprod_prev()[t.index()];
    let sigma = eta * ((1.0 - bar_prev) / (1.0 - bar)).sqrt() * (1.0 - bar / bar_prev).sqrt();
    Factors { x_start: bar_prev.sqrt(), noise: (1.0 - bar_prev - sigma * sigma).max(0.0).sqrt(), sigma }
}

/// The step of [`factors`]. As in diffusers, eps is the network's own even where x_0 was clamped.
pub(super) fn transition(
    process: &DiffusionProcess,
    output: &Tensor,
    x_t: &Tensor,
    t: Timestep,
    eta: f64,
) -> Result<Transition, DiffusionError> {
    let batch = vec![t; x_t.dim(0)?];
    let x_start = predicted_x_start(process, output, x_t, &batch)?;
    let noise = process.predict_noise(output, x_t, &batch)?;

    let Factors { x_start: of_x_start, noise: of_noise, sigma } = factors(process, t, eta);
    let mean = ((&x_start * of_x_start)? + (noise * of_noise)?)?;
    if sigma == 0.0 {
        return Ok(Transition { mean, standard_deviation: None, x_start });
    }
    let standard_deviation = Tensor::new(sigma, x_t.device())?.to_dtype(x_t.dtype())?;
    Ok(Transition { mean, standard_deviation: Some(standard_deviation), x_start })
}

/// The x_t that [`transition`] at eta = 0, without clamping, takes to `x_prev`, given the eps at `t` in the direction of
/// x_t (section 4.3: the ODE, backwards). `output` is the network's at `near`, which should be close to that x_t.
pub(super) fn inverse(
    process: &DiffusionProcess,
    output: &Tensor,
    near: &Tensor,
    x_prev: &Tensor,
    t: Timestep,
) -> Result<Tensor, DiffusionError> {
    let noise = process.predict_noise(output, near, &vec![t; near.dim(0)?])?;
    let bar = process.schedule().alphas_cumprod()[t.index()];
    let bar_prev = process.schedule().alphas_cumprod_prev()[t.index()];
    let signal = (bar / bar_prev).sqrt();
    Ok(((x_prev * signal)? + (noise * ((1.0 - bar).sqrt() - signal * (1.0 - bar_prev).sqrt()))?)?)
}
