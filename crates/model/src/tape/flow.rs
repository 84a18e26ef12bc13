//! The backward pass: gradients flow from values to values, and operations run in reverse.

use candle_core::Tensor;
use ddpm_kernels::ops::elementwise;

use crate::error::Result;
use crate::params::Gradients;

/// An operation that ran: its output, and what to do with the output's gradient.
pub(super) struct Node<'p> {
    pub(super) output: usize,
    pub(super) backward: Backward<'p>,
}

type Backward<'p> = Box<dyn FnOnce(&Tensor, &mut Flow<'_>) -> Result<()> + 'p>;

/// The gradient of a value, as far as it has arrived.
#[derive(Clone, Debug, Default)]
struct Arrived {
    gradient: Option<Tensor>,
    /// A second one, not added to the first yet.
    second: Option<Tensor>,
    /// Whether the gradient is complete and its sum over all but the channels lies where the bias' gradient belongs.
    summed: bool,
    /// How many columns of the gradient have been written, where it is written in parts.
    columns: usize,
}

impl Arrived {
    /// Takes out the whole gradient.
    fn sum(&mut self) -> Result<Option<Tensor>> {
        match (self.gradient.take(), self.second.take()) {
            (Some(first), Some(second)) => Ok(Some(elementwise::add(&first, &second)?)),
            (first, _) => Ok(first),
        }
    }
}

/// The gradients of a backward pass.
pub(super) struct Flow<'a> {
    values: Vec<Arrived>,
    /// Of the gradient that is propagated now.
    summed: bool,
    columns: usize,
    /// Whether two gradients may wait, for an operation that adds them in its own pass.
    patient: bool,
    pub(super) params: &'a mut Gradients,
}

impl<'a> Flow<'a> {
    /// To `values` values; `patient` where operations add up to two gradients from elsewhere to their own.
    pub(super) fn new(values: usize, patient: bool, params: &'a mut Gradients) -> Self {
        Self { values: vec![Arrived::default(); values], summed: false, columns: 0, patient, params }
    }

    /// Adds to a value's gradient; an input's goes nowhere.
    pub(super) fn accumulate(&mut self, var: Option<usize>, gradient: Tensor) -> Result<()> {
        let Some(id) = var else { return Ok(()) };
        debug_assert!(!self.values[id].summed, "value {id}: a gradient after the last");
        let patient = self.patient;
        let arrived = &mut self.values[id];
        match arrived.sum()? {
            None => arrived.gradient = Some(gradient),
            Some(earlier) if patient => (arrived.gradient, arrived.second) = (Some(earlier), Some(gradient)),
            Some(earlier) => arrived.gradient = Some(elementwise::add(&earlier, &gradient)?),
        }
        Ok(())
    }

    /// Takes what has arrived for a value, for an operation that adds it to its own gradient.
    pub(super) fn take(&mut self, var: Option<usize>) -> Result<Option<Tensor>> {
        var.map_or(Ok(None), |id| self.values[id].sum())
    }

    /// The same, for one that adds two.
    #[cfg(feature = "cuda")]
    pub(super) fn take_both(&mut self, var: Option<usize>) -> [Option<Tensor>; 2] {
        let Some(id) = var else { return [None, None] };
        let Arrived { gradient, second, .. } = &mut self.values[id];
        [gradient.take(), second.take()]
    }

    /// The gradient of `count` columns, from `first` on, of a value's `[N, C]`, to be written by the caller; `make` makes the
    /// whole tensor at the first call.
    #[cfg(feature = "cuda")]
    pub(super) fn columns(
        &mut self,
        var: Option<usize>,
        (first, count): (usize, usize),
        make: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let Some(id) = var else { return Ok(None) };
        let Arrived { gradient, columns, .. } = &mut self.values[id];
        let whole = match gradient.take() {
            Some(whole) => whole,
            None => make()?,
        };
        *columns += count;
        Ok(Some(gradient.insert(whole).narrow(1, first, count)?))
    }

    /// How many columns of the gradient that is propagated now have been written, if that was done in parts.
    pub(super) fn columns_written(&self) -> usize {
        self.columns
    }

    /// Notes that a value's gradient is complete and its bias' written.
    pub(super) fn mark_summed(&mut self, var: Option<usize>) {
        if let Some(id) = var {
            self.values[id].summed = true;
        }
    }

    /// Whether the operation that runs now need not write its bias' gradient.
    pub(super) fn is_summed(&self) -> bool {
        self.summed
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Makes room for so many, or drops those beyond.
    pub(super) fn resize(&mut self, values: usize) {
        self.values.resize(values, Arrived::default());
    }

    /// Calls the operations from the last to the first.
    pub(super) fn play_back(&mut self, nodes: Vec<Node<'_>>) -> Result<()> {
        for node in nodes.into_iter().rev() {
            let mut arrived = std::mem::take(&mut self.values[node.output]);
            if let Some(gradient) = arrived.sum()? {
                (self.summed, self.columns) = (arrived.summed, arrived.columns);
                (node.backward)(&gradient, self)?;
            }
        }
        Ok(())
    }
}
