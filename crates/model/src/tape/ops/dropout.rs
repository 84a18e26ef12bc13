//! Dropout on its own; on a GPU it is part of the normalisation before it.

use candle_core::Tensor;
use ddpm_kernels::KernelError;
use ddpm_kernels::ops::dropout::{self, Dropout};

use super::super::operands::{Maker, Runs};
use super::super::operation::Facts;
use super::super::{Tape, Var};
use crate::error::Result;

impl Tape<'_> {
    /// Dropout while training, nothing otherwise.
    pub(crate) fn dropout(&mut self, x: &Var, probability: f64) -> Result<Var> {
        let Some(mask) = self.next_dropout(probability) else { return Ok(x.clone()) };
        if let Some(y) = self.sketch(x, None, OnItsOwn { probability })? {
            return Ok(y);
        }
        let step = self.step.clone();
        let apply = move |x: &Tensor| match &step {
            Some(step) => dropout::apply_at(&mask, step, x),
            None => dropout::apply(&mask, x),
        };
        let (y, id) = (apply(&x.value)?, self.take(x).id);
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, apply(dy)?)))
    }
}

#[derive(Clone, Copy, Debug)]
struct OnItsOwn {
    probability: f64,
}

/// Some mask, for `bench ops`.
pub(super) fn some_mask(probability: f64) -> Dropout {
    Dropout { probability, seed: 0, layer: 0, step: 0, first_position: 0 }
}

impl Facts for OnItsOwn {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (mask, dy, x) = (some_mask(self.probability), make.numbers(x)?, make.numbers(x)?);
        Runs::both(move || dropout::apply(&mask, &x).map(drop), move || dropout::apply(&mask, &dy).map(drop))
    }
}
