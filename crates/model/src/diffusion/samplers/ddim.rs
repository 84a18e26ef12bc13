//! DDIM (Song et al. 2020, arXiv 2010.02502): the same marginals as the forward process, with any amount of noise.

use candle_core::Tensor;
use ddpm_kernels::ops::diffusion::SamplerConstants;

use super::{SamplerConfig, with_noise};
use crate::diffusion::process::LogVarianceRange;
use crate::diffusion::{DiffusionError, DiffusionProcess, LogVariance, Timestep};

/// Eq. 12, with the sigma of eq. 16. eps is the network's own even where x_0 was clamped, or, with
/// `use_clipped_model_output`, what x_t and the clamped x_0 leave for it: `(x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)`, as
/// in improved DDPM's code (`ddim_sample`). Both under diffusers' names.
pub(super) fn step(
    process: &DiffusionProcess,
    t: usize,
    config: &SamplerConfig,
    x_start: SamplerConstants,
) -> SamplerConstants {
    let eta = config.eta;
    let bar = process.schedule().alphas_cumprod()[t];
    let bar_prev = process.schedule().alphas_cumprod_prev()[t];
    let sigma = eta * ((1.0 - bar_prev) / (1.0 - bar)).sqrt() * (1.0 - bar / bar_prev).sqrt();
    let of_noise = (1.0 - bar_prev - sigma * sigma).max(0.0).sqrt();
    let mean = if config.use_clipped_model_output {
        let of_x_t = of_noise / (1.0 - bar).sqrt();
        SamplerConstants { mean_x_start: bar_prev.sqrt() - of_x_t * bar.sqrt(), mean_x_t: of_x_t, ..x_start }
    } else {
        let eps = process.noise_in_prediction(t);
        SamplerConstants {
            mean_x_start: bar_prev.sqrt(),
            mean_x_t: of_noise * eps.x_t,
            mean_prediction: of_noise * eps.prediction,
            ..x_start
        }
    };
    if sigma == 0.0 {
        return mean;
    }
    with_noise(mean, LogVarianceRange { lower: LogVariance(2.0 * sigma.ln()), width: 0.0 })
}

/// The x_t that [`step`] at eta = 0, without clamping, takes to `x_prev`, given the eps at `t` in the direction of
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
