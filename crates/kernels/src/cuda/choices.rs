//! Which of several ways a computation takes: the fastest, found by the clock, so that it may differ from one start to the
//! next, and the last bits of a result with it. So what was found can be asked for, kept, and given to a later process,
//! which then computes the same and times nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::survey::{driver_version, library_versions};
use super::{Gpu, lock, refused};
use crate::error::Result;

/// Goes up whenever this program asks the libraries for other ways, or for the same in another order.
const WAYS: u32 = 3;

/// By computation: the number of the way that was taken, and how many there were. Numbers mean something only where
/// [`Gpu::proposers`] says the same.
pub type Choices = BTreeMap<String, (usize, usize)>;

impl Gpu {
    /// Everything found so far, or given by [`Gpu::choose`].
    pub fn choices(&self) -> Choices {
        lock(&self.choices).clone()
    }

    /// From now on the ways that were found in another process; what is not among them is found as usual.
    pub fn choose(&self, choices: Choices) {
        lock(&self.choices).extend(choices);
    }

    /// Who proposes ways: the GPU, the driver and the libraries, each in its version, and this program.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn proposers(&self) -> Result<String> {
        let name = self.stream().context().name().map_err(refused("asking for the GPU's name"))?;
        let driver = driver_version().map_err(refused("asking for the driver's version"))?;
        let (cudnn, cublas_lt) = library_versions();
        let program = env!("CARGO_PKG_VERSION");
        Ok(format!("{name}, driver {driver}, cuDNN {cudnn}, cuBLASLt {cublas_lt}, ddpm {program}, ways {WAYS}"))
    }

    /// The number of the way that was chosen for `computation` out of `count`.
    pub(super) fn chosen(&self, computation: &dyn Debug, count: usize) -> Option<usize> {
        let choices = lock(&self.choices);
        choices.get(&format!("{computation:?}")).filter(|(way, of)| *of == count && way < of).map(|(way, _)| *way)
    }

    /// Keeps what was found.
    pub(super) fn keep_choice(&self, computation: &dyn Debug, way: usize, count: usize) {
        lock(&self.choices).insert(format!("{computation:?}"), (way, count));
    }
}
