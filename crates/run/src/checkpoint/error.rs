//! What can be wrong with a checkpoint: the file, what was found, what was expected, what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::FORMAT_VERSION;
use crate::durable::io_help;

/// Why a checkpoint could not be written, or is not one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The verb and its object, such as "write the file".
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no manifest: the directory was never completed, or is something else.
    #[error("{}: no MANIFEST.json, so this is not a complete checkpoint", path.display())]
    NoManifest {
        /// The directory.
        path: PathBuf,
    },
    /// The manifest cannot be believed.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written in another format.
    #[error("{}: format version {found}, expected {FORMAT_VERSION}", path.display())]
    FormatVersion {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The manifest lists a file that is not there.
    #[error("{}: the file is missing", path.display())]
    MissingFile {
        /// The absent file.
        path: PathBuf,
    },
    /// A directory, link or device stands where a file should be.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// A file was cut or grew.
    #[error("{}: {found} bytes, expected {expected}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes on disk.
        found: u64,
        /// Bytes in the manifest.
        expected: u64,
    },
    /// A file's bytes changed.
    #[error("{}: blake3 is {found}, expected {expected}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Of the bytes on disk, in hexadecimal.
        found: String,
        /// In the manifest.
        expected: String,
    },
    /// `state.json` verifies but says something this program does not understand.
    #[error("{}: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor file is not one, or holds something else than f32.
    #[error("{}: {reason}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that was asked for is not part of the checkpoint.
    #[error("{}: holds no {name}, only {}", path.display(), present.join(", "))]
    NoSuchFile {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The names there are.
        present: Vec<String>,
    },
    /// The snapshot contradicts itself; nothing was written.
    #[error("snapshot of step {step}: {reason}")]
    Snapshot {
        /// Its step.
        step: u64,
        /// The contradiction.
        reason: String,
    },
    /// The saving thread could not start or died, or there was nothing to save.
    #[error("the checkpoint of step {step} was not written: {reason}")]
    Thread {
        /// The step whose save was lost.
        step: u64,
        /// What happened.
        reason: String,
    },
}

impl CheckpointError {
    /// What to do about it, in one sentence.
    pub fn help(&self) -> String {
        match self {
            Self::Io { path, source, .. } => io_help(source, path),
            Self::FormatVersion { found, .. } if *found > FORMAT_VERSION => {
                "a newer ddpm wrote it: use that version to go on".into()
            }
            Self::FormatVersion { .. } => "an older ddpm wrote it: use that version to go on".into(),
            Self::NoManifest { .. } => "give a directory named step-… inside a run's checkpoints".into(),
            Self::NoSuchFile { .. } => "choose one of the files it holds".into(),
            Self::Snapshot { .. } => "this is a bug in ddpm: please report it".into(),
            Self::Thread { .. } => "training goes on and saves again at the next step that is due".into(),
            _ => "the checkpoint is damaged: use an older one of the run, or restore it from a copy".into(),
        }
    }

    /// Whether a file of the checkpoint is not what was saved.
    pub fn is_damaged(&self) -> bool {
        matches!(
            self,
            Self::Manifest { .. }
                | Self::MissingFile { .. }
                | Self::NotAFile { .. }
                | Self::Size { .. }
                | Self::Hash { .. }
                | Self::State { .. }
                | Self::Tensors { .. }
        )
    }

    /// For `map_err`: names what was being done, and where.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
