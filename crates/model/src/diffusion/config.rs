//! The `[diffusion]` and `[loss]` tables of a config file, under diffusers' names.
//!
//! Plain data with defaults in one place. `validate` refuses invalid values by name; [`DiffusionProcess::new`] and
//! [`Loss::new`] call it, so every process and every loss is valid.
//!
//! [`DiffusionProcess::new`]: super::DiffusionProcess::new
//! [`Loss::new`]: super::Loss::new

use serde::{Deserialize, Serialize};

use super::DiffusionError;

/// The largest T, since tables of f64 are built for every timestep; no published model has a tenth of this.
const MAX_TRAIN_TIMESTEPS: usize = 1_000_000;

/// The noise schedule and what the network predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// T, the number of noising steps.
    pub num_train_timesteps: usize,
    /// The shape of `betas` over `0..T`.
    pub beta_schedule: BetaSchedule,
    /// The first beta; `squaredcos_cap_v2` does not use it. Not rescaled by 1000 / T.
    pub beta_start: f64,
    /// The last beta; `squaredcos_cap_v2` does not use it.
    pub beta_end: f64,
    /// What the network's (first) C output channels mean.
    pub prediction_type: PredictionType,
    /// The variance of p(x_{t-1} | x_t).
    pub variance_type: VarianceType,
    /// Whether samplers clamp the predicted x_0 to [-1, 1].
    pub clip_sample: bool,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_schedule: BetaSchedule::Linear,
            beta_start: 1e-4,
            beta_end: 0.02,
            prediction_type: PredictionType::Epsilon,
            variance_type: VarianceType::FixedSmall,
            clip_sample: true,
        }
    }
}

/// How `betas` grow with t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end` (Ho et al. 2020).
    Linear,
    /// The square of an even path between the square roots (latent diffusion).
    ScaledLinear,
    /// The cosine schedule of Nichol & Dhariwal 2021, eq. 17.
    #[serde(rename = "squaredcos_cap_v2", alias = "cosine")]
    SquaredcosCapV2,
    /// A logistic curve from `beta_start` to `beta_end`.
    Sigmoid,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise eps (Ho et al. 2020).
    Epsilon,
    /// The image x_0.
    Sample,
    /// v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022).
    VPrediction,
}

/// Where the variance of p(x_{t-1} | x_t) comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior's, the lower bound.
    FixedSmall,
    /// beta_t, the upper bound.
    FixedLarge,
    /// Learned between the two bounds (Nichol & Dhariwal 2021, eq. 15): the network has 2 C output channels.
    LearnedRange,
}

impl VarianceType {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::FixedSmall => "fixed_small",
            Self::FixedLarge => "fixed_large",
            Self::LearnedRange => "learned_range",
        }
    }

    /// Output channels of a network for images with `channels` channels.
    pub fn out_channels(self, channels: usize) -> usize {
        match self {
            Self::LearnedRange => 2 * channels,
            Self::FixedSmall | Self::FixedLarge => channels,
        }
    }
}

impl DiffusionConfig {
    /// Refuses values that give no valid noise schedule.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        if !(1..=MAX_TRAIN_TIMESTEPS).contains(&self.num_train_timesteps) {
            return Err(DiffusionError::setting(
                "diffusion.num_train_timesteps",
                &self.num_train_timesteps,
                format!("1 to {MAX_TRAIN_TIMESTEPS}"),
                "1000 is usual; the improved-DDPM presets use 4000",
            ));
        }
        if self.beta_schedule == BetaSchedule::SquaredcosCapV2 {
            return Ok(());
        }
        if !(self.beta_start > 0.0 && self.beta_start < 1.0) {
            return Err(DiffusionError::setting(
                "diffusion.beta_start",
                &self.beta_start,
                "a number above 0 and below 1",
                "0.0001 is usual with 1000 timesteps",
            ));
        }
        if !(self.beta_end >= self.beta_start && self.beta_end < 1.0) {
            return Err(DiffusionError::setting(
                "diffusion.beta_end",
                &self.beta_end,
                format!("a number from diffusion.beta_start ({}) to below 1", self.beta_start),
                "0.02 is usual with 1000 timesteps",
            ));
        }
        Ok(())
    }
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Which loss.
    pub kind: LossKind,
    /// Weight of the bound, summed over T and in bits per dimension, in `hybrid`.
    pub vlb_lambda: f64,
    /// The gamma of min-SNR weighting (Hang et al. 2023); off when absent.
    pub min_snr_gamma: Option<f64>,
    /// How t is chosen for a training sample.
    pub timestep_sampler: TimestepSamplerKind,
    /// Probability with which a label is replaced by 'no label', for classifier-free guidance.
    pub label_dropout: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kind: LossKind::Simple,
            vlb_lambda: 0.001,
            min_snr_gamma: None,
            timestep_sampler: TimestepSamplerKind::Uniform,
            label_dropout: 0.0,
        }
    }
}

/// The loss of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// The plain squared error (Ho et al. 2020, eq. 14).
    Simple,
    /// The squared error of eps with the bound's own weight (Ho et al. 2020, eq. 12).
    VlbWeighted,
    /// The bound itself, in bits per dimension.
    Vlb,
    /// `simple + vlb_lambda vlb`, where only the variance learns from the bound (Nichol & Dhariwal 2021, eq. 16).
    Hybrid,
}

impl LossKind {
    /// Whether the variational bound is a part of it.
    pub fn has_bound(self) -> bool {
        matches!(self, Self::Vlb | Self::Hybrid)
    }
}

/// How t is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSamplerKind {
    /// Every t with the same probability.
    Uniform,
    /// More often where the loss is large (Nichol & Dhariwal 2021, eq. 18).
    LossSecondMoment,
}

impl LossConfig {
    /// Refuses invalid values, and invalid combinations with `diffusion`.
    pub fn validate(&self, diffusion: &DiffusionConfig) -> Result<(), DiffusionError> {
        self.validate_variance(diffusion.variance_type)?;
        self.validate_weights()?;
        if !(0.0..1.0).contains(&self.label_dropout) {
            return Err(DiffusionError::setting(
                "loss.label_dropout",
                &self.label_dropout,
                "a probability from 0 to below 1",
                "0.1 is usual for classifier-free guidance, 0 turns it off",
            ));
        }
        Ok(())
    }

    fn validate_variance(&self, variance_type: VarianceType) -> Result<(), DiffusionError> {
        let learned = variance_type == VarianceType::LearnedRange;
        match self.kind {
            LossKind::Vlb | LossKind::Hybrid if !learned => Err(DiffusionError::setting(
                "loss.kind",
                &self.kind.name(),
                "diffusion.variance_type = \"learned_range\" beside it",
                "set diffusion.variance_type = \"learned_range\", or loss.kind = \"simple\"",
            )),
            LossKind::Simple | LossKind::VlbWeighted if learned => Err(DiffusionError::setting(
                "loss.kind",
                &self.kind.name(),
                "\"hybrid\" or \"vlb\" beside diffusion.variance_type = \"learned_range\": nothing else trains the variance",
                "set loss.kind = \"hybrid\", or diffusion.variance_type = \"fixed_small\"",
            )),
            _ => Ok(()),
        }
    }

    fn validate_weights(&self) -> Result<(), DiffusionError> {
        if !(self.vlb_lambda >= 0.0 && self.vlb_lambda.is_finite()) {
            return Err(DiffusionError::setting(
                "loss.vlb_lambda",
                &self.vlb_lambda,
                "a finite number, 0 or more",
                "0.001 is the paper's value",
            ));
        }
        let Some(gamma) = self.min_snr_gamma else { return Ok(()) };
        if !(gamma > 0.0 && gamma.is_finite()) {
            return Err(DiffusionError::setting(
                "loss.min_snr_gamma",
                &gamma,
                "a finite number above 0",
                "5 is the paper's value; leave the key out to turn the weighting off",
            ));
        }
        if matches!(self.kind, LossKind::Vlb | LossKind::VlbWeighted) {
            return Err(DiffusionError::setting(
                "loss.min_snr_gamma",
                &gamma,
                format!("loss.kind = \"simple\" or \"hybrid\" beside it: \"{}\" has its own weights", self.kind.name()),
                "leave loss.min_snr_gamma out, or set loss.kind = \"simple\"",
            ));
        }
        Ok(())
    }
}

impl LossKind {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::VlbWeighted => "vlb_weighted",
            Self::Vlb => "vlb",
            Self::Hybrid => "hybrid",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn learned() -> DiffusionConfig {
        DiffusionConfig { variance_type: VarianceType::LearnedRange, ..Default::default() }
    }

    fn refused_key(result: Result<(), DiffusionError>) -> &'static str {
        let error = result.unwrap_err();
        assert!(error.help().is_some());
        let DiffusionError::Setting { key, .. } = error else { panic!("{error}") };
        key
    }

    #[test]
    fn the_defaults_are_those_of_ho_et_al() {
        DiffusionConfig::default().validate().unwrap();
        LossConfig::default().validate(&DiffusionConfig::default()).unwrap();
        let written = serde_json::to_value(DiffusionConfig::default()).unwrap();
        assert_eq!(
            written,
            serde_json::json!({"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
                "prediction_type": "epsilon", "variance_type": "fixed_small", "clip_sample": true})
        );
    }

    #[test]
    fn cosine_is_another_name_for_squaredcos_cap_v2() {
        let read: DiffusionConfig = serde_json::from_str(r#"{"beta_schedule": "cosine"}"#).unwrap();
        assert_eq!(read.beta_schedule, BetaSchedule::SquaredcosCapV2);
        assert_eq!(serde_json::to_value(read.beta_schedule).unwrap(), "squaredcos_cap_v2");
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        assert!(serde_json::from_str::<DiffusionConfig>(r#"{"beta_schedul": "linear"}"#).is_err());
        assert!(serde_json::from_str::<DiffusionConfig>(r#"{"variance_type": "other"}"#).is_err());
        assert!(serde_json::from_str::<LossConfig>(r#"{"kind": "l1"}"#).is_err());
    }

    #[test]
    fn impossible_schedules_are_refused_by_key() {
        let with = |change: fn(&mut DiffusionConfig)| {
            let mut config = DiffusionConfig::default();
            change(&mut config);
            refused_key(config.validate())
        };
        assert_eq!(with(|c| c.num_train_timesteps = 0), "diffusion.num_train_timesteps");
        assert_eq!(with(|c| c.beta_start = 0.0), "diffusion.beta_start");
        assert_eq!(with(|c| c.beta_start = f64::NAN), "diffusion.beta_start");
        assert_eq!(with(|c| c.beta_end = 1.0), "diffusion.beta_end");
        assert_eq!(with(|c| c.beta_end = 1e-5), "diffusion.beta_end");
    }

    #[test]
    fn the_bound_and_the_learned_variance_need_each_other() {
        for kind in [LossKind::Vlb, LossKind::Hybrid] {
            let loss = LossConfig { kind, ..Default::default() };
            assert_eq!(refused_key(loss.validate(&DiffusionConfig::default())), "loss.kind");
            loss.validate(&learned()).unwrap();
        }
        for kind in [LossKind::Simple, LossKind::VlbWeighted] {
            let loss = LossConfig { kind, ..Default::default() };
            assert_eq!(refused_key(loss.validate(&learned())), "loss.kind");
        }
    }

    #[test]
    fn impossible_losses_are_refused_by_key() {
        let with = |change: fn(&mut LossConfig)| {
            let mut loss = LossConfig::default();
            change(&mut loss);
            refused_key(loss.validate(&DiffusionConfig::default()))
        };
        assert_eq!(with(|l| l.vlb_lambda = -1.0), "loss.vlb_lambda");
        assert_eq!(with(|l| l.min_snr_gamma = Some(0.0)), "loss.min_snr_gamma");
        assert_eq!(with(|l| l.label_dropout = 1.0), "loss.label_dropout");
        assert_eq!(with(|l| (l.kind, l.min_snr_gamma) = (LossKind::VlbWeighted, Some(5.0))), "loss.min_snr_gamma");
    }
}
