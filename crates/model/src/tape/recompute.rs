//! Gradient checkpointing (Chen et al. 2016): the values inside a block are not kept in the forward pass but computed again in
//! the backward pass, for less memory and one more forward pass.
//!
//! The recomputation is exact: the same operations on the same inputs with the same dropout masks. The block's own tape numbers
//! its values after those that wait in [`Flow`], so that its operations add to the gradients of its inputs in the same order as
//! without checkpointing. The result is the same to the bit.

use super::var::Made;
use super::{Tape, Var};
use crate::error::Result;

impl<'p> Tape<'p> {
    /// Keeps only the inputs of each block, if `on`.
    #[must_use]
    pub fn checkpointing(mut self, on: bool) -> Self {
        self.checkpointing = on;
        self
    }

    /// Runs a part of the network; a [checkpointing](Self::checkpointing) tape does not keep the values inside it. `run` owns the
    /// part's inputs, and is all that is kept then.
    ///
    /// # Errors
    /// An operation that fails.
    pub(crate) fn block<F>(&mut self, run: F) -> Result<Var>
    where
        F: FnOnce(&mut Self) -> Result<Var> + Clone + 'p,
    {
        if self.sketch.is_some() {
            return self.sketch_block(run);
        }
        if !(self.checkpointing && self.recording) {
            return run(self);
        }
        let mut again = self.empty();
        self.recording = false;
        let output = run.clone()(self);
        self.recording = true;
        let Var { value, made, .. } = output?;
        let output = self.record(value, move |dy, flow| {
            let (first, summed) = (flow.len(), flow.is_summed());
            again.values = first;
            let output = run(&mut again)?;
            flow.resize(again.values);
            flow.accumulate(output.target(), dy.clone())?;
            if summed {
                flow.mark_summed(output.target());
            }
            drop(output);
            flow.play_back(again.nodes)?;
            flow.resize(first);
            Ok(())
        });
        Ok(output.made(Made { joined: None, ..made }))
    }

    /// A tape that continues where this one is, and records everything.
    fn empty(&self) -> Self {
        Self {
            step: self.step.clone(),
            dropout_layers: self.dropout_layers,
            algorithm: self.algorithm,
            taken: self.taken.clone(),
            ..Self::new(self.params, true, self.dropout)
        }
    }
}
