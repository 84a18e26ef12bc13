//! Group normalisation as a GPU does it: fused with its neighbours, in one forward and one backward pass.

use std::rc::Rc;

use candle_core::Tensor;
use ddpm_kernels::KernelError;
use ddpm_kernels::buffer::ParamGrads;
use ddpm_kernels::ops::dropout::Dropout;
use ddpm_kernels::ops::group_norm::fused::{self, ChannelSums, Fused, Inputs, Mask, Wanted};
use ddpm_kernels::ops::group_norm::{GroupNorm, Statistics};

use super::super::super::flow::Flow;
use super::super::super::operands::{Maker, Runs};
use super::super::super::var::Joined;
use super::super::super::{Tape, Var};
use super::super::{LayerParams, dropout};
use super::{Columns, Norm, Time};
use crate::error::Result;
use crate::params::ParamId;

/// What both passes read.
struct PassOperands<'p> {
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

impl PassOperands<'_> {
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
    /// Instead of `x`: the values that it was joined from.
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

/// What a forward pass keeps for the backward pass.
struct Layer<'p> {
    norm: GroupNorm,
    params: LayerParams,
    operands: PassOperands<'p>,
    targets: Targets,
}

impl Layer<'_> {
    fn backward(&self, flow: &mut Flow<'_>, dy: &Tensor, statistics: &Statistics) -> Result<()> {
        // The offset's gradient is the sum of dx without contributions from elsewhere.
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
    /// With `parts`, `x` has yet to be written: it joins them side by side.
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
        let operands = PassOperands {
            x: x.value.clone(),
            weight: self.params.master(params.weight),
            bias: self.params.master(params.bias),
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
            sums: if taken.first && (x.made.joined.is_none() || offset.is_none()) { x.made.biases } else { [None; 2] },
        };
        let layer = Layer { norm, params, operands, targets };
        Ok(self.record(y, move |dy, flow| layer.backward(flow, dy, &statistics)))
    }
}

/// Operands for `bench ops`.
struct Prepared {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Option<Tensor>,
    offset: Option<Tensor>,
    dropout: Option<Dropout>,
}

impl Prepared {
    fn inputs(&self) -> Inputs<'_> {
        let dropout = self.dropout.map(|dropout| Mask { dropout, step: None });
        let (weight, bias, modulation) = (&self.weight, &self.bias, self.modulation.as_ref());
        Inputs { x: &self.x, weight, bias, modulation, fused: Fused { offset: self.offset.as_ref(), dropout } }
    }
}

impl Norm {
    /// As [`Facts::prepare`](super::Facts::prepare).
    pub(super) fn prepare_fused(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (n, channels) = (x.first().copied().unwrap_or(0), x.last().copied().unwrap_or(0));
        let operands = Rc::new(Prepared {
            x: make.numbers(x)?,
            weight: make.f32(&[channels])?,
            bias: make.f32(&[channels])?,
            modulation: make.numbers_if(self.modulation, &[n, 2 * channels])?,
            offset: make.numbers_if(self.offset, &[n, channels])?,
            dropout: (self.dropout > 0.0).then_some(dropout::some_mask(self.dropout)),
        });
        let (norm, dy, grads) = (self.norm, make.numbers(x)?, make.gradients([channels; 2])?);
        let (_, statistics) = fused::forward(&norm, &operands.inputs())?;
        let again = operands.clone();
        Runs::both(
            move || fused::forward(&norm, &again.inputs()).map(drop),
            move || {
                let (inputs, places) = (operands.inputs(), ParamGrads { sums: Some(&grads.sums), ..grads.places() });
                fused::backward(&norm, &inputs, &statistics, (&dy, [None; 2]), &Wanted::default(), &places)?;
                // A network does this for all its layers at once.
                grads.sums.settle(&grads.buffer)
            },
        )
    }
}
