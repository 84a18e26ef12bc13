//! SiLU on its own (the time embedding's), and the activations other than it.

use ddpm_kernels::KernelError;
use ddpm_kernels::ops::activation::{self, Activation};
use ddpm_kernels::ops::elementwise;

use super::super::operands::{Maker, Runs};
use super::super::operation::{Facts, Kept, Work, count};
use super::super::{Tape, Var};
use crate::error::Result;

impl Tape<'_> {
    /// An activation other than SiLU.
    pub(crate) fn activation(&mut self, f: Activation, x: &Var) -> Result<Var> {
        if let Some(y) = self.sketch(x, None, Other(f))? {
            return Ok(y);
        }
        let y = activation::forward(f, &x.value)?;
        let (id, x) = (self.take(x).id, x.value.clone());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, activation::backward(f, &x, dy)?)))
    }

    /// SiLU.
    pub(crate) fn silu(&mut self, x: &Var) -> Result<Var> {
        if let Some(y) = self.sketch(x, None, Silu)? {
            return Ok(y);
        }
        let y = elementwise::silu(&x.value)?;
        let (id, x) = (self.take(x).id, x.value.clone());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, elementwise::silu_backward(&x, dy)?)))
    }
}

/// Any of them reads x and the result's gradient, and writes that of x.
fn backward_work(x: &[usize], size: usize) -> Work {
    Work { bytes: 3 * count(x) * size as u64, flop: 0 }
}

#[derive(Clone, Copy, Debug)]
struct Other(Activation);

impl Facts for Other {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn details(&self) -> String {
        format!(", {:?}", self.0)
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        backward_work(x, size)
    }

    fn kept(&self) -> Kept {
        Kept { x: true, ..Kept::default() }
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (f, dy, x) = (self.0, make.numbers(x)?, make.numbers(x)?);
        let x2 = x.clone();
        Runs::both(move || activation::forward(f, &x).map(drop), move || activation::backward(f, &x2, &dy).map(drop))
    }
}

#[derive(Clone, Copy, Debug)]
struct Silu;

impl Facts for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        backward_work(x, size)
    }

    fn kept(&self) -> Kept {
        Kept { x: true, ..Kept::default() }
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (dy, x) = (make.numbers(x)?, make.numbers(x)?);
        let x2 = x.clone();
        Runs::both(move || elementwise::silu(&x).map(drop), move || elementwise::silu_backward(&x2, &dy).map(drop))
    }
}
