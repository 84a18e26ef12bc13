//! Names on the hub: `owner/name` of a repository, `hf://owner/name[@revision]` of a model.

use std::fmt;
use std::str::FromStr;

/// The hub's own limit of each part.
const MAX_PART: usize = 96;
/// Longer than any revision that a person types.
const MAX_REVISION: usize = 250;

/// How the name of a model on the hub begins.
pub const SCHEME: &str = "hf://";

/// How the name of a data set begins.
const DATA_SETS: &str = "hf://datasets/";

/// A model repository of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    owner: String,
    name: String,
}

impl RepoName {
    /// The user or organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The name under the owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder in a cache or a spool, as huggingface_hub names it.
    pub fn folder(&self) -> String {
        format!("{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl FromStr for RepoName {
    type Err = String;

    /// The message says what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        let (owner, name) = text.split_once('/').ok_or("expected owner/name")?;
        for part in [owner, name] {
            check_part(part)?;
        }
        if name.ends_with(".git") {
            return Err("expected a name that does not end in .git".to_owned());
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

/// The rules of huggingface_hub's `validate_repo_id`; they also make a part safe as the name of a folder.
fn check_part(part: &str) -> Result<(), String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if part.is_empty() || part.len() > MAX_PART || !part.chars().all(plain) {
        return Err(format!("expected owner/name, each of 1 to {MAX_PART} letters, digits, `-`, `_` or `.`"));
    }
    let edge = |letter: char| matches!(letter, '-' | '.');
    if part.starts_with(edge) || part.ends_with(edge) || part.contains("--") || part.contains("..") {
        return Err("expected no `-` or `.` at either end of owner or name, and no two of them together".to_owned());
    }
    Ok(())
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a whole commit hash: what it names never changes.
    #[cfg(feature = "net")]
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }

    /// As one name of a file.
    pub fn file_name(&self) -> String {
        self.0.replace('/', "--")
    }
}

/// Whether `text` is the 40 hexadecimal digits of a commit.
#[cfg(feature = "net")]
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Revision {
    type Err = String;

    /// What git allows in the name of a branch, nearly; the message says what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.' | '/' | '+');
        let part = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.');
        let whole = !text.is_empty() && text.len() <= MAX_REVISION && text.chars().all(plain);
        if whole && !text.contains("..") && text.split('/').all(part) {
            return Ok(Self(text.to_owned()));
        }
        Err("expected the name of a branch, a tag or a commit".to_owned())
    }
}

/// A model on the hub: `hf://owner/name`, `hf://owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// Where.
    pub repo: RepoName,
    /// Which state of it; `main` if none is given.
    pub revision: Revision,
}

impl FromStr for HubModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repo, revision) = parts(text.strip_prefix(SCHEME).ok_or("expected hf://owner/name")?)?;
        Ok(Self { repo, revision })
    }
}

/// `owner/name`, `owner/name@revision`
fn parts(text: &str) -> Result<(RepoName, Revision), String> {
    let (repo, revision) = text.split_once('@').map_or((text, None), |(repo, revision)| (repo, Some(revision)));
    let revision = revision.map(str::parse).transpose()?.unwrap_or_default();
    Ok((repo.trim_end_matches('/').parse()?, revision))
}

/// A data set on the hub: `hf://datasets/owner/name`, `hf://datasets/owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubDataSet {
    /// Where.
    pub repo: RepoName,
    /// Which state of it; `main` if none is given.
    pub revision: Revision,
}

impl FromStr for HubDataSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repo, revision) = parts(text.strip_prefix(DATA_SETS).ok_or("expected hf://datasets/owner/name")?)?;
        Ok(Self { repo, revision })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repo)?;
        if self.revision == Revision::default() { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_the_hub_are_accepted_and_written_as_they_were() {
        for name in ["google/ddpm-cifar10-32", "me/a", "A_b.c/0.1_x-y"] {
            assert_eq!(name.parse::<RepoName>().unwrap().to_string(), name);
        }
        for text in ["hf://me/model", "hf://me/model@v1.0", "hf://me/model@refs/pr/3"] {
            assert_eq!(text.parse::<HubModel>().unwrap().to_string(), text);
        }
        assert_eq!("hf://me/model@main".parse::<HubModel>().unwrap().to_string(), "hf://me/model");
    }

    #[test]
    fn what_is_no_name_or_could_leave_a_folder_is_refused() {
        for name in ["model", "/model", "me/", "me/a/b", "../up", "me/..", "me/a--b", "me/-a", "me/a.git", "me/a b"] {
            assert!(name.parse::<RepoName>().is_err(), "{name}");
        }
        let long = format!("me/{}", "a".repeat(97));
        assert!(long.parse::<RepoName>().is_err());
        for revision in ["", "../x", "a..b", "/main", "main/", "-x", "a b", "a@b", "a\nb", ".hidden"] {
            assert!(format!("hf://me/model@{revision}").parse::<HubModel>().is_err(), "{revision:?}");
        }
        assert!("me/model".parse::<HubModel>().is_err());
        let data = "hf://datasets/me/cats@v1".parse::<HubDataSet>().unwrap();
        assert_eq!((data.repo.to_string(), data.revision.as_str()), ("me/cats".to_owned(), "v1"));
        assert!("hf://me/cats".parse::<HubDataSet>().is_err());
    }
}
