//! From noise to images: the reverse process, by one of several samplers.
//!
//! [`sample`] walks the visited timesteps from the noisiest down. A sampler is one function from the network's output
//! to the [`Transition`] p(x_{t-1} | x_t); a new one is a file here and a variant of [`SamplerKind`].

mod ddim;
mod ddpm;

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{DiffusionError, DiffusionProcess, Spacing, Timestep};

/// Which sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SamplerKind {
    /// Ancestral sampling from p(x_{t-1} | x_t) (Ho et al. 2020).
    #[default]
    Ddpm,
    /// The non-Markov sampler of Song et al. 2020: better with few steps, deterministic at eta = 0.
    Ddim,
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
        })
    }
}

impl FromStr for SamplerKind {
    type Err = DiffusionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ddpm" => Ok(Self::Ddpm),
            "ddim" => Ok(Self::Ddim),
            "dpm" => Err(DiffusionError::setting(
                "sampler",
                &"dpm",
                "ddpm or ddim: this version does not have DPM-Solver++ yet",
                "for few steps use ddim",
            )),
            _ => Err(DiffusionError::setting("sampler", &format!("\"{text}\""), "ddpm or ddim", "write one of these")),
        }
    }
}

impl TryFrom<String> for SamplerKind {
    type Error = DiffusionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SamplerKind> for String {
    fn from(kind: SamplerKind) -> Self {
        kind.to_string()
    }
}

/// How to sample; the default is ancestral, through every timestep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplerConfig {
    /// The sampler.
    pub sampler: SamplerKind,
    /// How many timesteps to visit: all of them, or those of a respacing, where absent.
    pub steps: Option<usize>,
    /// DDIM's noise: 0 none, 1 as much as ancestral sampling. 0 for `ddpm`, which has no such choice.
    pub eta: f64,
    /// Which timesteps to visit.
    pub spacing: Spacing,
}

impl SamplerConfig {
    /// Checks the settings against a model of `num_train_timesteps`; the visited timesteps, ascending.
    pub fn kept_timesteps(&self, num_train_timesteps: usize) -> Result<Vec<Timestep>, DiffusionError> {
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(DiffusionError::setting(
                "eta",
                &self.eta,
                "a number from 0 to 1",
                "0 makes ddim deterministic, 1 as noisy as ddpm",
            ));
        }
        if self.sampler == SamplerKind::Ddpm && self.eta != 0.0 {
            return Err(DiffusionError::setting(
                "eta",
                &self.eta,
                "0 with the ddpm sampler, whose noise is the model's variance",
                "choose the ddim sampler, or leave eta out",
            ));
        }
        self.spacing.kept_timesteps(self.steps, num_train_timesteps)
    }
}

/// A Gaussian p(x_{t-1} | x_t).
struct Transition {
    mean: Tensor,
    /// Broadcasts over `mean`; `None` where the step adds no noise.
    standard_deviation: Option<Tensor>,
}

/// Turns `x_t`, which is x_T ~ N(0, I) of shape `[N, H, W, C]`, into N images (in [-1, 1] where the model predicts such).
///
/// `denoise(x_t, t)` is the network; t is a timestep of the schedule it was trained on, so of the unrespaced `process`.
/// `noise(step)` gives the standard normals of step 0, 1, ..., shaped like `x_t`; it is not called for a step that
/// needs none. Both may fail with an error of the caller's.
pub fn sample<E: From<DiffusionError>>(
    process: &DiffusionProcess,
    config: &SamplerConfig,
    mut x_t: Tensor,
    noise: &mut dyn FnMut(usize) -> Result<Tensor, E>,
    denoise: &mut dyn FnMut(&Tensor, Timestep) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let kept = config.kept_timesteps(process.schedule().len())?;
    let process = process.respaced(&kept)?;
    for (step, index) in (0..kept.len()).rev().enumerate() {
        let t = process.schedule().timestep(index)?;
        let output = denoise(&x_t, process.network_timestep(t)?)?;
        let Transition { mean, standard_deviation } = match config.sampler {
            SamplerKind::Ddpm => ddpm::transition(&process, &output, &x_t, t)?,
            SamplerKind::Ddim => ddim::transition(&process, &output, &x_t, t, config.eta)?,
        };
        x_t = match standard_deviation {
            Some(deviation) => add_noise(&mean, &deviation, &noise(step)?)?,
            None => mean,
        };
    }
    Ok(x_t)
}

fn add_noise(mean: &Tensor, deviation: &Tensor, noise: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok((mean + noise.broadcast_mul(deviation)?)?)
}

/// The x_0 the output stands for, clamped to [-1, 1] where the config asks for it.
fn predicted_x_start(
    process: &DiffusionProcess,
    output: &Tensor,
    x_t: &Tensor,
    t: &[Timestep],
) -> Result<Tensor, DiffusionError> {
    let x_start = process.predict_x_start(output, x_t, t)?;
    Ok(if process.config().clip_sample { x_start.clamp(-1.0, 1.0)? } else { x_start })
}
