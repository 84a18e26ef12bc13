//! A tape that computes nothing and notes which operations would run, on which values, so that a network of any size can be
//! examined on any machine. A value is one number seen through strides of zero, so it has a shape and takes no memory.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::operation::{Facts, Operation};
use super::{DropoutStream, Tape, Var};
use crate::error::Result;
use crate::params::Params;

/// The operations that would run for one image; see `UNet::sketch`.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    pub(super) steps: Vec<Step>,
    /// The steps of each [block](Tape::block), in order.
    pub(super) blocks: Vec<Range<usize>>,
    pub(super) values: usize,
    /// Whether operations are fused with their neighbours, as on a GPU.
    pub(super) fused: bool,
}

/// An operation with its operands' numbers; those that no gradient flows to have none.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) operation: Operation,
    pub(super) x: Option<usize>,
    pub(super) other: Option<usize>,
    pub(super) y: usize,
}

impl Sketch {
    /// The operations that run, in the order of the forward pass: where they are fused, values are joined by the operation that
    /// reads them.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        let runs = |operation: &&Operation| !self.fused || operation.facts.parts(&operation.x).is_none();
        self.steps.iter().map(|step| &step.operation).filter(runs)
    }
}

impl<'p> Tape<'p> {
    /// A tape that only [sketches](Sketch) a training pass, `fused` as a GPU has it or not. It reads only the shapes of the
    /// parameters.
    pub(crate) fn sketching(params: &'p Params, fused: bool) -> Self {
        let mut tape = Self::training(params, DropoutStream { seed: 0, step: 0, first_position: 0 });
        tape.sketch = Some(Sketch { fused, ..Sketch::default() });
        tape
    }

    pub(crate) fn into_sketch(self) -> Sketch {
        self.sketch.unwrap_or_default()
    }

    /// The result of an operation on `x`, if this tape only sketches.
    pub(super) fn sketch(&mut self, x: &Var, other: Option<&Var>, facts: impl Facts + 'static) -> Result<Option<Var>> {
        let Some(sketch) = &mut self.sketch else { return Ok(None) };
        let operation = Operation::new(x.value.dims(), facts);
        let value = blank(&operation.y())?;
        let y = sketch.values;
        sketch.values += 1;
        sketch.steps.push(Step { operation, x: x.target(), other: other.and_then(Var::target), y });
        Ok(Some(Var::new(value, Some(y))))
    }

    /// The same value under another shape, if this tape only sketches.
    pub(super) fn sketch_reshaped(&self, x: &Var, shape: &[usize]) -> Result<Option<Var>> {
        let reshaped = || Ok(Var::new(blank(shape)?, x.target()));
        self.sketch.is_some().then(reshaped).transpose()
    }

    /// Sketches a block.
    pub(super) fn sketch_block(&mut self, run: impl FnOnce(&mut Self) -> Result<Var>) -> Result<Var> {
        let steps = |tape: &Self| tape.sketch.as_ref().map_or(0, |sketch| sketch.steps.len());
        let first = steps(self);
        let output = run(self)?;
        let end = steps(self);
        if let Some(sketch) = &mut self.sketch {
            sketch.blocks.push(first..end);
        }
        Ok(output)
    }
}

fn blank(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
}
