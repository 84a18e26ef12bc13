//! What can go wrong with the hub: what was asked, what it said, what to do.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ddpm_run::durable::io_help;
use ddpm_run::{Kind, RunError};

/// Why a request to the hub failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A variable of the environment has an impossible value.
    #[error("{message}")]
    Setting {
        /// The variable, what was found, what was expected.
        message: String,
        /// What to do about it.
        help: &'static str,
    },
    /// The hub refused.
    #[error("{doing}: the hub answered {status}{}", text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Status {
        /// What was being done.
        doing: String,
        /// HTTP's status code.
        status: u16,
        /// The hub's own word for it, such as `RepoNotFound`.
        code: Option<String>,
        /// Its message.
        text: Option<String>,
        /// How long it asks to wait before the next request.
        retry_after: Option<Duration>,
    },
    /// The hub sent nothing for so long.
    #[error("{doing}: the hub was silent for {} s", seconds.as_secs_f64())]
    Silent {
        /// What was being done.
        doing: String,
        /// How long.
        seconds: Duration,
    },
    /// No connection, or one that broke.
    #[error("{doing}: the hub cannot be reached, or the connection broke")]
    Connection {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The upload of the large files failed.
    #[error("{doing}: the upload failed")]
    Transfer {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The answer cannot be understood.
    #[error("{doing}: the hub's answer is not understood: {what}")]
    Answer {
        /// What was being done.
        doing: String,
        /// What came.
        what: String,
    },
    /// What came is not what was announced.
    #[error("{file}: {found}, expected {expected}")]
    Damaged {
        /// Which file.
        file: String,
        /// What came.
        found: String,
        /// What was announced.
        expected: String,
    },
    /// The hub would take a large file only inside the commit.
    #[error("{file}: {bytes} bytes, and the hub offers no xet upload, expected at most {limit} without")]
    TooLarge {
        /// Which file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The largest that is sent inside a commit.
        limit: u64,
    },
    /// A private repository was asked for, and a public one is there.
    #[error("{repo}: is public, expected a private repository, as was asked for")]
    Public {
        /// Which one.
        repo: String,
    },
    /// There is no token.
    #[error("{doing}: no token, expected one of the hub{}", unreadable.as_deref().map(|file| format!(" ({file})")).unwrap_or_default())]
    NoToken {
        /// What was to be done.
        doing: String,
        /// A file that may hold one.
        unreadable: Option<String>,
    },
    /// The network may not be used.
    #[error("{doing}: HF_HUB_OFFLINE is set")]
    Offline {
        /// What was to be done.
        doing: String,
    },
    /// The disk of this machine refused.
    #[error("{}: cannot be {action}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process pushes from there.
    #[error("{}: held by {holder}", path.display())]
    Held {
        /// The lock.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// This program was built without what needs the network.
    #[error("this program was built without the feature `hub`")]
    WithoutNet,
    /// A lock that cannot be taken.
    #[error(transparent)]
    Lock(#[from] RunError),
    /// A repository without any of the weights that were wanted.
    #[error("{model}: no weights among its files")]
    NoWeights {
        /// Its name.
        model: String,
        /// The files that it has.
        files: Vec<String>,
    },
    /// What was to be pushed, and stays on the disk until it can be.
    #[error("{error}")]
    Waiting {
        /// Why it was not pushed.
        error: Box<HubError>,
        /// Where it is.
        place: PathBuf,
    },
    /// A model that neither the hub nor the cache has.
    #[error("{error}")]
    NotInCache {
        /// Why the hub does not.
        error: Box<HubError>,
        /// Where it was looked for.
        place: PathBuf,
    },
}

impl HubError {
    /// The error itself, without the place that is shown with it.
    pub fn reason(&self) -> &Self {
        match self {
            Self::Waiting { error, .. } | Self::NotInCache { error, .. } => error.reason(),
            reason => reason,
        }
    }

    /// Whether another address or token may be meant than the one that is used.
    pub fn is_about_settings(&self) -> bool {
        match self.reason() {
            Self::Connection { .. } | Self::Transfer { .. } | Self::Answer { .. } => true,
            Self::Status { status, .. } => !matches!(status, 403 | 404 | 409 | 412 | 413 | 429 | 500..),
            _ => false,
        }
    }

    /// What happened, in a word.
    pub fn kind(&self) -> Kind {
        match self.reason() {
            Self::Setting { .. } | Self::WithoutNet => Kind::Setting,
            // A full disk is not the hub's fault.
            Self::Disk { .. } => Kind::Other,
            Self::Held { .. } => Kind::Held,
            Self::Lock(error) => error.kind(),
            Self::NoWeights { .. } => Kind::Model,
            _ => Kind::Hub,
        }
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        if let Self::Status { status, .. } = self { Some(*status) } else { None }
    }

    /// Whether the same request may succeed a little later. Silence does not count: the timeout has passed once already.
    #[cfg(feature = "net")]
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Connection { .. } | Self::Transfer { .. } => true,
            _ => false,
        }
    }

    /// Whether the hub could not be reached, so that a copy on this disk may be used instead.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Connection { .. } | Self::Offline { .. })
            || self.status().is_some_and(|status| status >= 500)
    }

    /// How long the hub asked to wait.
    #[cfg(feature = "net")]
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        if let Self::Status { retry_after, .. } = self { *retry_after } else { None }
    }

    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Setting { help, .. } => (*help).into(),
            Self::Held { .. } => "another process pushes from there: wait until it has ended, or stop it".into(),
            Self::WithoutNet => "build with the feature `hub` to push and pull".into(),
            Self::Lock(error) => error.help(),
            Self::NoWeights { .. } => "name a repository that holds safetensors".into(),
            Self::Waiting { error, place } => {
                format!("{}\nnothing is lost: {} waits for the next push of this model", error.help(), place.display())
            }
            Self::NotInCache { error, place } => format!("{}\nno copy of it is in {}", error.help(), place.display()),
            Self::Status { status, retry_after, .. } => status_help(*status, *retry_after),
            Self::Silent { .. } => "try again later; DDPM_HUB_TIMEOUT=SECONDS allows a longer silence".into(),
            Self::Connection { .. } | Self::Transfer { .. } => {
                "check the network and HF_ENDPOINT, then run the same command again".into()
            }
            Self::Answer { .. } => "is HF_ENDPOINT the address of a hub?".into(),
            Self::Damaged { .. } => {
                "nothing of it is kept: run the same command again; if it stays so, the file on the hub is damaged"
                    .into()
            }
            Self::TooLarge { .. } => "push to a hub with xet storage, as huggingface.co has".into(),
            Self::Public { .. } => "choose another name, or make it private in its settings on the hub".into(),
            Self::NoToken { .. } => {
                "make a token that may write at https://huggingface.co/settings/tokens and set HF_TOKEN".into()
            }
            Self::Offline { .. } => "unset it to use the network".into(),
            Self::Disk { path, source, .. } => io_help(source, path),
        }
    }
}

fn status_help(status: u16, retry_after: Option<Duration>) -> String {
    match (status, retry_after) {
        (401, _) => "the token is missing, wrong or expired, or there is no such repository: make one at \
                     https://huggingface.co/settings/tokens and set HF_TOKEN"
            .into(),
        (403, _) => "the token may not do this: take one with write access to this repository's owner".into(),
        (404, _) => "check the name, owner/name, and the revision; a private one needs a token that may see it".into(),
        (409 | 412, _) => "somebody else changes the repository: run the same command again".into(),
        (413, _) => "the hub accepts no commit of this size: push fewer samples, or ask the hub for more space".into(),
        (429, Some(wait)) => format!("run the same command again in {} s", wait.as_secs()),
        (429, None) => "run the same command again in some minutes".into(),
        (500.., _) => "the hub has a problem: run the same command again later".into(),
        _ => "is HF_ENDPOINT the address of a hub?".into(),
    }
}
