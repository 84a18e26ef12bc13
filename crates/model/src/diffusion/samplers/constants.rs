//! A sampler's steps as numbers: what the files beside this one make of tensors,
//! [`SamplerState::step`](ddpm_kernels::ops::diffusion::SamplerState::step) computes of their factors, on a GPU in one launch.

use ddpm_kernels::ops::diffusion::SamplerConstants;

use super::{SamplerConfig, SamplerKind, ddim, dpm};
use crate::diffusion::process::LogVarianceRange;
use crate::diffusion::{DiffusionError, DiffusionProcess, LogVariance, Timestep};

/// The steps of [`sample`](super::sample) in their order: what the network is told, and what is done with its output. They
/// are what [`SamplerState::step`](ddpm_kernels::ops::diffusion::SamplerState::step) computes with, and `guidance` is the
/// weight of its unguided output, where it gets one.
///
/// # Errors
/// As [`SamplerConfig::kept_timesteps`].
pub fn sampler_constants(
    process: &DiffusionProcess,
    config: &SamplerConfig,
    guidance: f64,
) -> Result<Vec<(Timestep, SamplerConstants)>, DiffusionError> {
    let kept = config.kept_timesteps(process.schedule().len())?;
    let process = process.respaced(&kept)?;
    let steps = (0..kept.len()).rev().map(|index| {
        let t = process.schedule().timestep(index)?;
        let x_start = process.x_start_in_prediction(index);
        let constants = SamplerConstants {
            guidance,
            x_start_x_t: x_start.x_t,
            x_start_prediction: x_start.prediction,
            clip: f64::from(u8::from(process.config().clip_sample)),
            ..SamplerConstants::default()
        };
        let constants = match config.sampler {
            SamplerKind::Ddpm => of_ddpm(&process, index, constants),
            SamplerKind::Ddim => of_ddim(&process, t, config.eta, constants),
            SamplerKind::Dpm => of_dpm(&process, index, constants),
        };
        Ok((process.network_timestep(t)?, constants))
    });
    steps.collect()
}

fn of_ddpm(process: &DiffusionProcess, t: usize, constants: SamplerConstants) -> SamplerConstants {
    let schedule = process.schedule();
    let mean = SamplerConstants {
        mean_x_start: schedule.posterior_mean_coef1()[t],
        mean_x_t: schedule.posterior_mean_coef2()[t],
        ..constants
    };
    if t == 0 { mean } else { with_noise(mean, process.log_variance_range(t)) }
}

fn of_ddim(process: &DiffusionProcess, t: Timestep, eta: f64, constants: SamplerConstants) -> SamplerConstants {
    let ddim::Factors { x_start, noise, sigma } = ddim::factors(process, t, eta);
    let eps = process.noise_in_prediction(t.index());
    let mean = SamplerConstants {
        mean_x_start: x_start,
        mean_x_t: noise * eps.x_t,
        mean_prediction: noise * eps.prediction,
        ..constants
    };
    if sigma == 0.0 {
        return mean;
    }
    with_noise(mean, LogVarianceRange { lower: LogVariance(2.0 * sigma.ln()), width: 0.0 })
}

fn of_dpm(process: &DiffusionProcess, t: usize, constants: SamplerConstants) -> SamplerConstants {
    let schedule = process.schedule();
    let previous = Some(t + 1).filter(|&previous| previous < schedule.len());
    let Some(dpm::Factors { x_t, decay, half_ratio }) = dpm::factors(schedule, t, previous) else {
        return SamplerConstants { mean_x_start: 1.0, ..constants };
    };
    let half_ratio = half_ratio.unwrap_or(0.0);
    SamplerConstants {
        mean_x_t: x_t,
        mean_x_start: -decay * (1.0 + half_ratio),
        mean_previous: decay * half_ratio,
        ..constants
    }
}

fn with_noise(mean: SamplerConstants, log_variance: LogVarianceRange) -> SamplerConstants {
    SamplerConstants {
        noise: 1.0,
        log_variance_lower: log_variance.lower.0,
        log_variance_width: log_variance.width,
        ..mean
    }
}
