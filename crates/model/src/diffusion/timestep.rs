//! Timesteps and how training chooses them.
//!
//! `t` runs over `0..T` and 0 is the least noisy step, the papers' t = 1. A draw is a pure function of
//! `(seed, step, position in the global batch)` and, with `loss_second_moment`, of the losses before that step, so
//! micro-batches and ranks change nothing.

use std::fmt;

use ddpm_kernels::philox::{Philox, Purpose};

use super::{DiffusionError, LossConfig, LossHistory, TimestepSamplerKind};

/// A timestep that has been checked against its schedule's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestep(usize);

impl Timestep {
    /// `index` as a timestep of a schedule of `num_train_timesteps` steps; an error if it is not below that.
    pub fn new(index: usize, num_train_timesteps: usize) -> Result<Self, DiffusionError> {
        if index >= num_train_timesteps {
            return Err(DiffusionError::Timestep { found: index, num_train_timesteps });
        }
        Ok(Self(index))
    }

    /// The place in the schedule's tables.
    pub fn index(self) -> usize {
        self.0
    }
}

impl fmt::Display for Timestep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The timesteps of a (micro-)batch.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnTimesteps {
    /// One timestep for each sample.
    pub timesteps: Vec<Timestep>,
    /// The weight of each sample's loss, so that the mean stays that of a uniform t.
    pub weights: Vec<f32>,
}

/// Draws t for training: uniformly, with every weight 1, or more often where the loss is large.
#[derive(Clone, Debug)]
pub struct TimestepSampler {
    philox: Philox,
    num_train_timesteps: usize,
    /// With `loss_second_moment`.
    history: Option<LossHistory>,
}

impl TimestepSampler {
    /// The sampler that `loss.timestep_sampler` asks for, with nothing observed yet; an error for an empty schedule.
    pub fn new(loss: &LossConfig, seed: u64, num_train_timesteps: usize) -> Result<Self, DiffusionError> {
        Timestep::new(0, num_train_timesteps)?;
        let history = match loss.timestep_sampler {
            TimestepSamplerKind::Uniform => None,
            TimestepSamplerKind::LossSecondMoment => Some(LossHistory::new(num_train_timesteps)),
        };
        Ok(Self { philox: Philox::new(seed, Purpose::Timestep), num_train_timesteps, history })
    }

    /// The timesteps of the samples at `first..first + count` of the global batch of training step `step`.
    pub fn draw(&self, step: u64, first: usize, count: usize) -> DrawnTimesteps {
        let one = |position: u64| match &self.history {
            Some(history) => history.draw(self.philox.uniform(step, position)),
            None => None,
        };
        let uniform = |position| self.philox.below(step, position, self.num_train_timesteps as u64) as usize;
        let drawn = (first..first + count).map(|at| one(at as u64).unwrap_or_else(|| (uniform(at as u64), 1.0)));
        let (timesteps, weights) = drawn.map(|(t, weight)| (Timestep(t), weight as f32)).unzip();
        DrawnTimesteps { timesteps, weights }
    }

    /// Adds the unweighted losses of a step's whole global batch, in the order of its samples, so that micro-batches
    /// change nothing. Losses must be finite.
    pub fn observe(&mut self, timesteps: &[Timestep], losses: &[f64]) {
        if let Some(history) = &mut self.history {
            history.observe(timesteps.iter().copied().zip(losses.iter().copied()));
        }
    }

    /// The losses observed so far, if draws depend on them: part of a run's state.
    pub fn history(&self) -> Option<&LossHistory> {
        self.history.as_ref()
    }

    /// Continues from the losses that another run observed.
    ///
    /// # Errors
    /// The history belongs to a schedule of another length.
    pub fn restore(&mut self, history: LossHistory) -> Result<(), DiffusionError> {
        if history.num_train_timesteps() != self.num_train_timesteps {
            return Err(DiffusionError::Shape {
                operation: "loss_second_moment",
                name: "the loss history",
                found: vec![history.num_train_timesteps()],
                expected: vec![self.num_train_timesteps],
            });
        }
        self.history = self.history.is_some().then_some(history);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_timestep_is_below_the_schedules_length() {
        assert_eq!(Timestep::new(999, 1000).unwrap().index(), 999);
        let error = Timestep::new(1000, 1000).unwrap_err();
        assert_eq!(error.to_string(), "timestep 1000: expected one of 0..1000");
    }

    #[test]
    fn micro_batches_draw_what_the_whole_batch_draws() {
        let sampler = TimestepSampler::new(&LossConfig::default(), 3, 1000).unwrap();
        let whole = sampler.draw(17, 0, 10).timesteps;
        let parts = [sampler.draw(17, 0, 4).timesteps, sampler.draw(17, 4, 6).timesteps].concat();
        assert_eq!(whole, parts);
        assert_ne!(whole, sampler.draw(18, 0, 10).timesteps);
    }

    #[test]
    fn uniform_draws_reach_every_timestep_equally_often() {
        let sampler = TimestepSampler::new(&LossConfig::default(), 5, 10).unwrap();
        let mut seen = [0u32; 10];
        let drawn = sampler.draw(0, 0, 20_000);
        drawn.timesteps.iter().for_each(|t| seen[t.index()] += 1);
        assert!(seen.iter().all(|&n| (1800..2200).contains(&n)), "{seen:?}");
        assert!(drawn.weights.iter().all(|&w| w == 1.0));
    }

    /// Draws follow the losses once all timesteps have ten, and the weighted mean of any function of t stays its uniform one.
    #[test]
    fn draws_follow_the_losses_and_weights_undo_the_preference() {
        let config = LossConfig { timestep_sampler: TimestepSamplerKind::LossSecondMoment, ..Default::default() };
        let mut sampler = TimestepSampler::new(&config, 5, 4).unwrap();
        let all: Vec<Timestep> = (0..4).map(Timestep).collect();
        assert!(sampler.draw(0, 0, 100).weights.iter().all(|&weight| weight == 1.0));
        for _ in 0..10 {
            sampler.observe(&all, &[8.0, 1.0, 0.5, 0.5]);
        }
        let drawn = sampler.draw(1, 0, 40_000);
        let (mut seen, mut weighted) = ([0f64; 4], [0f64; 4]);
        for (t, weight) in drawn.timesteps.iter().zip(drawn.weights) {
            seen[t.index()] += 1.0 / 40_000.0;
            weighted[t.index()] += f64::from(weight) / 40_000.0;
        }
        for (got, want) in seen.iter().zip([0.8, 0.1, 0.05, 0.05]) {
            assert!((got - want).abs() < 0.01, "{seen:?}");
        }
        assert!(weighted.iter().all(|mean| (mean - 0.25).abs() < 0.02), "{weighted:?}");
    }

    #[test]
    fn a_history_of_another_schedule_is_refused() {
        let config = LossConfig { timestep_sampler: TimestepSamplerKind::LossSecondMoment, ..Default::default() };
        let mut sampler = TimestepSampler::new(&config, 5, 4).unwrap();
        let error = sampler.restore(LossHistory::new(5)).unwrap_err().to_string();
        assert!(error.contains("[5]") && error.contains("[4]"), "{error}");
        sampler.restore(LossHistory::new(4)).unwrap();
    }
}
