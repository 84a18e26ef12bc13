//! DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): few steps, deterministic.
//!
//! DDIM's ODE in `lambda = log(alpha / sigma)`, half the logarithm of the signal-to-noise ratio, where its linear part is
//! solved exactly and x_0 as a function of lambda is extrapolated from the last two predictions. With one prediction
//! alone it is DDIM at eta = 0. The last step, to sigma = 0, is of first order: there it is x_0 itself.

use ddpm_kernels::ops::diffusion::SamplerConstants;

use crate::diffusion::DiffusionProcess;

/// `sigma_next / sigma_t x - decay (x_0 + half_ratio (x_0 - x_0 of the step before))`; half_ratio is half of this step in lambda over
/// the one before, and 0 at the first step. At t = 0 the next point is x_0 itself.
pub(super) fn step(process: &DiffusionProcess, t: usize, x_start: SamplerConstants) -> SamplerConstants {
    let schedule = process.schedule();
    let Some(next) = t.checked_sub(1) else {
        return SamplerConstants { mean_x_start: 1.0, ..x_start };
    };
    let lambda = |t: usize| 0.5 * schedule.snr()[t].ln();
    let sigma = |t: usize| (1.0 - schedule.alphas_cumprod()[t]).sqrt();
    let step = lambda(next) - lambda(t);
    let previous = Some(t + 1).filter(|&previous| previous < schedule.len());
    let half_ratio = previous.map_or(0.0, |previous| 0.5 * step / (lambda(t) - lambda(previous)));
    // The part of x_0 that comes in, negative.
    let decay = schedule.alphas_cumprod()[next].sqrt() * (-step).exp_m1();
    SamplerConstants {
        mean_x_t: sigma(next) / sigma(t),
        mean_x_start: -decay * (1.0 + half_ratio),
        mean_previous: decay * half_ratio,
        ..x_start
    }
}
