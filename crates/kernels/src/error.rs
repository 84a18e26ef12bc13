//! What a kernel can refuse.

use candle_core::DeviceLocation;
use thiserror::Error;

/// An operation that could not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A tensor whose shape does not fit the others.
    #[error("{op}: {tensor} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The operand.
        tensor: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape the other operands ask for; a 0 stands for any size.
        expected: Vec<usize>,
    },
    /// An operand that is not a contiguous f32 tensor.
    #[error("{op}: expected a contiguous f32 tensor, found {dtype:?} of shape {shape:?}")]
    Layout {
        /// The operation.
        op: &'static str,
        /// What was found.
        dtype: candle_core::DType,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// No body for this device in this build.
    #[error("{op} has no implementation for {device:?} in this build")]
    Device {
        /// The operation.
        op: &'static str,
        /// Where its operands live.
        device: DeviceLocation,
    },
    /// The GPU, or one of its libraries, refused.
    #[error("{what}: {error}")]
    Gpu {
        /// What was asked of it.
        what: String,
        /// What it said.
        error: String,
    },
    /// The GPU has no room for a tensor, or for what a recording needs.
    #[error("the GPU's memory is full{}", if *.requested == 0 { String::new() } else { format!(": {} bytes more were asked for", .requested) })]
    OutOfMemory {
        /// The size of the tensor in bytes; 0 where a recording was refused, which does not say.
        requested: usize,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A kernel's result.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;
