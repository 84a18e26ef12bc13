//! Timesteps and how training chooses them.
//!
//! `t` runs over `0..T` and 0 is the least noisy step, the papers' t = 1. A draw is a pure function of
//! `(seed, step, position in the global batch)`, so micro-batches and ranks change nothing.

use std::fmt;

use ddpm_kernels::philox::{Philox, Purpose};

use super::{DiffusionError, LossConfig};

/// A timestep that has been checked against its schedule's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestep(usize);

impl Timestep {
    /// `index` as a timestep of a schedule of `num_train_timesteps` steps; an error where it is not below that.
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
    /// One for each sample.
    pub timesteps: Vec<Timestep>,
    /// What each sample's loss is multiplied by, so that the mean stays that of a uniform t.
    pub weights: Vec<f32>,
}

/// Draws t for training: uniformly, so every weight is 1.
#[derive(Clone, Copy, Debug)]
pub struct TimestepSampler {
    philox: Philox,
    num_train_timesteps: usize,
}

impl TimestepSampler {
    /// The sampler that `loss.timestep_sampler` asks for; an error for `loss_second_moment`, which is not here yet,
    /// and for an empty schedule.
    pub fn new(loss: &LossConfig, seed: u64, num_train_timesteps: usize) -> Result<Self, DiffusionError> {
        loss.validate_timestep_sampler()?;
        Timestep::new(0, num_train_timesteps)?;
        Ok(Self { philox: Philox::new(seed, Purpose::Timestep), num_train_timesteps })
    }

    /// The timesteps of the samples at `first..first + count` of the global batch of training step `step`.
    pub fn draw(&self, step: u64, first: usize, count: usize) -> DrawnTimesteps {
        let bound = self.num_train_timesteps as u64;
        let timesteps =
            (first..first + count).map(|at| Timestep(self.philox.below(step, at as u64, bound) as usize)).collect();
        DrawnTimesteps { timesteps, weights: vec![1.0; count] }
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
}
