//! Values on the tape, and which operations take them.
//!
//! The first operation to take a value is the last to add to its gradient in the backward pass. So it alone sees the whole
//! gradient, and on a GPU it sums in the same pass what the operation that made the value would need another pass for.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::elementwise;

use super::Tape;
use crate::error::Result;
use crate::params::ParamId;

/// A value on the tape. Cloning it is cheap; a value whose last clone is dropped is freed, unless a recorded backward
/// pass needs it.
#[derive(Clone, Debug)]
pub struct Var {
    pub(super) value: Tensor,
    /// Its number if a gradient flows to it; inputs have none. Operations ask [`Tape::take`] for it.
    id: Option<usize>,
    pub(super) made: Made,
}

/// How a value was made, as far as the operations that take it need to know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made {
    /// The biases whose gradients are the value's, summed over all but the channels: all of them, or the first. The second is
    /// that of what was added to the value and to nothing else.
    pub(super) biases: [Option<ParamId>; 2],
    /// The two values that it was joined from.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU splits gradients in the same pass"))]
    pub(super) joined: Option<Joined>,
}

/// Two values side by side.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU splits gradients in the same pass"))]
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined {
    /// Of the first one.
    pub(super) channels: usize,
    pub(super) of: [Taken; 2],
}

/// A value that an operation takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) id: Option<usize>,
    /// Whether no operation took it before.
    pub(super) first: bool,
}

impl Var {
    /// A value of this number.
    pub(super) fn new(value: Tensor, id: Option<usize>) -> Self {
        Self { value, id, made: Made::default() }
    }

    /// The same, made so.
    pub(super) fn made(self, made: Made) -> Self {
        Self { made, ..self }
    }

    /// The numbers.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Its number, for an operation that only passes a gradient to it.
    pub(super) fn target(&self) -> Option<usize> {
        self.id
    }

    /// Whether a gradient flows to it.
    pub(super) fn is_tracked(&self) -> bool {
        self.id.is_some()
    }

    /// The numbers in f32 on the CPU, whatever and wherever the network computes.
    ///
    /// # Errors
    /// A device that fails.
    pub fn to_host(&self) -> Result<Tensor> {
        let value = if self.value.dtype() == DType::F64 {
            self.value.clone()
        } else {
            elementwise::cast(&self.value, DType::F32)?
        };
        Ok(value.to_device(&Device::Cpu)?)
    }
}

impl Tape<'_> {
    /// Notes that an operation takes `x`, for its gradient.
    pub(super) fn take(&mut self, x: &Var) -> Taken {
        let Some(id) = x.id else { return Taken { id: None, first: false } };
        if self.taken.len() <= id {
            self.taken.resize(id + 1, false);
        }
        Taken { id: Some(id), first: !std::mem::replace(&mut self.taken[id], true) }
    }
}
