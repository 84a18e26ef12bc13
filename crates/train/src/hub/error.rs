//! What can go wrong with the hub: what was asked, what it said, what to do.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hf_hub::HFError;

use ddpm_run::durable::io_help;

/// Why the hub did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// It answered, with a refusal.
    #[error("{doing}: the hub answered {status}{}", told.as_deref().map(|told| format!(" ({told})")).unwrap_or_default())]
    Status {
        doing: String,
        status: u16,
        /// The hub's own word for it, such as `RepoNotFound`.
        code: Option<String>,
        /// Its message.
        told: Option<String>,
        retry_after: Option<Duration>,
    },
    /// Nothing came for so long.
    #[error("{doing}: the hub was silent for {} s", seconds.as_secs_f64())]
    Silent { doing: String, seconds: Duration },
    /// No connection, or one that broke.
    #[error("{doing}: the hub cannot be reached, or the connection broke")]
    Connection {
        doing: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The upload of the large files failed.
    #[error("{doing}: the upload failed")]
    Transfer {
        doing: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It answered, with something that is no answer.
    #[error("{doing}: the hub's answer is not understood: {what}")]
    Answer { doing: String, what: String },
    /// What came is not what was announced.
    #[error("{file}: {found}, expected {expected}")]
    Damaged { file: String, found: String, expected: String },
    /// The hub would take a large file only inside the commit.
    #[error("{file}: {bytes} bytes, and the hub offers no xet upload, expected at most {limit} without")]
    TooLarge { file: String, bytes: u64, limit: u64 },
    /// A private repository was asked for, and a public one is there.
    #[error("{repo}: is public, expected a private repository, as --private asks")]
    Public { repo: String },
    /// Nobody to ask as.
    #[error("{doing}: no token, expected one of the hub{}", unreadable.as_deref().map(|file| format!(" ({file})")).unwrap_or_default())]
    NoToken {
        doing: String,
        /// A file that may hold one.
        unreadable: Option<String>,
    },
    /// The network may not be used.
    #[error("{doing}: HF_HUB_OFFLINE is set")]
    Offline { doing: String },
    /// This machine's disk.
    #[error("{}: cannot be {action}", path.display())]
    Disk {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl HubError {
    /// What reqwest tells of a request that got no answer.
    pub(super) fn of_request(doing: &str, source: reqwest::Error, silence: Duration) -> Self {
        let doing = doing.to_owned();
        if source.is_timeout() && !source.is_connect() {
            return Self::Silent { doing, seconds: silence };
        }
        // The address is known, and may hold what should not be shown.
        Self::Connection { doing, source: Box::new(source.without_url()) }
    }

    /// What hf-hub tells.
    pub(super) fn of_library(doing: &str, error: HFError, silence: Duration) -> Self {
        let (context, retry_after) = match error {
            HFError::Request { source, .. } => return Self::of_request(doing, source, silence),
            HFError::Xet { .. } => return Self::Transfer { doing: doing.to_owned(), source: Box::new(error) },
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context } => (context, None),
            HFError::RateLimited { retry_after, context } => (context, retry_after),
            HFError::RepoNotFound { context: Some(context), .. } => (context, None),
            other => return Self::Answer { doing: doing.to_owned(), what: other.to_string() },
        };
        Self::Status {
            doing: doing.to_owned(),
            status: context.status.as_u16(),
            code: context.error_code,
            told: context.server_message.map(|text| short(&text)),
            retry_after,
        }
    }

    /// The status of a refusal.
    pub(super) fn status(&self) -> Option<u16> {
        if let Self::Status { status, .. } = self { Some(*status) } else { None }
    }

    /// Whether the same request may succeed a little later. Silence is not among them: it was waited for once.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Connection { .. } | Self::Transfer { .. } => true,
            _ => false,
        }
    }

    /// Whether the hub was not there at all, so that what is on this disk may stand in for it.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Connection { .. } | Self::Offline { .. })
            || self.status().is_some_and(|status| status >= 500)
    }

    /// How long the hub asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let Self::Status { retry_after, .. } = self { *retry_after } else { None }
    }

    /// What to do about it.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::Status { status, retry_after, .. } => status_help(*status, *retry_after),
            Self::Silent { .. } => "try again later; DDPM_HUB_TIMEOUT=SECONDS allows a longer silence".into(),
            Self::Connection { .. } | Self::Transfer { .. } => {
                "check the network and HF_ENDPOINT (`ddpm doctor`), then run the same command again".into()
            }
            Self::Answer { .. } => "is HF_ENDPOINT the address of a hub? (`ddpm doctor`)".into(),
            Self::Damaged { .. } => {
                "nothing of it is kept: run the same command again; if it stays so, the file on the hub is damaged"
                    .into()
            }
            Self::TooLarge { .. } => "push to a hub with xet storage, as huggingface.co has".into(),
            Self::Public { .. } => {
                "choose another name, make it private in its settings on the hub, or leave --private out".into()
            }
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
        (401, _) => "the token is missing, wrong or expired, or there is no such repository: `ddpm doctor` says which \
                     token is used; make one at https://huggingface.co/settings/tokens and set HF_TOKEN"
            .into(),
        (403, _) => "the token may not do this: take one with write access to this repository's owner".into(),
        (404, _) => "check the name, owner/name, and the revision; a private one needs a token that may see it".into(),
        (409 | 412, _) => "somebody else changes the repository: run the same command again".into(),
        (413, _) => "the hub takes no commit this large: export with fewer --samples, or ask the hub for room".into(),
        (429, Some(wait)) => format!("run the same command again in {} s", wait.as_secs()),
        (429, None) => "run the same command again in some minutes".into(),
        (500.., _) => "the hub has a problem: run the same command again later".into(),
        _ => "is HF_ENDPOINT the address of a hub? (`ddpm doctor`)".into(),
    }
}

/// The first line of a text of the hub, of a length that fits into a message.
pub(super) fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).take(200).collect()
}
