//! Ancestral sampling: Algorithm 2 of Ho et al. 2020, through the predicted x_0 so that it can be clamped.

use ddpm_kernels::ops::diffusion::SamplerConstants;

use super::with_noise;
use crate::diffusion::DiffusionProcess;

/// N(mu~_t(x_t, predicted x_0), the model's variance), eqs. 7 and 11; no noise at t = 0.
pub(super) fn step(process: &DiffusionProcess, t: usize, x_start: SamplerConstants) -> SamplerConstants {
    let schedule = process.schedule();
    let mean = SamplerConstants {
        mean_x_start: schedule.posterior_mean_coef1()[t],
        mean_x_t: schedule.posterior_mean_coef2()[t],
        ..x_start
    };
    if t == 0 { mean } else { with_noise(mean, process.log_variance_range(t)) }
}
