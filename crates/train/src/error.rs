//! The errors of this crate, each with its [`Kind`]: callers act on the kind, and a binary turns it into an exit code and adds
//! what to type.
//!
//! Errors of the crates below pass through unchanged. The other cases hold what was found, as fields; their messages name the
//! place, what was found and what was expected.

mod chain;
mod convert;
mod kind;
mod make;
mod words;

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use ddpm_collective::CollectiveError;
use ddpm_data::DataError;
use ddpm_hub::HubError;
use ddpm_model::ModelError;
use ddpm_model::diffusion::DiffusionError;
pub use ddpm_run::Kind;
use ddpm_run::RunError;
use ddpm_run::checkpoint::CheckpointError;

use self::words::{how_many, one_of, place, starting};
use crate::config::{Change, ConfigError, DeviceError};
use crate::report::ReportError;
pub use chain::chain;
pub(crate) use chain::in_one_line;

/// The cause of an error, of any type.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration that cannot be used.
    #[error(transparent)]
    Config(Box<ConfigError>),
    /// A device that cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Data that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Invalid settings of the diffusion process.
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    /// An error of the network, the optimizer or a kernel.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A run directory that cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A path that is no checkpoint, or a checkpoint that cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A picture or a log that was not written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// An error of the hub.
    #[error(transparent)]
    Hub(Box<HubError>),

    /// The loss or a gradient is not finite.
    #[error("training diverged at step {step}: {what}")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// What is not finite.
        what: String,
        /// The directory with a report on the step, if one was written.
        report: Option<PathBuf>,
    },
    /// Weights, gradient, moments and averages are larger than the memory.
    #[error("{parameters} parameters need at least {needed} of {whose}, and there are {room}")]
    NetworkTooLarge {
        /// How many.
        parameters: usize,
        /// The bytes, as text.
        needed: String,
        /// Which memory.
        whose: &'static str,
        /// The memory there is, as text.
        room: String,
    },
    /// A step does not fit into memory.
    #[error("{message}")]
    StepTooLarge {
        /// The number of images, the memory it needs, and the memory there is.
        message: String,
        /// What would fit.
        advice: Option<String>,
        /// The allocation that failed, if one was tried.
        #[source]
        cause: Option<Box<ModelError>>,
    },
    /// Images that are to be drawn do not fit into memory.
    #[error("{count} images of {height}x{width} do not fit into memory")]
    ImagesTooMany {
        /// How many.
        count: usize,
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
    /// Ranks that cannot work together, or of which one was lost.
    #[error(transparent)]
    Ranks(#[from] CollectiveError),
    /// Ranks whose weights are no longer the same.
    #[error("rank {rank} has other weights than rank 0 after step {step}; the first that differ: {tensor}")]
    Replicas {
        /// The first rank that differs.
        rank: usize,
        /// The step, counted from 1.
        step: u64,
        /// The first tensor that differs.
        tensor: String,
    },
    /// A rank that reads other images than rank 0.
    #[error("rank {rank} has {found} images in data.source, but rank 0 has {expected}{}", if found == expected { ", with other names, sizes or labels" } else { "" })]
    OtherImages {
        /// Its number.
        rank: usize,
        /// How many it has.
        found: usize,
        /// How many rank 0 has.
        expected: usize,
    },
    /// The caller cancelled the work.
    #[error("called off")]
    Cancelled,

    /// A checkpoint of another configuration.
    #[error("{} cannot go on from {}: the configuration has changed", config.display(), checkpoint.display())]
    Changed {
        /// The config file.
        config: PathBuf,
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The keys that differ.
        changes: Vec<Change>,
    },
    /// A checkpoint of other data.
    #[error(
        "cannot go on from {}: data.source = {source_now} holds other images than then{}",
        checkpoint.display(),
        how_many(*then, *now)
    )]
    OtherData {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The data that the configuration names now.
        source_now: String,
        /// The number of images then, where it is known.
        then: Option<usize>,
        /// The number of images now.
        now: usize,
    },
    /// A file of a checkpoint that does not fit the network.
    #[error("{} does not fit this model", file.display())]
    DoesNotFit {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// A run whose checkpoints are all damaged.
    #[error("{} holds checkpoints, but none that verifies", dir.display())]
    AllDamaged {
        /// The directory of the checkpoints.
        dir: PathBuf,
        /// Each checkpoint, and why it is not good.
        skipped: Vec<String>,
    },
    /// A run without a good checkpoint.
    #[error("{} holds no checkpoint that verifies", dir.display())]
    NoCheckpoint {
        /// The directory of the checkpoints.
        dir: PathBuf,
        /// The damaged ones, and how they are damaged.
        skipped: Vec<String>,
    },
    /// A run without a checkpoint of this step.
    #[error("step {step}: {} has no checkpoint of it, expected {}", run.display(), one_of(steps))]
    NoSuchStep {
        /// The run directory.
        run: PathBuf,
        /// The step that was asked for.
        step: u64,
        /// Those of its checkpoints, newest first.
        steps: Vec<u64>,
    },
    /// A run whose checkpoints would be overwritten.
    #[error("{} holds checkpoints up to step {newest}: {} would overwrite them", run_dir.display(), starting(*from))]
    Occupied {
        /// The run directory.
        run_dir: PathBuf,
        /// The newest of its checkpoints.
        newest: u64,
        /// Where the run was to resume from; `None` for the beginning.
        from: Option<u64>,
    },
    /// A path that is no checkpoint to resume from.
    #[error("{}: {what}", path.display())]
    NotACheckpoint {
        /// The path that was given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Imported weights would be left behind.
    #[error(
        "{} lies beside imported weights, but run.dir = {} would start from random ones",
        config.display(),
        run_dir.display()
    )]
    ImportLeft {
        /// The config file.
        config: PathBuf,
        /// The directory of the import.
        beside: PathBuf,
        /// The run directory.
        run_dir: PathBuf,
    },
    /// The last checkpoint could not be written, so the newest steps are lost.
    #[error("step {step} could not be saved; the same command goes on from {}", place(*saved))]
    Unsaved {
        /// The last step.
        step: u64,
        /// The newest checkpoint, if there is one.
        saved: Option<u64>,
        /// Why.
        #[source]
        cause: CheckpointError,
    },
    /// An error, and a second one beside it.
    #[error("{error}")]
    Besides {
        /// The error.
        error: Box<Error>,
        /// What else.
        besides: String,
    },

    /// A path that is no model.
    #[error("{}: {what}", path.display())]
    NotAModel {
        /// The path that was given.
        path: PathBuf,
        /// What it is instead, or what it lacks.
        what: String,
    },
    /// Changes were accepted, but no step is left to make with them.
    #[error("no step is left after step {step}, so nothing can be accepted: {}", changes.join(", "))]
    NothingLeft {
        /// The last step.
        step: u64,
        /// `key: old -> new`.
        changes: Vec<String>,
    },
    /// Flags of another program's training that it does not have, or that cannot be expressed.
    #[error("{what}")]
    Flags {
        /// The flag, what was found, what was expected.
        what: String,
    },
    /// A model's file that cannot be read here.
    #[error("{message}")]
    Unreadable {
        /// The file, what was found, what was expected.
        message: String,
        /// What to do about the file.
        advice: String,
        /// The cause.
        #[source]
        cause: Option<Cause>,
    },
    /// Weights in a format that is not read.
    #[error(transparent)]
    Weights(CheckpointError),
    /// A model with settings that no run can use.
    #[error(transparent)]
    ForeignConfig(Box<ConfigError>),
    /// `hf://...` that names nothing.
    #[error("{name}: {expected}")]
    HubName {
        /// What was written.
        name: String,
        /// What was expected.
        expected: String,
    },
    /// A model of the hub, in a program without it.
    #[error("{name}: this program was built without the feature `hub`")]
    WithoutHub {
        /// What was written.
        name: String,
    },
    /// A repository without weights that are read here.
    #[error("{model}: {}", match pickle {
        Some(pickle) => format!("only {}, a pickle, which can run any code when it is read, so it is not", ddpm_data::shown(pickle)),
        None => "no unet/diffusion_pytorch_model.safetensors, so this is no model of ddpm or diffusers".to_owned(),
    })]
    NoWeights {
        /// Its name.
        model: String,
        /// The weights that it has.
        pickle: Option<String>,
    },
    /// A place that holds something already.
    #[error("{}: {what}, expected a new or empty directory", path.display())]
    Taken {
        /// The place.
        path: PathBuf,
        /// What is there already.
        what: &'static str,
    },
    /// A model without a variance head to leave out.
    #[error(
        "{} has variance_type = \"{variance}\", expected \"learned_range\" with epsilon predicted",
        model.display()
    )]
    NothingToCut {
        /// Where it is from.
        model: PathBuf,
        /// Its variance.
        variance: &'static str,
    },
    /// A folder that cannot be written.
    #[error("{}: cannot be written", path.display())]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An invalid document of measurements.
    #[error("{}: {what}", path.display())]
    Measurements {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// The cause.
        #[source]
        cause: Option<Cause>,
    },

    /// More images were asked for than there are.
    #[error("{wanted}: there are {there} images in {data}")]
    TooFewImages {
        /// How many were asked for.
        wanted: usize,
        /// How many there are.
        there: usize,
        /// Of which data.
        data: String,
    },
    /// Images on which a model cannot be evaluated.
    #[error(transparent)]
    Unfit(DataError),
    /// A timestep that the schedule does not have.
    #[error("{t}: expected timesteps from 0 to {last}")]
    NoTimestep {
        /// The timestep.
        t: usize,
        /// The schedule's last.
        last: usize,
        /// What the schedule says.
        help: Option<String>,
    },

    /// Anything else.
    #[error("{message}")]
    Other {
        /// What.
        message: String,
        /// The cause.
        #[source]
        cause: Option<Cause>,
    },
}

impl Error {
    /// Its causes, outermost first.
    pub fn causes(&self) -> Vec<String> {
        match self {
            Self::Changed { changes, .. } => changes
                .iter()
                .map(|Change { key, old, new }| format!("{key}: {old} in the checkpoint, {new} now"))
                .collect(),
            Self::Diverged { report: Some(report), .. } => {
                vec![format!("{} has the losses before, the largest gradients and the batch", report.display())]
            }
            Self::AllDamaged { skipped, .. } | Self::NoCheckpoint { skipped, .. } => skipped.clone(),
            Self::Besides { error, besides } => {
                let mut causes = error.causes();
                causes.push(besides.clone());
                causes
            }
            Self::Hub(error) => chain(error.reason().source()),
            other => chain(other.source()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_besides_changes_neither_the_text_nor_the_kind() {
        let first = || Error::Diverged { step: 7, what: "the loss is NaN".to_owned(), report: None };
        let both = Error::Besides { error: Box::new(first()), besides: "a full disk".to_owned() };
        assert_eq!((both.to_string(), both.kind()), (first().to_string(), Kind::Diverged));
        assert_eq!(both.causes(), ["a full disk"]);
    }
}
