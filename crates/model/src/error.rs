//! Errors of the network and the optimizer.

mod config;

use ddpm_kernels::KernelError;
use thiserror::Error;

pub use self::config::UNetConfigError;

/// An error of the network or the optimizer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// An impossible configuration.
    #[error(transparent)]
    Config(#[from] UNetConfigError),
    /// An operation that could not run.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(candle_core::Error),
    /// An input that does not fit the network.
    #[error("the network expects {what} of shape {expected:?}, found {found:?}")]
    Input {
        /// Which input.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What the configuration asks for.
        expected: Vec<usize>,
    },
    /// Class labels for a network without classes, or none for one with.
    #[error("the network {}", if *.conditional { "is class-conditional: it needs a label for each image" } else { "has no classes (model.num_class_embeds): it takes no labels" })]
    Labels {
        /// Whether the network has classes.
        conditional: bool,
    },
    /// A label beyond the last class.
    #[error("class {label} does not exist: model.num_class_embeds = {classes} (classes 0 to {})", classes - 1)]
    Class {
        /// The label.
        label: u32,
        /// The number of classes.
        classes: usize,
    },
    /// A tensor that a weights file lacks.
    #[error("tensor `{key}` is missing")]
    MissingTensor {
        /// Its key in the file.
        key: String,
    },
    /// A tensor of another shape than the network's.
    #[error("tensor `{key}` has shape {found:?}, but the model has {expected:?}")]
    TensorShape {
        /// Its key in the file.
        key: String,
        /// Its shape there.
        found: Vec<usize>,
        /// The network's.
        expected: Vec<usize>,
    },
    /// A gradient with NaN or infinity in it.
    #[error("the gradient is not finite (norm {norm})")]
    NotFinite {
        /// The norm that was computed.
        norm: f64,
    },
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        match KernelError::from(error) {
            KernelError::Candle(error) => Self::Candle(error),
            full_memory => Self::Kernel(full_memory),
        }
    }
}

impl ModelError {
    /// See [`KernelError::is_out_of_memory`].
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Kernel(error) => error.is_out_of_memory(),
            _ => false,
        }
    }
}

/// A model operation's result.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
