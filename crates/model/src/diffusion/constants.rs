//! A micro-batch's timesteps as numbers in a GPU's memory: everything a kernel must know of a sample's t.

use ddpm_kernels::ops::diffusion::SampleConstants;

use super::loss::{SampleLoss, check_global_batch};
use super::vlb::BoundTerm;
use super::{DiffusionError, DiffusionProcess, Loss, Timestep};

/// What noise and bound of an image depend on at `t`. With them [`bound`](ddpm_kernels::ops::diffusion::bound) computes what
/// [`bound_terms`](super::bound_terms) does, clamped.
///
/// # Errors
/// A timestep the process has not.
pub fn bound_constants(process: &DiffusionProcess, t: Timestep) -> Result<SampleConstants, DiffusionError> {
    let term = BoundTerm::new(process, t)?;
    let (signal, noise) = process.signal_and_noise(t.index());
    Ok(SampleConstants { signal, noise, ..of_term(&term) })
}

/// The part that belongs to the bound's term.
fn of_term(term: &BoundTerm) -> SampleConstants {
    SampleConstants {
        decoder: f64::from(u8::from(term.is_decoder)),
        x_start_x_t: term.x_start.x_t,
        x_start_prediction: term.x_start.prediction,
        mean_coef1: term.mean_coef1,
        mean_coef2: term.mean_coef2,
        posterior_log_variance: term.posterior.0,
        log_variance_lower: term.log_variance.lower.0,
        log_variance_width: term.log_variance.width,
        ..SampleConstants::default()
    }
}

impl Loss {
    /// What noise and loss of every sample depend on: its timestep `t`, its weight from the timestep sampler, and the number
    /// of samples in the whole batch. With them [`loss_and_grad`](ddpm_kernels::ops::diffusion::loss_and_grad) computes what
    /// [`Loss::compute`] does.
    ///
    /// # Errors
    /// A timestep the process has not, a weight too many or too few, a whole batch smaller than this part of it, or a loss
    /// that does not fit the process.
    pub fn constants(
        &self,
        process: &DiffusionProcess,
        t: &[Timestep],
        weights: &[f32],
        global_batch: usize,
    ) -> Result<Vec<SampleConstants>, DiffusionError> {
        self.fits(process)?;
        if weights.len() != t.len() {
            let (found, expected) = (vec![weights.len()], vec![t.len()]);
            return Err(DiffusionError::Shape { operation: "loss", name: "weights", found, expected });
        }
        check_global_batch(global_batch, t.len())?;
        let of_samples = t.iter().zip(weights);
        of_samples.map(|(&t, &weight)| self.sample(process, t, f64::from(weight) / global_batch as f64)).collect()
    }

    fn sample(&self, process: &DiffusionProcess, t: Timestep, scale: f64) -> Result<SampleConstants, DiffusionError> {
        let loss = self.at(process, t)?;
        let (signal, noise) = process.signal_and_noise(t.index());
        let SampleLoss { target: (target_x_start, target_noise), mse_weight, bound } = loss;
        let of_bound = bound.map_or_else(SampleConstants::default, |bound| SampleConstants {
            bound: if bound.mean_detached { 2.0 } else { 1.0 },
            bound_weight: bound.weight,
            ..of_term(&bound.term)
        });
        Ok(SampleConstants { signal, noise, target_x_start, target_noise, mse_weight, scale, ..of_bound })
    }
}
