//! Errors of a configuration. Each message names the place, the key, what was found and what was expected.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value comes from, in order of rising precedence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The default: it was not set.
    Default,
    /// A line of the config file, counted from 1.
    File {
        /// The file, as it was named on the command line.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// `--set`, or an option that stands for it.
    CommandLine,
}

impl Origin {
    /// The kind of origin, as `config show --json` names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Environment { .. } => "environment",
            Self::CommandLine => "command line",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => f.write_str(variable),
            Self::Default | Self::CommandLine => f.write_str(self.kind()),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: the config file cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: this is not TOML: {message}")]
    Syntax {
        /// Where it stands, as [`Origin`] is written.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{key}`")]
    UnknownKey {
        /// Where it stands, as [`Origin`] is written.
        place: String,
        /// The key.
        key: String,
        /// What to do about it.
        help: String,
    },
    /// A value of another type, or a name that its key does not know.
    #[error("{place}: {key} = {found}: expected {expected}")]
    Type {
        /// Where it stands, as [`Origin`] is written.
        place: String,
        /// The key.
        key: String,
        /// The value, as TOML.
        found: String,
        /// What the key takes.
        expected: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// Values of the right type that a run cannot use.
    #[error("{place}: {message}")]
    Impossible {
        /// Where the value was set, as [`Origin`] is written; of a default, the config file.
        place: String,
        /// The key, what was found and what was expected.
        message: String,
        /// What to do about it.
        help: String,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::UnknownKey { help, .. } | Self::Impossible { help, .. } => {
                Some(help.as_str()).filter(|help| !help.is_empty())
            }
            Self::Type { help, .. } => help.as_deref(),
            Self::Read { .. } | Self::Syntax { .. } => None,
        }
    }

    /// Whether the text is not that of a configuration at all.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Syntax { .. } | Self::UnknownKey { .. })
    }
}

/// The whole text, as a user sees it.
#[cfg(test)]
pub(super) fn shown(error: &ConfigError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!("\n  cause: {cause}")).unwrap_or_default();
    let help = error.help().map(|help| format!("\n  help: {}", help.replace('\n', "\n        ")));
    format!("error: {error}{cause}{}", help.unwrap_or_default())
}
