//! The diffusion process: noise schedules, what a network learns from them, and how images come back out.
//!
//! | file | what |
//! | --- | --- |
//! | `config` | the `[diffusion]` and `[loss]` tables of a config file |
//! | `schedule` | every table that depends on t alone, in f64 |
//! | `timestep` | checked timesteps, and how training chooses them |
//! | `process` | q(x_t given x_0), the posterior, what a network's output means |
//! | `likelihood`, `vlb` | the decoder, and the variational bound in bits per dimension |
//! | `loss` | what training minimises, with its gradient |
//! | `respacing`, `samplers` | which timesteps a sampler visits, and what it does there |
//!
//! Sources: Ho et al. 2020 (DDPM, arXiv 2006.11239), Nichol & Dhariwal 2021 (improved DDPM, 2102.09672), Song et al.
//! 2020 (DDIM, 2010.02502), Salimans & Ho 2022 (v-prediction, 2202.00512), Hang et al. 2023 (min-SNR, 2303.09556).
//! `t` runs over `0..T`; t = 0 is the least noisy step, the papers' t = 1. Images are `[N, H, W, C]` in [-1, 1].

mod config;
mod error;
mod likelihood;
mod loss;
mod process;
mod respacing;
mod samplers;
mod schedule;
#[cfg(test)]
mod tests;
mod timestep;
mod values;
mod vlb;

pub use config::{
    BetaSchedule, DiffusionConfig, LossConfig, LossKind, PredictionType, TimestepSamplerKind, VarianceType,
};
pub use error::DiffusionError;
pub use loss::{Loss, LossInputs, LossValue};
pub use process::DiffusionProcess;
pub use respacing::Spacing;
pub use samplers::{SamplerConfig, SamplerKind, sample};
pub use schedule::{LogVariance, Schedule};
pub use timestep::{DrawnTimesteps, Timestep, TimestepSampler};
pub use vlb::{prior_bits, vlb_bits};
