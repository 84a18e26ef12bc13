//! What a launch at the end of a pass reads to know what waits for it: made once for each set of what waits, and kept for good,
//! since a captured graph reads it where it lies. A network has one set, or one for each kind of micro-batch.

use candle_core::Tensor;

use super::Gpu;
use crate::error::Result;

/// Tensors in device memory, by what they were made of.
#[derive(Debug)]
pub(super) struct Tables<T>(Vec<(Vec<T>, Tensor)>);

impl<T> Default for Tables<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Tables<T> {
    /// The one of `waiting`, which `make` makes the first time that it is asked for. `what` it is, for an error.
    ///
    /// # Errors
    /// The first time is while work is recorded, or `make` fails.
    pub(super) fn of(
        &mut self,
        gpu: &Gpu,
        what: &str,
        waiting: Vec<T>,
        make: impl FnOnce(&[T]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if let Some((_, table)) = self.0.iter().find(|(of, _)| *of == waiting) {
            return Ok(table.clone());
        }
        gpu.must_not_record(what)?;
        let table = make(&waiting)?;
        self.0.push((waiting, table.clone()));
        Ok(table)
    }
}
