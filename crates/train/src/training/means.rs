//! The means between two logged steps.
//!
//! A single step's loss is noisy: its images drew a handful of timesteps. What is logged is the mean since the last logged
//! step, also by quarter of the timesteps, where the loss differs by orders of magnitude. The sums are part of a checkpoint, so
//! a resumed run logs what the unbroken one would have.

use std::collections::BTreeMap;

use ddpm_run::metrics::{MetricRecord, Timing};
use serde::{Deserialize, Serialize};

use super::outcome::StepOutcome;

/// A sum and the number of its terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    sum: f64,
    count: u64,
}

impl Sum {
    /// A step whose loss or gradient is not finite is skipped; such losses count for nothing.
    fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.sum += value;
        self.count += 1;
    }

    fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Means {
    loss: Sum,
    quartiles: [Sum; 4],
    mse: Sum,
    vlb: Sum,
    /// Changes of the configuration that were accepted since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    accepted: Vec<String>,
}

impl Means {
    /// Adds changes of the configuration that the steps from here on are made with.
    pub fn accept(&mut self, changes: impl IntoIterator<Item = String>) {
        self.accepted.extend(changes);
    }

    /// Adds a step.
    pub fn add(&mut self, outcome: &StepOutcome) {
        for (&loss, &quartile) in outcome.losses.iter().zip(&outcome.quartiles) {
            self.loss.add(loss);
            self.quartiles[quartile].add(loss);
        }
        outcome.mse.iter().for_each(|&mse| self.mse.add(mse));
        outcome.vlb.iter().flatten().for_each(|&vlb| self.vlb.add(vlb));
    }

    /// The record of `step`, the last one added; starts the next means.
    pub fn record(&mut self, step: u64, images: u64, last: &StepOutcome, timing: Timing) -> MetricRecord {
        let Self { loss, quartiles, mse, vlb, accepted } = std::mem::take(self);
        let mut loss_parts = BTreeMap::new();
        if let Some(vlb) = vlb.mean() {
            loss_parts.insert("vlb".to_owned(), vlb);
        }
        if let Some(mse) = mse.mean() {
            loss_parts.insert("mse".to_owned(), mse);
        }
        MetricRecord {
            step,
            images,
            loss: loss.mean().unwrap_or(f64::NAN),
            loss_parts,
            loss_quartile: quartiles.map(Sum::mean),
            lr: last.lr,
            grad_norm: last.state.norm,
            skipped: last.state.skipped,
            params_hash: None,
            accepted,
            timing,
        }
    }
}

#[cfg(test)]
mod tests {
    use ddpm_kernels::optim::StepState;

    use super::super::outcome::Phases;
    use super::*;

    fn outcome(losses: &[f64], quartiles: &[usize]) -> StepOutcome {
        StepOutcome {
            step: 1,
            losses: losses.to_vec(),
            timesteps: Vec::new(),
            unweighted: losses.to_vec(),
            quartiles: quartiles.to_vec(),
            mse: losses.to_vec(),
            vlb: None,
            lr: 1e-3,
            state: StepState { norm: 2.0, ..StepState::unscaled() },
            phases: Phases::default(),
        }
    }

    #[test]
    fn a_record_is_the_mean_since_the_last_one() {
        let timing = Timing { images_per_s: 1.0, data_wait: 0.0, memory_bytes: None, loading: None, gpus: Vec::new() };
        let mut means = Means::default();
        means.add(&outcome(&[1.0, 3.0], &[0, 3]));
        let last = outcome(&[5.0, 7.0], &[0, 0]);
        means.add(&last);
        let record = means.record(2, 4, &last, timing);
        assert_eq!((record.loss, record.grad_norm), (4.0, 2.0));
        assert_eq!(record.loss_quartile, [Some(13.0 / 3.0), None, None, Some(3.0)]);
        assert!(!record.loss_parts.contains_key("vlb"));
        assert_eq!(means, Means::default());
    }

    #[test]
    fn a_window_survives_json_to_the_bit() -> serde_json::Result<()> {
        let mut means = Means::default();
        means.add(&outcome(&[0.1, 0.2, 1e-17], &[1, 1, 2]));
        let text = serde_json::to_string(&means)?;
        assert_eq!(serde_json::from_str::<Means>(&text)?, means);
        Ok(())
    }
}
