//! The kind of each error.

use ddpm_collective::CollectiveError;
use ddpm_kernels::KernelError;
use ddpm_model::ModelError;
use ddpm_model::diffusion::DiffusionError;

use super::{Error, Kind};

impl Error {
    /// What happened, in a word.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Config(_)
            | Self::Changed { .. }
            | Self::OtherData { .. }
            | Self::Occupied { .. }
            | Self::ImportLeft { .. }
            | Self::HubName { .. }
            | Self::WithoutHub { .. }
            | Self::Taken { .. }
            | Self::NothingToCut { .. }
            | Self::Flags { .. }
            | Self::NothingLeft { .. }
            | Self::Measurements { .. }
            | Self::OtherImages { .. }
            | Self::TooFewImages { .. }
            | Self::NoTimestep { .. } => Kind::Setting,
            Self::Data(error) | Self::Unfit(error) if error.is_setting() => Kind::Setting,
            Self::Data(error) | Self::Unfit(error) if error.is_network() => Kind::Hub,
            Self::Data(_) | Self::Unfit(_) => Kind::Data,
            Self::Device(error) => error.kind(),
            Self::Diffusion(DiffusionError::Setting { .. }) => Kind::Setting,
            Self::Diffusion(DiffusionError::Kernel(error)) => kind_of_kernel_error(error),
            Self::Model(error) => kind_of_model_error(error),
            Self::Run(error) => error.kind(),
            Self::Hub(error) => error.kind(),
            Self::NetworkTooLarge { .. } | Self::StepTooLarge { .. } | Self::ImagesTooMany { .. } => Kind::Memory,
            Self::Diverged { .. } => Kind::Diverged,
            Self::Ranks(CollectiveError::Stopped) | Self::Cancelled => Kind::Cancelled,
            Self::Ranks(error) if error.is_setting() => Kind::Setting,
            Self::Ranks(_) => Kind::Lost,
            Self::Checkpoint(_)
            | Self::DoesNotFit { .. }
            | Self::AllDamaged { .. }
            | Self::NoCheckpoint { .. }
            | Self::NoSuchStep { .. }
            | Self::NotACheckpoint { .. }
            | Self::NotAModel { .. }
            | Self::Unreadable { .. }
            | Self::Weights(_)
            | Self::ForeignConfig(_)
            | Self::NoWeights { .. } => Kind::Model,
            Self::Besides { error, .. } => error.kind(),
            Self::Diffusion(_)
            | Self::Report(_)
            | Self::Replicas { .. }
            | Self::Unsaved { .. }
            | Self::Unwritable { .. }
            | Self::Other { .. } => Kind::Other,
        }
    }

    /// Whether computing less at once may succeed.
    pub(crate) fn is_full_memory(&self) -> bool {
        self.kind() == Kind::Memory
    }
}

fn kind_of_model_error(error: &ModelError) -> Kind {
    match error {
        ModelError::Config(_) | ModelError::Input { .. } | ModelError::Labels { .. } | ModelError::Class { .. } => {
            Kind::Setting
        }
        ModelError::NotFinite { .. } => Kind::Diverged,
        ModelError::MissingTensor { .. } | ModelError::TensorShape { .. } => Kind::Model,
        _ if error.is_out_of_memory() => Kind::Memory,
        ModelError::Kernel(error) => kind_of_kernel_error(error),
        _ => Kind::Other,
    }
}

fn kind_of_kernel_error(error: &KernelError) -> Kind {
    match error {
        KernelError::Setting { .. } => Kind::Setting,
        _ if error.is_out_of_memory() => Kind::Memory,
        KernelError::Gpu { .. } => Kind::Device,
        _ => Kind::Other,
    }
}
