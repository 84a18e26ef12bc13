//! What a push and a pull are about, without the files.

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

/// What is pushed, without its files.
#[derive(Clone, Debug)]
pub struct Content {
    /// Contents with the same fingerprint have the same files.
    pub fingerprint: String,
    /// The message of the commit.
    pub message: String,
}

/// A finished push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The commit that has the model.
    pub commit: String,
    /// Whether the repository had it already, so that nothing was sent.
    pub was_there: bool,
    /// Its page.
    pub url: String,
}

/// A data set of the hub at one commit, whose files stay there.
pub struct DataSet {
    /// What its revision is.
    pub commit: String,
    /// The address below which its files are.
    pub url: String,
    /// Who is asking, for the header `Authorization: Bearer`.
    pub bearer: Option<String>,
    /// All of them.
    pub files: Vec<DataSetFile>,
}

/// A file of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSetFile {
    /// From the repository's root, with `/`.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Of its content.
    pub hash: String,
}

/// A model of the hub, in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// A diffusers folder.
    pub folder: PathBuf,
    /// `hf://owner/name@COMMIT`: exactly what it is.
    pub name: String,
}
