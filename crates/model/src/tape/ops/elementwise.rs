//! Sums, values side by side, and multiples.

use candle_core::Tensor;
use ddpm_kernels::KernelError;
use ddpm_kernels::ops::elementwise;

use super::super::operands::{Maker, Runs};
use super::super::operation::{BackwardPass, Facts, Gradient, Work, channels, count, per_channel, with_channels};
use super::super::var::{Joined, Made};
use super::super::{Tape, Var};
use crate::error::Result;

impl Tape<'_> {
    /// `x` under another shape of as many elements.
    pub(crate) fn reshape(&mut self, x: &Var, shape: &[usize]) -> Result<Var> {
        if let Some(y) = self.sketch_reshaped(x, shape)? {
            return Ok(y);
        }
        let y = x.value.reshape(shape)?;
        let (id, dims) = (self.take(x).id, x.value.dims().to_vec());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, dy.reshape(dims)?)))
    }

    /// `x` `[N, H, W, C]` plus `offset` `[N, C]` at every pixel.
    pub(crate) fn add_channels(&mut self, x: &Var, offset: &Var) -> Result<Var> {
        if let Some(y) = self.sketch(x, Some(offset), AddChannels)? {
            return Ok(y);
        }
        let y = elementwise::add_channels(&x.value, &offset.value)?;
        let (x, offset) = (self.take(x).id, self.take(offset).id);
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(offset, elementwise::add_channels_backward(dy)?)?;
            flow.accumulate(x, dy.clone())
        }))
    }

    /// `a` `[N, H, W, A]` and `b` `[N, H, W, B]` side by side.
    pub(crate) fn concat(&mut self, a: &Var, b: &Var) -> Result<Var> {
        if let Some(y) = self.sketch(a, Some(b), Concat { others: b.value.dim(3)? })? {
            return Ok(y);
        }
        let y = elementwise::concat(&a.value, &b.value)?;
        self.joined(y, a, b)
    }

    /// `y`, which is `a` and `b` side by side.
    pub(super) fn joined(&mut self, y: Tensor, a: &Var, b: &Var) -> Result<Var> {
        let (channels, biases) = (a.value.dim(3)?, a.made.biases);
        let of = [self.take(a), self.take(b)];
        let y = self.record(y, move |dy, flow| {
            let (da, db) = elementwise::concat_backward(dy, channels)?;
            flow.accumulate(of[0].id, da)?;
            flow.accumulate(of[1].id, db)
        });
        let biases = if of[0].first { biases } else { [None; 2] };
        Ok(y.made(Made { biases, joined: Some(Joined { channels, of }) }))
    }

    /// `factor x`.
    pub(crate) fn scale(&mut self, x: &Var, factor: f64) -> Result<Var> {
        let factor = factor as f32;
        if let Some(y) = self.sketch(x, None, Scale { factor })? {
            return Ok(y);
        }
        let (y, id) = (elementwise::scale(&x.value, factor)?, self.take(x).id);
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, elementwise::scale(dy, factor)?)))
    }
}

/// `[N, C]` at every pixel.
#[derive(Clone, Copy, Debug)]
struct AddChannels;

impl Facts for AddChannels {
    fn name(&self) -> &'static str {
        "add_channels"
    }

    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        Work { bytes: (2 * count(x) + per_channel(x, 1)) * size as u64, flop: 0 }
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        Work { bytes: (count(x) + per_channel(x, 1)) * size as u64, flop: 0 }
    }

    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        BackwardPass::gives(Gradient::OfResult, Gradient::New(vec![channels(x)]))
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let offset = make.numbers(&[x.first().copied().unwrap_or(0), channels(x)])?;
        let (dy, x) = (make.numbers(x)?, make.numbers(x)?);
        Runs::both(
            move || elementwise::add_channels(&x, &offset).map(drop),
            move || elementwise::add_channels_backward(&dy).map(drop),
        )
    }
}

/// With so many channels of another one.
#[derive(Clone, Copy, Debug)]
struct Concat {
    others: usize,
}

impl Facts for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn y(&self, x: &[usize]) -> Vec<usize> {
        with_channels(x, channels(x) + self.others)
    }

    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        Work { bytes: 2 * count(&self.y(x)) * size as u64, flop: 0 }
    }

    fn parts(&self, x: &[usize]) -> Option<[Vec<usize>; 2]> {
        Some([x.to_vec(), with_channels(x, self.others)])
    }

    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        BackwardPass::gives(Gradient::New(x.to_vec()), Gradient::New(with_channels(x, self.others)))
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (other, dy) = (make.numbers(&with_channels(x, self.others))?, make.numbers(&self.y(x))?);
        let (channels, x) = (channels(x), make.numbers(x)?);
        Runs::both(
            move || elementwise::concat(&x, &other).map(drop),
            move || elementwise::concat_backward(&dy, channels).map(drop),
        )
    }
}

#[derive(Clone, Copy, Debug)]
struct Scale {
    factor: f32,
}

impl Facts for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (factor, dy, x) = (self.factor, make.numbers(x)?, make.numbers(x)?);
        Runs::both(move || elementwise::scale(&x, factor).map(drop), move || elementwise::scale(&dy, factor).map(drop))
    }
}
