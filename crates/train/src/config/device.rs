//! The device that a run uses, chosen once.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use ddpm_kernels::{KernelError, cuda};
use ddpm_run::Kind;

/// The values of `run.device` and `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if this build can use one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").map(str::parse);
        match (text, number) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err("expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// Whether this means the CPU.
    pub(crate) fn is_cpu(self) -> bool {
        match self {
            Self::Auto => !cuda::is_there(),
            Self::Cpu => true,
            Self::Cuda(_) => false,
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// This build has no CUDA, there is no such GPU, or the environment turns off an unknown feature.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cuda(number) => open_cuda(number),
            Self::Auto if cuda::is_there() => open_cuda(0),
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
        }
    }
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// This build computes on the CPU only.
    #[error("device cuda:{number}: this build of ddpm computes on the CPU only")]
    WithoutCuda {
        /// The GPU that was named.
        number: usize,
    },
    /// The environment turns off an unknown feature.
    #[error(transparent)]
    Setting(KernelError),
    /// There is no such GPU, or it does not answer.
    #[error("device cuda:{number} cannot be opened")]
    Unopened {
        /// The GPU that was named.
        number: usize,
        /// Why.
        #[source]
        cause: KernelError,
    },
}

impl DeviceError {
    /// What happened, in a word.
    pub fn kind(&self) -> Kind {
        if matches!(self, Self::Setting(_)) { Kind::Setting } else { Kind::Device }
    }
}

fn open_cuda(number: usize) -> Result<Device, DeviceError> {
    if !cfg!(feature = "cuda") {
        return Err(DeviceError::WithoutCuda { number });
    }
    cuda::open(number).map_err(|cause| match cause {
        KernelError::Setting { .. } => DeviceError::Setting(cause),
        _ => DeviceError::Unopened { number, cause },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().map(|device| device.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("cuda:".parse::<DeviceChoice>().is_err());
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
