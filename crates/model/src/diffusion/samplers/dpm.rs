//! DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): few steps, deterministic.
//!
//! DDIM's ODE in `lambda = log(alpha / sigma)`, half the logarithm of the signal-to-noise ratio, where its linear part is
//! solved exactly and x_0 as a function of lambda is extrapolated from the last two predictions. With one prediction
//! alone it is DDIM at eta = 0. The last step, to sigma = 0, is of first order: there it is x_0 itself.

use candle_core::Tensor;

use super::{Transition, predicted_x_start};
use crate::diffusion::{DiffusionError, DiffusionProcess, Schedule, Timestep};

/// What a step is made of: `x_t x - decay (x_0 + half_ratio (x_0 - x_0 of the step before))`.
pub(super) struct Factors {
    /// Factor of x_t.
    pub(super) x_t: f64,
    /// The part of x_0 that comes in, negative.
    pub(super) decay: f64,
    /// Half of this step in lambda over the one before; none at the first step.
    pub(super) half_ratio: Option<f64>,
}

/// The step from `t`, after one from `previous`; none at t = 0, where the next point is x_0 itself.
pub(super) fn factors(schedule: &Schedule, t: usize, previous: Option<usize>) -> Option<Factors> {
    let next = t.checked_sub(1)?;
    let lambda = |t: usize| 0.5 * schedule.snr()[t].ln();
    let sigma = |t: usize| (1.0 - schedule.alphas_cumprod()[t]).sqrt();
    let step = lambda(next) - lambda(t);
    let half_ratio = previous.map(|previous| 0.5 * step / (lambda(t) - lambda(previous)));
    let decay = schedule.alphas_cumprod()[next].sqrt() * (-step).exp_m1();
    Some(Factors { x_t: sigma(next) / sigma(t), decay, half_ratio })
}

/// What a step needs of the one before it.
#[derive(Default)]
pub(super) struct Multistep {
    previous: Option<Prediction>,
}

struct Prediction {
    x_start: Tensor,
    t: usize,
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
        let previous = self.previous.replace(Prediction { x_start: x_start.clone(), t: t.index() });
        let before = previous.as_ref().map(|previous| previous.t);
        let Some(Factors { x_t: of_x_t, decay, half_ratio }) = factors(process.schedule(), t.index(), before) else {
            return Ok(Transition { mean: x_start.clone(), standard_deviation: None, x_start });
        };
        let extrapolated = match previous.zip(half_ratio) {
            None => x_start.clone(),
            Some((previous, half_ratio)) => ((&x_start * (1.0 + half_ratio))? - (&previous.x_start * half_ratio)?)?,
        };
        let mean = ((x_t * of_x_t)? - (extrapolated * decay)?)?;
        Ok(Transition { mean, standard_deviation: None, x_start })
    }
}
