//! The diffusion process: noise schedules, losses, and samplers.
//!
//! | file | what |
//! | --- | --- |
//! | `config` | the `[diffusion]` and `[loss]` tables of a config file |
//! | `schedule` | every table that depends on t alone, in f64 |
//! | `timestep`, `loss_history` | checked timesteps, and how training chooses them |
//! | `process` | q(x_t given x_0), the posterior, what a network's output means |
//! | `vlb`, `bits_per_dim` | the terms of the variational bound, and their sum over t |
//! | `loss` | what training minimises, with its gradient |
//! | `respacing`, `samplers` | which timesteps a sampler visits, and what it does there |
//!
//! [`ddpm_kernels::ops::diffusion`] does the arithmetic on pixels; this module computes the coefficients of each timestep for
//! it.
//!
//! Sources: Ho et al. 2020 (DDPM, arXiv 2006.11239), Nichol & Dhariwal 2021 (improved DDPM, 2102.09672), Song et al.
//! 2020 (DDIM, 2010.02502), Lu et al. 2022 (DPM-Solver++, 2211.01095), Salimans & Ho 2022 (v-prediction, 2202.00512),
//! Hang et al. 2023 (min-SNR, 2303.09556).
//! `t` runs over `0..T`; t = 0 is the least noisy step, the papers' t = 1. Images are `[N, H, W, C]` in [-1, 1].

mod bits_per_dim;
mod config;
mod error;
mod loss;
mod loss_history;
mod process;
mod respacing;
mod samplers;
mod schedule;
#[cfg(test)]
mod tests;
mod timestep;
mod vlb;

pub use bits_per_dim::{BitsPerDim, bits_per_dim};
pub use config::{
    BetaSchedule, DiffusionConfig, LossConfig, LossKind, PredictionType, TimestepSamplerKind, VarianceType,
};
pub use error::DiffusionError;
pub use loss::{Loss, LossInputs, LossValue};
pub use loss_history::LossHistory;
pub use process::DiffusionProcess;
pub use respacing::Spacing;
pub use samplers::{
    Denoise, Observe, SamplerConfig, SamplerKind, invert, sample, sample_observed, sampler_constants, slerp,
};
pub use schedule::{LogVariance, Schedule};
pub use timestep::{DrawnTimesteps, Timestep, TimestepSampler};
pub use vlb::{BoundTerms, bound_terms, prior_bits};
