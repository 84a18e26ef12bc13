//! Errors made in one call.

use std::fmt::Display;
use std::path::Path;

use super::{Cause, Error};

impl Error {
    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::Other { message: message.into(), cause: None }
    }

    /// For `map_err`: an error with `message` and a cause.
    pub(crate) fn caused<E: Into<Cause>>(message: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |cause| Self::Other { message: message.into(), cause: Some(cause.into()) }
    }

    /// A model's file at `path` that cannot be read here, for `cause`.
    pub(crate) fn unreadable_for(path: &Path, what: &str, advice: &str, cause: Cause) -> Self {
        Self::Unreadable {
            message: format!("{}: {what}", path.display()),
            advice: advice.to_owned(),
            cause: Some(cause),
        }
    }

    /// A model's file at `path` that cannot be read here.
    pub(crate) fn unreadable(path: &Path, what: impl Display, advice: impl Into<String>) -> Self {
        Self::Unreadable { message: format!("{}: {what}", path.display()), advice: advice.into(), cause: None }
    }
}
