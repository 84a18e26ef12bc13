//! From noise to images: the reverse process, by one of several samplers.
//!
//! [`sample`] visits the timesteps from the noisiest down. A sampler describes each of its steps by a few numbers
//! ([`SamplerConstants`]); a new sampler is a file here and a variant of [`SamplerKind`]. [`SamplerState::step`] applies these
//! numbers to images, on a CPU and on a GPU. [`invert`] goes the other way, from an image to its noise.

mod ddim;
mod ddpm;
mod dpm;
mod interpolation;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Tensor};
use ddpm_kernels::ops::diffusion::{Noise, SamplerConstants, SamplerState, SamplerStep};
use serde::{Deserialize, Serialize};

use super::process::LogVarianceRange;
use super::{DiffusionError, DiffusionProcess, Spacing, Timestep};
pub use interpolation::slerp;

/// Which sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SamplerKind {
    /// Ancestral sampling from p(x_{t-1} | x_t) (Ho et al. 2020).
    #[default]
    Ddpm,
    /// The non-Markov sampler of Song et al. 2020: better with few steps, deterministic at eta = 0.
    Ddim,
    /// DPM-Solver++(2M) (Lu et al. 2022): deterministic, good in 10 to 20 steps.
    Dpm,
}

impl SamplerKind {
    /// The default choice of steps. A second-order solver gains from starting at the noisiest timestep; the others follow
    /// diffusers.
    pub fn default_spacing(self) -> Spacing {
        match self {
            Self::Ddpm | Self::Ddim => Spacing::Leading,
            Self::Dpm => Spacing::Trailing,
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Dpm => "dpm",
        })
    }
}

impl FromStr for SamplerKind {
    type Err = DiffusionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ddpm" => Ok(Self::Ddpm),
            "ddim" => Ok(Self::Ddim),
            "dpm" => Ok(Self::Dpm),
            _ => {
                let found = format!("\"{text}\"");
                Err(DiffusionError::setting("sampler", &found, "ddpm, ddim or dpm", "write one of these"))
            }
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
    /// How many timesteps to visit; if absent, all of them or those of a respacing.
    pub steps: Option<usize>,
    /// DDIM's noise: 0 none, 1 as much as ancestral sampling. It is 0 for the other samplers.
    pub eta: f64,
    /// DDIM's eps follows from x_0 after it was clamped, instead of being the network's own; false for the other samplers.
    pub use_clipped_model_output: bool,
    /// Which timesteps to visit.
    pub spacing: Spacing,
}

impl SamplerConfig {
    /// Checks the settings against a model of `num_train_timesteps`; returns the visited timesteps, ascending.
    pub fn kept_timesteps(&self, num_train_timesteps: usize) -> Result<Vec<Timestep>, DiffusionError> {
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(DiffusionError::setting(
                "eta",
                &self.eta,
                "a number from 0 to 1",
                "0 makes ddim deterministic, 1 as noisy as ddpm",
            ));
        }
        if self.sampler != SamplerKind::Ddim && self.eta != 0.0 {
            let why = match self.sampler {
                SamplerKind::Ddpm => "whose noise is the model's variance",
                SamplerKind::Ddim | SamplerKind::Dpm => "which adds no noise",
            };
            return Err(DiffusionError::setting(
                "eta",
                &self.eta,
                format!("0 with the {} sampler, {why}", self.sampler),
                "choose the ddim sampler, or leave eta out",
            ));
        }
        if self.sampler != SamplerKind::Ddim && self.use_clipped_model_output {
            return Err(DiffusionError::setting(
                "use_clipped_model_output",
                &true,
                format!("false with the {} sampler, whose step knows x_0 alone", self.sampler),
                "choose the ddim sampler, or leave it out",
            ));
        }
        self.spacing.kept_timesteps(self.steps, num_train_timesteps)
    }
}

/// The steps of [`sample`] in their order: the timestep for the network, and the constants for [`SamplerState::step`].
/// `guidance` is the weight of the unguided output, if there is one.
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
    let steps = (0..kept.len()).rev().map(|t| {
        let x_start = process.x_start_in_prediction(t);
        let x_start = SamplerConstants {
            guidance,
            x_start_x_t: x_start.x_t,
            x_start_prediction: x_start.prediction,
            clip: f64::from(u8::from(process.config().clip_sample)),
            ..SamplerConstants::default()
        };
        let constants = match config.sampler {
            SamplerKind::Ddpm => ddpm::step(&process, t, x_start),
            SamplerKind::Ddim => ddim::step(&process, t, config, x_start),
            SamplerKind::Dpm => dpm::step(&process, t, x_start),
        };
        Ok((process.network_timestep(process.schedule().timestep(t)?)?, constants))
    });
    steps.collect()
}

fn with_noise(mean: SamplerConstants, log_variance: LogVarianceRange) -> SamplerConstants {
    SamplerConstants {
        noise: 1.0,
        log_variance_lower: log_variance.lower.0,
        log_variance_width: log_variance.width,
        ..mean
    }
}

/// The network: `(x_t, t)` to its output. t is a timestep of the schedule it was trained on.
pub type Denoise<'a, E> = dyn FnMut(&Tensor, Timestep) -> Result<Tensor, E> + 'a;

/// An observer, called with `(t, predicted x_0)` after each pass through the network.
pub type Observe<'a, E> = dyn FnMut(Timestep, &Tensor) -> Result<(), E> + 'a;

/// Turns `x_t`, which is x_T ~ N(0, I) of shape `[N, H, W, C]`, into N images (in [-1, 1] where the model predicts such).
///
/// `denoise(x_t, t)` is the network; t is a timestep of the schedule it was trained on, which is that of `process` before
/// respacing. `noise(step)` gives the standard normals of step 0, 1, ..., shaped like `x_t`; it is not called for a step that
/// needs none. Both may fail with an error of the caller's.
pub fn sample<E: From<DiffusionError>>(
    process: &DiffusionProcess,
    config: &SamplerConfig,
    x_t: Tensor,
    noise: &mut dyn FnMut(usize) -> Result<Tensor, E>,
    denoise: &mut Denoise<'_, E>,
) -> Result<Tensor, E> {
    sample_observed(process, config, x_t, noise, denoise, &mut |_, _| Ok(()))
}

/// [`sample`], with an observer.
pub fn sample_observed<E: From<DiffusionError>>(
    process: &DiffusionProcess,
    config: &SamplerConfig,
    x_t: Tensor,
    noise: &mut dyn FnMut(usize) -> Result<Tensor, E>,
    denoise: &mut Denoise<'_, E>,
    observe: &mut Observe<'_, E>,
) -> Result<Tensor, E> {
    let steps = sampler_constants(process, config, 0.0)?;
    let state = begun_at(&x_t)?;
    // Placeholder for the noise of a step that has none.
    let still = x_t;
    for (step, (t, constants)) in steps.into_iter().enumerate() {
        let output = denoise(&kept(state.x_t())?, t)?;
        process.check_output("sample", &output, still.dims())?;
        let noise = if constants.noise == 0.0 { still.clone() } else { noise(step)? };
        take_step(&state, &constants, &output, &noise)?;
        observe(t, &kept(state.x_start())?)?;
    }
    Ok(state.x_t().clone())
}

fn begun_at(x_t: &Tensor) -> Result<SamplerState, DiffusionError> {
    let state = SamplerState::new(x_t.dims4()?.into(), DType::F32, x_t.device())?;
    state.begin_at(&x_t.contiguous()?)?;
    Ok(state)
}

/// A copy, because the state's memory is overwritten.
fn kept(tensor: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok(tensor.copy()?)
}

fn take_step(
    state: &SamplerState,
    constants: &SamplerConstants,
    output: &Tensor,
    noise: &Tensor,
) -> Result<(), DiffusionError> {
    let (constants, output) = (Tensor::new(&constants.words(), output.device())?, output.contiguous()?);
    let noise = noise.contiguous()?;
    let step = SamplerStep { constants: &constants, noise: Noise::Given(&noise), output: &output, unguided: None };
    Ok(state.step(&step)?)
}

/// The x_T from which deterministic DDIM draws the images `x_start`: the inverse of its steps.
///
/// An inverse step (Song et al. 2020, section 4.3) needs eps at its end point, which is unknown before the step. It starts with
/// eps at its start point, with the time of its end, and is then repeated `refinements` times with eps at the point found: a
/// fixed-point iteration with one pass through the network each. To draw the images again, give [`sample`] the same config and
/// a process that does not clamp ([`DiffusionProcess::unclamped`]).
///
/// # Errors
/// The config's sampler is not deterministic DDIM, or the caller's `denoise` fails.
pub fn invert<E: From<DiffusionError>>(
    process: &DiffusionProcess,
    config: &SamplerConfig,
    x_start: Tensor,
    refinements: usize,
    denoise: &mut Denoise<'_, E>,
) -> Result<Tensor, E> {
    if config.sampler != SamplerKind::Ddim || config.eta != 0.0 {
        let found = format!("{} with eta = {}", config.sampler, config.eta);
        let help = "use --sampler ddim, and leave eta out";
        let expected = "ddim with eta = 0: no other sampler's way can be walked back";
        return Err(DiffusionError::setting("sampler", &found, expected, help).into());
    }
    let kept = config.kept_timesteps(process.schedule().len())?;
    let process = process.respaced(&kept)?;
    let mut x_prev = x_start;
    for index in 0..kept.len() {
        let t = process.schedule().timestep(index)?;
        let mut x_t = x_prev.clone();
        for _ in 0..=refinements {
            let output = denoise(&x_t, process.network_timestep(t)?)?;
            x_t = ddim::inverse(&process, &output, &x_t, &x_prev, t)?;
        }
        x_prev = x_t;
    }
    Ok(x_prev)
}
