//! Errors of diffusion settings, and of tensors passed to the process.

use ddpm_kernels::KernelError;

/// An error of the diffusion process; [`help`](Self::help) says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffusionError {
    /// A setting has an invalid value.
    #[error("{key} = {found}: expected {expected}")]
    Setting {
        /// The setting's full name, as in the config file or on the command line.
        key: &'static str,
        /// The value it has.
        found: String,
        /// The values it may have.
        expected: String,
        /// What to do about it.
        help: String,
    },
    /// A timestep that the schedule does not have.
    #[error("timestep {found}: expected one of 0..{num_train_timesteps}")]
    Timestep {
        /// The timestep asked for.
        found: usize,
        /// T, the length of the schedule.
        num_train_timesteps: usize,
    },
    /// Tensors or lists that do not fit together.
    #[error("{operation}: {name} has shape {found:?}: expected {expected:?}")]
    Shape {
        /// What was being computed.
        operation: &'static str,
        /// The argument's name.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// An operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl DiffusionError {
    pub(super) fn setting(
        key: &'static str,
        found: &impl ToString,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self::Setting { key, found: found.to_string(), expected: expected.into(), help: help.into() }
    }

    /// What the user can do, where that is known.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Setting { help, .. } => Some(help),
            Self::Timestep { .. } => Some("timesteps count from 0 (the least noisy) to T - 1"),
            Self::Shape { .. } => Some(
                "images are [N, H, W, C]; with variance_type = \"learned_range\" the network has 2 C output channels",
            ),
            Self::Tensor(_) | Self::Kernel(_) => None,
        }
    }
}
