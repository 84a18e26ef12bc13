//! Errors of a run directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::durable::io_help;
use crate::kind::Kind;

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process trains there.
    #[error("{}: held by {holder}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, according to the file.
        holder: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The verb and its object.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `run.json` is not what this program writes.
    #[error("{}: not a run's record", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Where it cannot be understood.
        #[source]
        source: serde_json::Error,
    },
}

impl RunError {
    /// What happened, in a word.
    pub fn kind(&self) -> Kind {
        if matches!(self, Self::Locked { .. }) { Kind::Held } else { Kind::Other }
    }

    /// What to do about it, in one sentence.
    pub fn help(&self) -> String {
        match self {
            Self::Locked { .. } => {
                "wait for that process, stop it (SIGTERM saves first), or choose another directory".into()
            }
            Self::Io { path, source, .. } => io_help(source, path),
            Self::Record { .. } => {
                "move the file away and run the same command again; checkpoints and metrics do not depend on it".into()
            }
        }
    }

    /// For `map_err`: names what was being done, and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
