//! The learning rate as a function of the step alone: warm-up from zero, then constant, cosine or linear to zero.

use serde::{Deserialize, Serialize};

/// The course after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Constant.
    #[default]
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
    /// A line down to 0 at the last step.
    Linear,
}

/// Everything the learning rate depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrConfig {
    /// The highest learning rate.
    pub lr: f64,
    /// The course after warm-up.
    pub schedule: LrSchedule,
    /// Steps of linear growth.
    pub warmup_steps: u64,
    /// The step at which a falling schedule reaches 0.
    pub total_steps: u64,
}

impl LrConfig {
    /// The learning rate of step `step` (from 0).
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / length).min(1.0);
        match self.schedule {
            LrSchedule::Constant => self.lr,
            LrSchedule::Cosine => self.lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            LrSchedule::Linear => self.lr * (1.0 - progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(schedule: LrSchedule, step: u64) -> f64 {
        LrConfig { lr: 2.0, schedule, warmup_steps: 10, total_steps: 110 }.at(step)
    }

    #[test]
    fn warm_up_grows_by_equal_parts_and_reaches_the_peak() {
        assert!((at(LrSchedule::Constant, 0) - 0.2).abs() < 1e-12);
        assert!((at(LrSchedule::Constant, 9) - 2.0).abs() < 1e-12);
        assert!((at(LrSchedule::Cosine, 10) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn falling_schedules_pass_the_middle_at_half_and_end_at_zero() {
        for schedule in [LrSchedule::Cosine, LrSchedule::Linear] {
            assert!((at(schedule, 60) - 1.0).abs() < 1e-12);
            assert!(at(schedule, 110).abs() < 1e-12);
            assert!(at(schedule, 1000).abs() < 1e-12, "beyond the end it stays at zero");
        }
        assert!((at(LrSchedule::Constant, 1000) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_does_not_divide_by_zero() {
        let lr = LrConfig { lr: 1.0, schedule: LrSchedule::Cosine, warmup_steps: 10, total_steps: 5 };
        assert!(lr.at(10).is_finite() && lr.at(4) == 0.5);
    }
}
