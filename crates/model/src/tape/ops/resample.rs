//! Images of twice and of half the size.

use ddpm_kernels::KernelError;
use ddpm_kernels::ops::resample;

use super::super::operands::{Maker, Runs};
use super::super::operation::{Facts, with_sides};
use super::super::{Tape, Var};
use crate::error::Result;

impl Tape<'_> {
    /// `x` `[N, H, W, C]` at twice the size, every pixel repeated.
    pub(crate) fn upsample(&mut self, x: &Var) -> Result<Var> {
        if let Some(y) = self.sketch(x, None, Upsample)? {
            return Ok(y);
        }
        let y = resample::upsample(&x.value)?;
        let id = self.take(x).id;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, resample::upsample_backward(dy)?)))
    }

    /// `x` `[N, H, W, C]` at half the size, the mean of each 2x2 square.
    pub(crate) fn downsample(&mut self, x: &Var) -> Result<Var> {
        if let Some(y) = self.sketch(x, None, Downsample)? {
            return Ok(y);
        }
        let y = resample::downsample(&x.value)?;
        let id = self.take(x).id;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, resample::downsample_backward(dy)?)))
    }
}

#[derive(Clone, Copy, Debug)]
struct Upsample;

impl Facts for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn y(&self, x: &[usize]) -> Vec<usize> {
        with_sides(x, |side| 2 * side)
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (dy, x) = (make.numbers(&self.y(x))?, make.numbers(x)?);
        Runs::both(move || resample::upsample(&x).map(drop), move || resample::upsample_backward(&dy).map(drop))
    }
}

#[derive(Clone, Copy, Debug)]
struct Downsample;

impl Facts for Downsample {
    fn name(&self) -> &'static str {
        "downsample"
    }

    fn y(&self, x: &[usize]) -> Vec<usize> {
        with_sides(x, |side| side / 2)
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (dy, x) = (make.numbers(&self.y(x))?, make.numbers(x)?);
        Runs::both(move || resample::downsample(&x).map(drop), move || resample::downsample_backward(&dy).map(drop))
    }
}
