//! Group normalisation as the network calls it: with what lets the time in before it and what is dropped behind it.
//!
//! A GPU does all of that in one pass forward and one backward, of a joined value without joining its gradient; and as the first
//! to take a value it sees the whole of its gradient, so it sums up the gradient of the bias of the layer that made it. The
//! CPU's passes stay apart.

use ddpm_kernels::ops::group_norm::{self, GroupNorm};

use super::{Kind, LayerParams, Tape, Var};
use crate::error::Result;

/// How the time enters.
#[derive(Clone, Copy, Debug)]
pub enum Time<'v> {
    /// It does not.
    Absent,
    /// `[N, C]`, added to every pixel before the normalisation.
    Offset(&'v Columns),
    /// `[N, 2C]`, scale and shift behind the normalisation.
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
pub struct Columns {
    of: Var,
    first: usize,
    /// All, if none.
    count: Option<usize>,
}

impl Columns {
    /// All of them.
    pub fn all(of: Var) -> Self {
        Self { of, first: 0, count: None }
    }

    /// `count` of them, from `first` on.
    pub(crate) fn some(of: &Var, first: usize, count: usize) -> Self {
        Self { of: of.clone(), first, count: Some(count) }
    }
}

impl<'p> Tape<'p> {
    /// Group normalisation of `x` `[N, ..., C]` with the time let in, SiLU, and dropout while training.
    pub fn group_norm(
        &mut self,
        x: &Var,
        norm: GroupNorm,
        params: LayerParams,
        time: Time<'_>,
        dropout: f64,
    ) -> Result<Var> {
        if self.fuses() {
            let kind = Kind::GroupNorm {
                norm,
                modulation: time.scale_shift().is_some(),
                offset: time.offset().is_some(),
                dropout: self.dropout.map_or(0.0, |_| dropout),
            };
            if let Some(y) = self.sketch(x, time.scale_shift().or(time.offset()).map(|time| &time.of), kind)? {
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
    pub fn group_norm_joining(
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
        let (weight, bias) = (self.master(params.weight), self.master(params.bias));
        if self.is_reference() {
            let y = group_norm::reference::forward(&norm, &x.value, weight, bias, modulation.map(Var::value))?;
            return Ok(Var::new(y, None));
        }
        let kind = Kind::GroupNorm { norm, modulation: modulation.is_some(), offset: false, dropout: 0.0 };
        if let Some(y) = self.sketch(x, modulation, kind)? {
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

#[cfg(feature = "cuda")]
mod fused {
    use candle_core::Tensor;
    use ddpm_kernels::ops::dropout::Dropout;
    use ddpm_kernels::ops::group_norm::fused::{self, ChannelSums, Fused, Inputs, Mask, Wanted};
    use ddpm_kernels::ops::group_norm::{GroupNorm, Statistics};

    use super::super::flow::Flow;
    use super::super::var::Joined;
    use super::super::{LayerParams, Tape, Var};
    use super::{Columns, Time};
    use crate::error::Result;
    use crate::params::ParamId;

    /// What both passes read.
    struct Operands<'p> {
        x: Tensor,
        weight: &'p Tensor,
        bias: &'p Tensor,
        modulation: Option<Tensor>,
        offset: Option<Tensor>,
        /// The value that modulation or offset are a part of.
        time: Option<Tensor>,
        dropout: Option<Dropout>,
        step: Option<Tensor>,
    }

    impl Operands<'_> {
        fn inputs(&self) -> Inputs<'_> {
            Inputs {
                x: &self.x,
                weight: self.weight,
                bias: self.bias,
                modulation: self.modulation.as_ref(),
                fused: Fused {
                    offset: self.offset.as_ref(),
                    dropout: self.dropout.map(|dropout| Mask { dropout, step: self.step.as_ref() }),
                },
            }
        }
    }

    impl Columns {
        fn value(&self) -> Result<Tensor> {
            let all = &self.of.value;
            Ok(self.count.map_or(Ok(all.clone()), |count| all.narrow(1, self.first, count))?)
        }
    }

    /// Memory for both side by side.
    pub(super) fn room_for(a: &Var, b: &Var) -> Result<Tensor> {
        let others = b.value.dims().last().copied().unwrap_or(0);
        let mut shape = a.value.dims().to_vec();
        shape.iter_mut().rev().take(1).for_each(|channels| *channels += others);
        Ok(fused::room(&a.value, &shape)?)
    }

    /// Where the gradients go.
    struct Targets {
        x: Option<usize>,
        time: Option<usize>,
        /// Of the time's value, first and number.
        columns: Option<(usize, usize)>,
        /// Instead of `x`: the values it was joined of.
        joined: Option<Joined>,
        /// The biases of what made `x`.
        sums: [Option<ParamId>; 2],
    }

    impl Targets {
        /// The gradient, or both of its parts, and whether it has been summed.
        fn give(&self, flow: &mut Flow<'_>, (dx, rest): (Tensor, Option<Tensor>), summed: bool) -> Result<()> {
            let first = match (&self.joined, rest) {
                (Some(Joined { of: [left, right], .. }), Some(rest)) => {
                    flow.accumulate(right.id, rest)?;
                    left.id
                }
                _ => self.x,
            };
            flow.accumulate(first, dx)?;
            if summed {
                flow.mark_summed(first);
            }
            Ok(())
        }
    }

    /// What a pass leaves for the way back.
    struct Layer<'p> {
        norm: GroupNorm,
        params: LayerParams,
        operands: Operands<'p>,
        targets: Targets,
    }

    impl Layer<'_> {
        fn backward(&self, flow: &mut Flow<'_>, dy: &Tensor, statistics: &Statistics) -> Result<()> {
            // The offset's gradient is a sum of dx without what comes from elsewhere.
            let (extra, outside) = match self.operands.offset {
                Some(_) => ([None, None], flow.take(self.targets.x)?),
                None if self.operands.dropout.is_some() => ([flow.take(self.targets.x)?, None], None),
                None => (flow.take_both(self.targets.x), None),
            };
            let biases = self.targets.sums.into_iter().flatten().filter(|_| outside.is_none());
            let sums: Vec<_> = biases.map(|bias| flow.params.bias(bias)).collect();
            let summed = !sums.is_empty();
            let time = match (&self.operands.time, self.targets.columns) {
                (Some(all), Some(columns)) => {
                    flow.columns(self.targets.time, columns, || Ok(fused::room(all, all.dims())?))?
                }
                _ => None,
            };
            let wanted = Wanted {
                joined: self.targets.joined.map(|joined| joined.channels),
                sums: sums.into_iter().map(|(at, write)| ChannelSums { at, write }).collect(),
                time,
            };
            let grads = flow.params.pair(self.params.weight, self.params.bias);
            let dy = (dy, extra.each_ref().map(Option::as_ref));
            let found = fused::backward(&self.norm, &self.operands.inputs(), statistics, dy, &wanted, &grads)?;
            if let Some(time) = found.modulation.or(found.offset).filter(|_| self.targets.columns.is_none()) {
                flow.accumulate(self.targets.time, time)?;
            }
            if let Some(outside) = outside {
                flow.accumulate(self.targets.x, outside)?;
            }
            self.targets.give(flow, (found.dx, found.rest), summed)
        }
    }

    impl<'p> Tape<'p> {
        /// With `parts`, `x` is yet to be written: they stand in it side by side.
        pub(super) fn group_norm_fused(
            &mut self,
            x: &Var,
            parts: Option<[&Var; 2]>,
            norm: GroupNorm,
            params: LayerParams,
            time: Time<'_>,
            dropout: f64,
        ) -> Result<Var> {
            let (modulation, offset) = (time.scale_shift(), time.offset());
            let mask = self.next_dropout(dropout);
            let operands = Operands {
                x: x.value.clone(),
                weight: self.master(params.weight),
                bias: self.master(params.bias),
                modulation: modulation.map(Columns::value).transpose()?,
                offset: offset.map(Columns::value).transpose()?,
                time: modulation.or(offset).map(|time| time.of.value.clone()),
                dropout: mask,
                step: self.step.clone(),
            };
            let (y, statistics) = match parts {
                Some(parts) => fused::forward_joining(&norm, parts.map(|part| &part.value), &operands.inputs())?,
                None => fused::forward(&norm, &operands.inputs())?,
            };
            let taken = self.take(x);
            let targets = Targets {
                x: taken.id,
                time: modulation.or(offset).and_then(|time| self.take(&time.of).id),
                columns: modulation.or(offset).and_then(|time| Some((time.first, time.count?))),
                joined: x.made.joined.filter(|_| taken.first && offset.is_none()),
                sums: if taken.first && (x.made.joined.is_none() || offset.is_none()) {
                    x.made.biases
                } else {
                    [None; 2]
                },
            };
            let layer = Layer { norm, params, operands, targets };
            Ok(self.record(y, move |dy, flow| layer.backward(flow, dy, &statistics)))
        }
    }
}
