//! Errors of reqwest, hf-hub and the disk, as ours.

use std::io;
use std::path::Path;
use std::time::Duration;

use hf_hub::HFError;

use crate::error::HubError;

impl HubError {
    /// Reqwest's error of a request that got no answer.
    pub(super) fn of_request(doing: &str, source: reqwest::Error, silence: Duration) -> Self {
        let doing = doing.to_owned();
        if source.is_timeout() && !source.is_connect() {
            return Self::Silent { doing, seconds: silence };
        }
        // The address is known, and may hold what should not be shown.
        Self::Connection { doing, source: Box::new(source.without_url()) }
    }

    /// The same error, whose texts from the hub do not repeat `secret`.
    pub(super) fn without(mut self, secret: Option<&str>) -> Self {
        let Some(secret) = secret else { return self };
        let texts = match &mut self {
            Self::Status { code, text, .. } => [code.as_mut(), text.as_mut()],
            Self::Answer { what, .. } => [Some(what), None],
            _ => [None, None],
        };
        for text in texts.into_iter().flatten() {
            *text = text.replace(secret, "***");
        }
        self
    }

    /// An error of hf-hub.
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
            text: context.server_message.map(|text| short(&text)),
            retry_after,
        }
    }
}

/// The first line of a text from the hub, cut to a length that fits into a message.
pub(super) fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

/// For `map_err`: what could not be done, and where.
pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::Disk { action, path, source }
}
