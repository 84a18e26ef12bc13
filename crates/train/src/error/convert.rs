//! Errors of other types as this crate's.

use ddpm_hub::HubError;
use ddpm_kernels::KernelError;
use ddpm_model::unet::UNetConfigError;

use super::Error;
use crate::config::ConfigError;

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        Self::Model(error.into())
    }
}

impl From<UNetConfigError> for Error {
    fn from(error: UNetConfigError) -> Self {
        Self::Model(error.into())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(Box::new(error))
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}
