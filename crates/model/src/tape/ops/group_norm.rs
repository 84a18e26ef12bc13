//! Group normalisation as the network calls it: with the time added before it and dropout after it.
//!
//! A GPU does all of that in one forward and one backward pass, and does not join the gradient of a joined value. If it is the
//! first to take a value, it sees the whole gradient, so it sums up the gradient of the bias of the layer that made the value. On
//! a CPU these are separate passes.

#[cfg(feature = "cuda")]
mod fused;

use ddpm_kernels::KernelError;
use ddpm_kernels::ops::group_norm::{self, GroupNorm};

use super::super::operands::{Maker, Runs};
use super::super::operation::{Added, BackwardPass, Facts, Gradient, Kept, Work, channels, count, per_channel};
use super::super::{Tape, Var};
use super::LayerParams;
use crate::error::Result;

/// How the time enters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time<'v> {
    /// It does not.
    Absent,
    /// `[N, C]`, added to every pixel before the normalisation.
    Offset(&'v Columns),
    /// `[N, 2C]`, scale and shift after the normalisation.
    ScaleShift(&'v Columns),
}

impl<'v> Time<'v> {
    fn scale_shift(self) -> Option<&'v Columns> {
        if let Self::ScaleShift(columns) = self { Some(columns) } else { None }
    }

    fn offset(self) -> Option<&'v Columns> {
        if let Self::Offset(columns) = self { Some(columns) } else { None }
    }
}

/// A value `[N, C]`, or some neighbouring columns of one that `Tape::linear_stack` made, which only a GPU does.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "elsewhere it is the whole value"))]
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    of: Var,
    first: usize,
    /// All, if none.
    count: Option<usize>,
}

impl Columns {
    /// All of them.
    pub(crate) fn all(of: Var) -> Self {
        Self { of, first: 0, count: None }
    }

    /// `count` of them, from `first` on.
    pub(crate) fn some(of: &Var, first: usize, count: usize) -> Self {
        Self { of: of.clone(), first, count: Some(count) }
    }
}

impl<'p> Tape<'p> {
    /// Group normalisation of `x` `[N, ..., C]` with the time, SiLU, and dropout while training.
    pub(crate) fn group_norm(
        &mut self,
        x: &Var,
        norm: GroupNorm,
        params: LayerParams,
        time: Time<'_>,
        dropout: f64,
    ) -> Result<Var> {
        if self.fuses() {
            let facts = Norm {
                norm,
                modulation: time.scale_shift().is_some(),
                offset: time.offset().is_some(),
                dropout: self.dropout.map_or(0.0, |_| dropout),
            };
            let other = time.scale_shift().or(time.offset()).map(|time| &time.of);
            if let Some(y) = self.sketch(x, other, facts)? {
                return Ok(y);
            }
            #[cfg(feature = "cuda")]
            return self.group_norm_fused(x, None, norm, params, time, dropout);
        }
        let y = match time {
            Time::Offset(offset) => {
                let x = self.add_channels(x, &offset.of)?;
                self.group_norm_alone(&x, norm, params, None)?
            }
            _ => self.group_norm_alone(x, norm, params, time.scale_shift().map(|time| &time.of))?,
        };
        self.dropout(&y, dropout)
    }

    /// Group normalisation of `a` and `b`, `[N, ..., A]` and `[N, ..., B]`, side by side, and both as one value before it.
    pub(crate) fn group_norm_joining(
        &mut self,
        (a, b): (&Var, &Var),
        norm: GroupNorm,
        params: LayerParams,
    ) -> Result<(Var, Var)> {
        #[cfg(feature = "cuda")]
        if self.fuses() && self.sketch.is_none() {
            let x = self.joined(fused::room_for(a, b)?, a, b)?;
            let y = self.group_norm_fused(&x, Some([a, b]), norm, params, Time::Absent, 0.0)?;
            return Ok((x, y));
        }
        let x = self.concat(a, b)?;
        let y = self.group_norm(&x, norm, params, Time::Absent, 0.0)?;
        Ok((x, y))
    }

    fn group_norm_alone(
        &mut self,
        x: &Var,
        norm: GroupNorm,
        params: LayerParams,
        modulation: Option<&Var>,
    ) -> Result<Var> {
        let (weight, bias) = (self.params.master(params.weight), self.params.master(params.bias));
        let facts = Norm { norm, modulation: modulation.is_some(), offset: false, dropout: 0.0 };
        if let Some(y) = self.sketch(x, modulation, facts)? {
            return Ok(y);
        }
        let (y, statistics) = group_norm::forward(&norm, &x.value, weight, bias, modulation.map(Var::value))?;
        let (id, of_modulation) = (self.take(x).id, modulation.and_then(|m| self.take(m).id));
        let (x, modulation) = (x.value.clone(), modulation.map(|m| m.value.clone()));
        Ok(self.record(y, move |dy, flow| {
            let extra = flow.take(id)?;
            let grads = flow.params.pair(params.weight, params.bias);
            let gradient = group_norm::backward(
                &norm,
                &x,
                weight,
                bias,
                modulation.as_ref(),
                &statistics,
                dy,
                extra.as_ref(),
                &grads,
            )?;
            if let Some(dm) = gradient.modulation {
                flow.accumulate(of_modulation, dm)?;
            }
            flow.accumulate(id, gradient.dx)
        }))
    }
}

/// With what is fused into it.
#[derive(Clone, Copy, Debug)]
struct Norm {
    norm: GroupNorm,
    modulation: bool,
    offset: bool,
    dropout: f64,
}

impl Facts for Norm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn details(&self) -> String {
        let parts = [
            (self.offset, ", offset"),
            (self.norm.silu, ", SiLU"),
            (self.modulation, ", scale-shift"),
            (self.dropout > 0.0, ", dropout"),
        ];
        let parts = parts.iter().filter(|(there, _)| *there).map(|(_, name)| *name);
        format!(", {} groups{}", self.norm.groups, parts.collect::<String>())
    }

    fn params(&self, x: &[usize]) -> [usize; 2] {
        [channels(x); 2]
    }

    /// Its parameters are f32.
    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        let time = per_channel(x, 2 * u64::from(self.modulation) + u64::from(self.offset));
        let params = 2 * channels(x) * size_of::<f32>();
        Work { bytes: (2 * count(x) + time) * size as u64 + params as u64, flop: 0 }
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        let time = per_channel(x, 4 * u64::from(self.modulation) + 2 * u64::from(self.offset));
        let params_and_gradients = 2 * 2 * channels(x) * size_of::<f32>();
        Work { bytes: (3 * count(x) + time) * size as u64 + params_and_gradients as u64, flop: 0 }
    }

    fn kept(&self) -> Kept {
        Kept { x: true, other: true, y: false }
    }

    /// Mean and deviation of each group.
    fn made_beside(&self, _x: &[usize], _size: usize) -> u64 {
        (2 * self.norm.groups * size_of::<f32>()) as u64
    }

    /// Of each channel the gradients of weight and bias, and the sum of `dx`, of which there are several where an image is split.
    fn waiting_sums(&self, x: &[usize]) -> usize {
        3 * channels(x)
    }

    /// The offset's gradient is a sum that excludes what has arrived for x.
    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        let (dx, added) =
            if self.offset { (Gradient::New(x.to_vec()), Added::Nothing) } else { (Gradient::NewOrParts, Added::Two) };
        BackwardPass { added, ..BackwardPass::gives(dx, Gradient::Shared) }
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        #[cfg(feature = "cuda")]
        if super::super::fuses_on(make.device) {
            return self.prepare_fused(x, make);
        }
        let (norm, channels) = (self.norm, channels(x));
        let (weight, bias) = (make.f32(&[channels])?, make.f32(&[channels])?);
        let modulation = make.numbers_if(self.modulation, &[x.first().copied().unwrap_or(0), 2 * channels])?;
        let (grads, dy, x) = (make.gradients(self.params(x))?, make.numbers(x)?, make.numbers(x)?);
        let (_, statistics) = group_norm::forward(&norm, &x, &weight, &bias, modulation.as_ref())?;
        let (x2, w, b, m) = (x.clone(), weight.clone(), bias.clone(), modulation.clone());
        Runs::both(
            move || group_norm::forward(&norm, &x, &weight, &bias, modulation.as_ref()).map(drop),
            move || {
                let places = grads.places();
                group_norm::backward(&norm, &x2, &w, &b, m.as_ref(), &statistics, &dy, None, &places).map(drop)
            },
        )
    }
}
