//! DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): few steps, deterministic.
//!
//! DDIM's ODE in `lambda = log(alpha / sigma)`, half the logarithm of the signal-to-noise ratio, where its linear part is
//! solved exactly and x_0 as a function of lambda is extrapolated from the last two predictions. With one prediction
//! alone it is DDIM at eta = 0. The last step, to sigma = 0, is of first order: there it is x_0 itself.

use candle_core::Tensor;

use super::{Transition, predicted_x_start};
use crate::diffusion::{DiffusionError, DiffusionProcess, Timestep};

/// What a step needs of the one before it.
#[derive(Default)]
pub(super) struct Multistep {
    previous: Option<Prediction>,
}

struct Prediction {
    x_start: Tensor,
    lambda: f64,
}

impl Multistep {
    /// The step from `t` to the visited timestep below it. To be called with falling t.
    pub(super) fn transition(
        &mut self,
        process: &DiffusionProcess,
        output: &Tensor,
        x_t: &Tensor,
        t: Timestep,
    ) -> Result<Transition, DiffusionError> {
        let x_start = predicted_x_start(process, output, x_t, &vec![t; x_t.dim(0)?])?;
        let schedule = process.schedule();
        if t.index() == 0 {
            return Ok(Transition { mean: x_start.clone(), standard_deviation: None, x_start });
        }
        let (snr, next) = (schedule.snr(), t.index() - 1);
        let (lambda, next_lambda) = (0.5 * snr[t.index()].ln(), 0.5 * snr[next].ln());
        let step = next_lambda - lambda;
        let sigma = |t: usize| (1.0 - schedule.alphas_cumprod()[t]).sqrt();
        let next_alpha = schedule.alphas_cumprod()[next].sqrt();

        let extrapolated = match &self.previous {
            None => x_start.clone(),
            Some(previous) => {
                let half_ratio = 0.5 * step / (lambda - previous.lambda);
                ((&x_start * (1.0 + half_ratio))? - (&previous.x_start * half_ratio)?)?
            }
        };
        let mean = ((x_t * (sigma(next) / sigma(t.index())))? - (extrapolated * (next_alpha * (-step).exp_m1()))?)?;
        self.previous = Some(Prediction { x_start: x_start.clone(), lambda });
        Ok(Transition { mean, standard_deviation: None, x_start })
    }
}
