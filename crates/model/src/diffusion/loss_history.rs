//! The last losses at each timestep, and the probability of drawing each t that follows from them (Nichol & Dhariwal 2021,
//! section 3.3).
//!
//! The bound's terms differ by orders of magnitude over t, so with uniform draws a few samples cause most of the gradient's
//! noise. Drawing t in proportion to `sqrt(E[L_t^2])`, eq. 18, and weighting each loss by `1 / (T p_t)` leaves the expected
//! gradient as it is and makes its variance small. `E[L_t^2]` is the mean over the last ten losses at t; until every t has ten,
//! t is drawn uniformly.
//!
//! With it the choice of t depends on the past, so it is part of a checkpoint. Losses are kept in f32, as they are stored,
//! so that a resumed run goes on with the same bits.

use super::{DiffusionError, Timestep};

/// Losses kept for each t.
const LENGTH: usize = 10;
/// The fraction of draws that stays uniform, so that every t is drawn now and then.
const UNIFORM_SHARE: f64 = 0.001;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct LossHistory {
    /// `[T, LENGTH]`, the oldest first; row t holds `counts[t]` losses, then zeros.
    losses: Vec<f32>,
    counts: Vec<usize>,
    /// Sum over `0..=t` of the probabilities; empty until every t has all its losses.
    cumulative: Vec<f64>,
}

impl LossHistory {
    /// The empty history of a schedule of `num_train_timesteps` steps.
    pub fn new(num_train_timesteps: usize) -> Self {
        Self {
            losses: vec![0.0; num_train_timesteps * LENGTH],
            counts: vec![0; num_train_timesteps],
            cumulative: vec![],
        }
    }

    /// Restores a history from its [`losses`](Self::losses) and [`counts`](Self::counts).
    ///
    /// # Errors
    /// The lengths contradict each other, a count is above the kept number, or a loss is not finite.
    pub fn from_parts(losses: Vec<f32>, counts: &[f32]) -> Result<Self, DiffusionError> {
        let valid_count = |count: &f32| (0.0..=LENGTH as f32).contains(count) && count.fract() == 0.0;
        let valid = losses.len() == counts.len() * LENGTH
            && counts.iter().all(valid_count)
            && losses.iter().all(|loss| loss.is_finite());
        if !valid {
            return Err(DiffusionError::setting(
                "loss history",
                &format!("{} losses and {} counts", losses.len(), counts.len()),
                format!("{LENGTH} finite losses and a count of at most {LENGTH} for each timestep"),
                "the checkpoint was not written by this program: take another",
            ));
        }
        let counts = counts.iter().map(|&count| count as usize).collect();
        let mut history = Self { losses, counts, cumulative: vec![] };
        history.update_probabilities();
        Ok(history)
    }

    /// T.
    pub fn num_train_timesteps(&self) -> usize {
        self.counts.len()
    }

    /// `[T, LENGTH]`: the kept losses of each t, the oldest first; zeros where there are none yet.
    pub fn losses(&self) -> (&[f32], [usize; 2]) {
        (&self.losses, [self.counts.len(), LENGTH])
    }

    /// `[T]`: how many losses each t has.
    pub fn counts(&self) -> Vec<f32> {
        self.counts.iter().map(|&count| count as f32).collect()
    }

    /// Adds the losses of a step's global batch, in the order of its samples.
    pub(super) fn observe(&mut self, losses: impl Iterator<Item = (Timestep, f64)>) {
        // With f16's loss scale a step that overflowed is skipped; its losses say nothing.
        for (t, loss) in losses.filter(|(_, loss)| loss.is_finite()) {
            let row = &mut self.losses[t.index() * LENGTH..][..LENGTH];
            let count = &mut self.counts[t.index()];
            if *count == LENGTH {
                row.rotate_left(1);
                row[LENGTH - 1] = loss as f32;
            } else {
                row[*count] = loss as f32;
                *count += 1;
            }
        }
        self.update_probabilities();
    }

    /// The timestep for `uniform` in [0, 1) and its loss's weight; `None` while the history is not full.
    pub(super) fn draw(&self, uniform: f64) -> Option<(usize, f64)> {
        let last = self.cumulative.len().checked_sub(1)?;
        let t = self.cumulative.partition_point(|&sum| sum <= uniform).min(last);
        let before = if t == 0 { 0.0 } else { self.cumulative[t - 1] };
        Some((t, 1.0 / ((self.cumulative[t] - before) * self.cumulative.len() as f64)))
    }

    fn update_probabilities(&mut self) {
        self.cumulative.clear();
        if self.counts.iter().any(|&count| count < LENGTH) {
            return;
        }
        let square = |loss: &f32| f64::from(*loss).powi(2);
        let root_mean_square = |row: &[f32]| (row.iter().map(square).sum::<f64>() / LENGTH as f64).sqrt();
        let roots: Vec<f64> = self.losses.chunks_exact(LENGTH).map(root_mean_square).collect();
        let (total, uniform) = (roots.iter().sum::<f64>(), 1.0 / roots.len() as f64);
        let probability = |root: f64| {
            let of_loss = if total > 0.0 { root / total } else { uniform };
            (1.0 - UNIFORM_SHARE) * of_loss + UNIFORM_SHARE * uniform
        };
        self.cumulative.extend(roots.iter().scan(0.0, |sum, &root| {
            *sum += probability(root);
            Some(*sum)
        }));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn observe(history: &mut LossHistory, losses: &[(usize, f64)]) {
        let total = history.num_train_timesteps();
        history.observe(losses.iter().map(|&(t, loss)| (Timestep::new(t, total).unwrap(), loss)));
    }

    fn full(roots: &[f64]) -> LossHistory {
        let mut history = LossHistory::new(roots.len());
        for _ in 0..LENGTH {
            observe(&mut history, &roots.iter().copied().enumerate().collect::<Vec<_>>());
        }
        history
    }

    #[test]
    fn a_loss_that_is_not_finite_is_not_observed() {
        let mut history = full(&[1.0, 2.0]);
        let before = history.clone();
        observe(&mut history, &[(0, f64::INFINITY), (1, f64::NAN)]);
        assert_eq!(history, before);
    }

    #[test]
    fn nothing_is_preferred_before_every_timestep_has_ten_losses() {
        let mut history = LossHistory::new(2);
        for k in 0..30 {
            observe(&mut history, &[(0, f64::from(k))]);
            assert!(history.draw(0.5).is_none());
        }
        assert_eq!(history.losses().0[..LENGTH], [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0, 29.0]);
        assert_eq!(history.counts(), [10.0, 0.0]);
    }

    /// Probabilities in proportion to the losses' root mean square, 0.1 % of them uniform; weights 1 / (T p).
    #[test]
    fn a_timestep_is_drawn_in_proportion_to_its_losses_and_weighted_by_the_inverse() {
        let history = full(&[1.0, 3.0, 0.0]);
        let p = [0.999 / 4.0 + 0.001 / 3.0, 0.999 * 3.0 / 4.0 + 0.001 / 3.0, 0.001 / 3.0];
        for (uniform, t) in [(0.0, 0), (p[0] - 1e-9, 0), (p[0] + 1e-9, 1), (0.9995, 1), (1.0 - 1e-9, 2)] {
            let (drawn, weight) = history.draw(uniform).unwrap();
            assert_eq!(drawn, t, "at {uniform}");
            assert!((weight * 3.0 * p[t] - 1.0).abs() < 1e-9, "t {t}: {weight}");
        }
        let mean: f64 = (0..3).map(|t| p[t] / (3.0 * p[t])).sum();
        assert!((mean - 1.0).abs() < 1e-12, "the mean weight is {mean}");
    }

    #[test]
    fn losses_that_are_all_zero_leave_the_draws_uniform() {
        let history = full(&[0.0; 4]);
        assert_eq!(history.draw(0.6).unwrap().0, 2);
        assert!((history.draw(0.6).unwrap().1 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_history_is_the_same_after_it_was_stored() {
        let mut history = full(&[0.1, 0.7, 1e-9]);
        observe(&mut history, &[(1, 0.3), (1, 1.0 / 3.0)]);
        let (losses, shape) = history.losses();
        assert_eq!(shape, [3, 10]);
        assert_eq!(LossHistory::from_parts(losses.to_vec(), &history.counts()).unwrap(), history);
        for (losses, counts) in [
            (vec![0.0; 9], vec![0.0]),
            (vec![0.0; 10], vec![11.0]),
            (vec![0.0; 10], vec![0.5]),
            (vec![f32::NAN; 10], vec![0.0]),
        ] {
            assert!(LossHistory::from_parts(losses, &counts).is_err());
        }
    }
}
