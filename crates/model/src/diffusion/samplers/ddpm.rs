//! Ancestral sampling: Algorithm 2 of Ho et al. 2020, through the predicted x_0 so that it can be clamped.

use candle_core::Tensor;

use super::{Transition, predicted_x_start};
use crate::diffusion::{DiffusionError, DiffusionProcess, Timestep};

/// N(mu~_t(x_t, predicted x_0), the model's variance), eqs. 7 and 11; no noise at t = 0.
pub(super) fn transition(
    process: &DiffusionProcess,
    output: &Tensor,
    x_t: &Tensor,
    t: Timestep,
) -> Result<Transition, DiffusionError> {
    let batch = vec![t; x_t.dim(0)?];
    let x_start = predicted_x_start(process, output, x_t, &batch)?;
    let mean = process.q_posterior_mean(&x_start, x_t, &batch)?;
    if t.index() == 0 {
        return Ok(Transition { mean, standard_deviation: None, x_start });
    }
    let log_variance = process.model_log_variance(output, x_t.dims(), &batch)?;
    Ok(Transition { mean, standard_deviation: Some((log_variance * 0.5)?.exp()?), x_start })
}
