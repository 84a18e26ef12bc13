//! A linear layer, and several as one.

use ddpm_kernels::KernelError;
use ddpm_kernels::ops::linear;

use super::super::operands::{Maker, Runs};
use super::super::operation::{
    Added, BackwardPass, Facts, Kept, Work, channels, layer_backward_work, layer_work, with_channels,
};
use super::super::var::Made;
use super::super::{Tape, Var};
use super::{LayerParams, added};
use crate::error::Result;

impl Tape<'_> {
    /// A linear layer over the last axis of `x` `[..., I]`, plus `residual` `[..., O]`.
    pub(crate) fn linear(&mut self, x: &Var, params: LayerParams, residual: Option<&Var>) -> Result<Var> {
        let (weight, bias) = self.layer(params);
        let facts = Linear { outputs: bias.elem_count(), residual: residual.is_some(), need_dx: x.is_tracked() };
        if let Some(y) = self.sketch(x, residual, facts)? {
            return Ok(y);
        }
        let y = linear::forward(&x.value, weight, bias, residual.map(Var::value))?;
        let (id, residual) = (self.take(x).id, residual.and_then(|r| self.take(r).id));
        let x = x.value.clone();
        let y = self.record(y, move |dy, flow| {
            let summed = flow.is_summed();
            flow.accumulate(residual, dy.clone())?;
            let earlier = flow.take(id)?;
            let grads = flow.params.pair(params.weight, params.bias).with_bias_summed(summed);
            match linear::backward(&x, weight, dy, id.is_some(), earlier.as_ref(), &grads)? {
                Some(dx) => flow.accumulate(id, dx),
                None => Ok(()),
            }
        });
        Ok(y.made(Made { biases: [Some(params.bias), None], joined: None }))
    }

    /// The linear layers of the layout's stack over `x` `[N, I]`, their outputs side by side, where they are applied as one.
    /// An operation that takes some of the [columns](super::Columns) writes their gradient; each must be taken exactly once.
    pub(crate) fn linear_stack(&mut self, x: &Var) -> Result<Option<Var>> {
        if !self.fuses() {
            return Ok(None);
        }
        let (weight, bias) = self.params.stacked()?;
        let outputs = bias.elem_count();
        let facts = Linear { outputs, residual: false, need_dx: x.is_tracked() };
        if let Some(y) = self.sketch(x, None, facts)? {
            return Ok(Some(y));
        }
        let y = linear::forward(&x.value, &weight, &bias, None)?;
        let (id, x) = (self.take(x).id, x.value.clone());
        Ok(Some(self.record(y, move |dy, flow| {
            debug_assert_eq!(flow.columns_written(), outputs, "columns without a gradient");
            let earlier = flow.take(id)?;
            match linear::backward(&x, &weight, dy, id.is_some(), earlier.as_ref(), &flow.params.stacked())? {
                Some(dx) => flow.accumulate(id, dx),
                None => Ok(()),
            }
        })))
    }
}

#[derive(Clone, Copy, Debug)]
struct Linear {
    outputs: usize,
    residual: bool,
    need_dx: bool,
}

impl Facts for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn details(&self) -> String {
        added(self.residual).to_owned()
    }

    fn y(&self, x: &[usize]) -> Vec<usize> {
        with_channels(x, self.outputs)
    }

    fn params(&self, x: &[usize]) -> [usize; 2] {
        [self.outputs * channels(x), self.outputs]
    }

    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        layer_work(self, x, size, self.residual)
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        layer_backward_work(self, x, size, self.need_dx)
    }

    fn kept(&self) -> Kept {
        Kept { x: true, ..Kept::default() }
    }

    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        BackwardPass { added: Added::One, ..BackwardPass::of_layer(x, self.need_dx) }
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let Self { outputs, need_dx, .. } = *self;
        let (y, weight) = (self.y(x), make.numbers(&[outputs, channels(x)])?);
        let (bias, residual) = (make.numbers(&[outputs])?, make.numbers_if(self.residual, &y)?);
        let (grads, x, dy) = (make.gradients(self.params(x))?, make.numbers(x)?, make.numbers(&y)?);
        let (x2, weight2) = (x.clone(), weight.clone());
        Runs::both(
            move || linear::forward(&x, &weight, &bias, residual.as_ref()).map(drop),
            move || linear::backward(&x2, &weight2, &dy, need_dx, None, &grads.places()).map(drop),
        )
    }
}
