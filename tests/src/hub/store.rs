//! Repositories.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

/// All of a hub.
#[derive(Debug)]
pub(super) struct State {
    pub(super) repos: BTreeMap<String, Repo>,
    pub(super) has_xet: bool,
    /// Another place for large files than a folder of the test.
    pub(super) storage: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self { repos: BTreeMap::new(), has_xet: true, storage: None }
    }
}

/// A repository.
#[derive(Clone, Debug)]
pub struct Repo {
    /// Visible only with the token.
    pub private: bool,
    /// Commits, oldest first.
    pub branches: BTreeMap<String, Vec<Commit>>,
}

/// All files at one time.
#[derive(Clone, Debug)]
pub struct Commit {
    /// 40 hexadecimal digits.
    pub id: String,
    /// What it says.
    pub message: String,
    pub(super) files: BTreeMap<String, File>,
}

#[derive(Clone, Debug)]
pub(super) enum File {
    /// In the repository.
    Small(Arc<Vec<u8>>),
    /// A pointer to what was uploaded: SHA-256 and size.
    Large(String, u64),
}

impl Repo {
    pub(super) fn new(private: bool) -> Self {
        let mut repo = Self { private, branches: BTreeMap::new() };
        repo.branches.insert("main".into(), Vec::new());
        repo.add("main", "initial commit", &[(".gitattributes", b"*.safetensors filter=lfs\n")]);
        repo
    }

    /// The newest commit of a branch, or the commit of this name.
    pub(super) fn head(&self, revision: &str) -> Option<&Commit> {
        let named = || self.branches.values().flatten().find(|commit| commit.id == revision);
        self.branches.get(revision).and_then(|commits| commits.last()).or_else(named)
    }

    /// A commit of small files on top of a branch.
    pub fn add(&mut self, branch: &str, message: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), Some(File::Small(Arc::new(bytes.to_vec())))));
        self.commit(branch, message, files.collect());
    }

    /// Adds a commit; a file that is `None` is removed.
    pub(super) fn commit(&mut self, branch: &str, message: &str, changes: Vec<(String, Option<File>)>) -> String {
        let commits = self.branches.get_mut(branch).unwrap();
        let mut files = commits.last().map(|commit| commit.files.clone()).unwrap_or_default();
        for (path, file) in changes {
            match file {
                Some(file) => files.insert(path, file),
                None => files.remove(&path),
            };
        }
        let mut hasher = Sha1::new().chain_update(format!("{branch} {} {message}", commits.len()));
        files.iter().for_each(|(path, file)| hasher.update(format!("{path} {}\n", file.git_sha1())));
        let id = hex(&hasher.finalize());
        commits.push(Commit { id: id.clone(), message: message.to_owned(), files });
        id
    }
}

impl File {
    /// Of the file, or of the pointer to it that git has.
    fn git_sha1(&self) -> String {
        let blob = |bytes: &[u8]| {
            hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
        };
        match self {
            Self::Small(bytes) => blob(bytes),
            Self::Large(..) => blob(self.pointer().as_bytes()),
        }
    }

    fn pointer(&self) -> String {
        match self {
            Self::Small(_) => String::new(),
            Self::Large(oid, size) => {
                format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n")
            }
        }
    }

    /// As a listing has it.
    pub(super) fn entry(&self, path: &str) -> Value {
        let oid = self.git_sha1();
        match self {
            Self::Small(bytes) => json!({"type": "file", "oid": oid, "size": bytes.len(), "path": path}),
            Self::Large(sha256, size) => {
                let lfs = json!({"oid": sha256, "size": size, "pointerSize": self.pointer().len()});
                json!({"type": "file", "oid": oid, "size": size, "path": path, "lfs": lfs})
            }
        }
    }

    /// The name of the content: a header of `resolve`.
    pub(super) fn etag(&self) -> String {
        match self {
            Self::Small(_) => self.git_sha1(),
            Self::Large(sha256, _) => sha256.clone(),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
