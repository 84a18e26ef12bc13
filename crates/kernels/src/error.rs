//! Errors of the operations.

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
        /// What it was asked to do.
        what: String,
        /// What it said.
        error: String,
    },
    /// An environment variable with an unknown word.
    #[error("{variable}: found `{found}`, expected any of {expected}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// The word.
        found: String,
        /// The words there are.
        expected: String,
    },
    /// The GPU ran out of memory.
    #[error("the GPU's memory is full: {what}")]
    OutOfMemory {
        /// What needed the memory.
        what: String,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(candle_core::Error),
}

/// Candle's way to say that a GPU's memory is full is a driver's word with a backtrace.
impl From<candle_core::Error> for KernelError {
    fn from(error: candle_core::Error) -> Self {
        if tells_of_full_memory(&error.to_string()) {
            Self::OutOfMemory { what: "no room for a tensor".to_owned() }
        } else {
            Self::Candle(error)
        }
    }
}

impl KernelError {
    /// Whether the GPU ran out of memory, so that a smaller batch may succeed. Libraries say so only in the text of an error.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            Self::Gpu { error, .. } => tells_of_full_memory(error),
            _ => false,
        }
    }
}

/// Whether a text of CUDA, its libraries or candle is about a GPU whose memory is full: CUDA_ERROR_OUT_OF_MEMORY,
/// CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
fn tells_of_full_memory(text: &str) -> bool {
    ["OUT_OF_MEMORY", "ALLOC_FAILED", "ALLOCATION_FAILED"].iter().any(|name| text.contains(name))
}

/// A kernel's result.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;
