//! What goes to the hub and comes from it, without the files.

use std::path::PathBuf;

use crate::name::{RepoName, Revision};

/// Where a folder is pushed to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The repository.
    pub repo: RepoName,
    /// The branch.
    pub revision: Revision,
    /// Make the repository private, if it has to be made.
    pub private: bool,
}

/// What is to be pushed, without its files.
#[derive(Clone, Debug)]
pub struct Content {
    /// Two of one fingerprint have the same files.
    pub fingerprint: String,
    /// The message of the commit.
    pub message: String,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The commit that has the model.
    pub commit: String,
    /// The repository had it already, and nothing was sent.
    pub was_there: bool,
    /// Its page.
    pub url: String,
}

/// A model of the hub in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// A diffusers folder.
    pub folder: PathBuf,
    /// `hf://owner/name@COMMIT`: exactly what it is.
    pub name: String,
}
