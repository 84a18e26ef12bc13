//! Tables that a launch at the end of a pass reads to find its work. Each is made once for a set of work and never freed, since a
//! captured graph goes on reading it. A network has one set, or one for each kind of micro-batch.

use candle_core::Tensor;

use crate::cuda::Gpu;
use crate::error::Result;

/// Tensors in device memory, by what they were made of.
#[derive(Debug)]
pub(super) struct LaunchTables<T>(Vec<(Vec<T>, Tensor)>);

impl<T> Default for LaunchTables<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> LaunchTables<T> {
    /// The table of `waiting`, which `make` makes the first time. `what` names it in an error.
    ///
    /// # Errors
    /// It is asked for the first time while work is recorded, or `make` fails.
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
