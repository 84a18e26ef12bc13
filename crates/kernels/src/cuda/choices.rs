//! Which of several candidates computes something: an engine of cuDNN, an algorithm of cuBLASLt, or one of our own launches.
//!
//! The fastest is chosen by the clock ([`timing`](super::timing)), so the choice may differ from one process to the next, and the
//! last bits of a result with it. Therefore choices can be read, kept, and given to a later process, which then computes the same
//! bits and times nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::survey::{driver_version, library_versions};
use super::{Gpu, lock, refused};
use crate::error::Result;

/// Goes up whenever this program asks the libraries for other candidates, or for the same in another order.
const CANDIDATE_LISTS: u32 = 3;

/// By computation: the number of the candidate that was chosen, and how many there were. The numbers mean something only where
/// [`Gpu::versions`] is the same.
pub type Choices = BTreeMap<String, (usize, usize)>;

impl Gpu {
    /// All choices made so far, or given by [`Gpu::choose`].
    pub fn choices(&self) -> Choices {
        lock(&self.choices).clone()
    }

    /// Takes the choices of another process; what is not among them is timed as usual.
    pub fn choose(&self, choices: Choices) {
        lock(&self.choices).extend(choices);
    }

    /// All that the numbers of [`Choices`] depend on: the GPU, and the versions of the driver, the libraries and this program.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn versions(&self) -> Result<String> {
        let name = self.stream().context().name().map_err(refused("asking for the GPU's name"))?;
        let driver = driver_version().map_err(refused("asking for the driver's version"))?;
        let (cudnn, cublas_lt) = library_versions();
        let program = env!("CARGO_PKG_VERSION");
        // `ways` is the word in files that exist.
        Ok(format!(
            "{name}, driver {driver}, cuDNN {cudnn}, cuBLASLt {cublas_lt}, ddpm {program}, ways {CANDIDATE_LISTS}"
        ))
    }

    /// The number of the candidate that was chosen for `computation` out of `count`.
    pub(super) fn chosen(&self, computation: &dyn Debug, count: usize) -> Option<usize> {
        let choices = lock(&self.choices);
        let choice = choices.get(&format!("{computation:?}"));
        choice.filter(|(number, of)| *of == count && number < of).map(|(number, _)| *number)
    }

    /// Keeps a choice.
    pub(super) fn keep_choice(&self, computation: &dyn Debug, number: usize, count: usize) {
        lock(&self.choices).insert(format!("{computation:?}"), (number, count));
    }
}
