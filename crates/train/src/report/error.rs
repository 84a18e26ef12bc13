//! Errors of a run's reports.

use std::io;
use std::path::{Path, PathBuf};

use ddpm_run::RunError;
use ddpm_run::durable::io_help;

/// Why a report was not written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The operating system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// What was being done: a verb and its object.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the run cannot be written.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The bytes do not fit the picture's stated shape.
    #[error("picture: {found}, expected {expected}")]
    Picture {
        /// What was given.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The picture could not be turned into a PNG.
    #[error("picture cannot be encoded as PNG")]
    Encode(#[source] image::ImageError),
}

impl ReportError {
    /// What to do about it, in one sentence.
    pub fn help(&self) -> String {
        match self {
            Self::Io { path, source, .. } => io_help(source, path),
            Self::Run(error) => error.help(),
            Self::Picture { .. } => "ask for fewer or smaller pictures, with 1 or 3 channels".into(),
            Self::Encode(_) => "ask for fewer or smaller pictures".into(),
        }
    }

    /// For `map_err`: names what was being done, and where.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
