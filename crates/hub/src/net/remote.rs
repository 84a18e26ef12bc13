//! What a repository holds, asked of the hub; and making one.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::client::Hub;
use super::digest::{Digests, Proof};
use crate::error::HubError;
use crate::name::{Revision, is_commit};

/// A listing has fewer pages, each of some thousand files.
const MAX_PAGES: usize = 1000;

/// The newest commit of a revision.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) commit: String,
    pub(super) is_private: bool,
}

/// The files of a commit, by their paths.
pub(super) type Tree = BTreeMap<String, Proof>;

impl Hub {
    /// The newest commit of `revision`.
    pub(super) async fn head(&self, revision: &Revision) -> Result<Head, HubError> {
        let doing = format!("looking up {}", self.repo);
        let url = self.api(&["revision", revision.as_str()])?;
        let (answer, _) = self.patiently(|| self.json(&doing, self.request(Method::GET, url.clone()))).await?;
        let commit = answer["sha"].as_str().unwrap_or_default().to_owned();
        if !is_commit(&commit) {
            return Err(HubError::Answer { doing, what: "it names no commit".into() });
        }
        Ok(Head { commit, is_private: answer["private"] == true })
    }

    /// The files of `commit`.
    pub(super) async fn tree(&self, commit: &str) -> Result<Tree, HubError> {
        let doing = format!("listing {}", self.repo);
        let mut next = Some(self.api(&["tree", commit])?);
        if let Some(url) = &mut next {
            url.set_query(Some("recursive=true"));
        }
        let mut tree = Tree::new();
        for _ in 0..MAX_PAGES {
            let Some(url) = next else { return Ok(tree) };
            let (answer, further) =
                self.patiently(|| self.json(&doing, self.request(Method::GET, url.clone()))).await?;
            let entries = answer
                .as_array()
                .ok_or_else(|| HubError::Answer { doing: doing.clone(), what: "it is no list of files".into() })?;
            tree.extend(entries.iter().filter_map(file));
            next = further;
        }
        Err(HubError::Answer { doing, what: format!("it has more than {MAX_PAGES} pages") })
    }

    /// Makes the repository, unless it has been made meanwhile.
    pub(super) async fn create(&self, private: bool) -> Result<(), HubError> {
        let doing = format!("creating {}", self.repo);
        let url = self.url(&["api", "repos", "create"])?;
        let body = json!({
            "type": "model",
            "organization": self.repo.owner(),
            "name": self.repo.name(),
            "private": private,
        });
        self.unless_it_is_there(&doing, url, &body).await
    }

    /// Makes a branch at the newest commit of `main`, unless it has been made meanwhile.
    pub(super) async fn create_branch(&self, branch: &Revision) -> Result<(), HubError> {
        let doing = format!("creating the branch {branch} of {}", self.repo);
        let url = self.api(&["branch", branch.as_str()])?;
        self.unless_it_is_there(&doing, url, &json!({})).await
    }

    async fn unless_it_is_there(&self, doing: &str, url: reqwest::Url, body: &Value) -> Result<(), HubError> {
        let made =
            self.patiently(|| self.send(doing, self.request(Method::POST, url.clone()).json(body))).await.map(drop);
        match made {
            Err(error) if error.status() == Some(409) => Ok(()),
            made => made,
        }
    }

    /// The large file, if any, that the hub would take only inside the commit: hf-hub would then read it whole and send it
    /// as text. The questions are those that hf-hub asks again before it uploads.
    pub(super) async fn refuse_inline(
        &self,
        revision: &Revision,
        files: &BTreeMap<String, Digests>,
        limit: u64,
    ) -> Result<(), HubError> {
        let large: Vec<_> = files.iter().filter(|(_, digests)| digests.size > limit).collect();
        let Some((path, largest)) = large.iter().max_by_key(|(_, digests)| digests.size) else { return Ok(()) };
        let doing = format!("asking {} how it takes large files", self.repo);
        let too_large = || HubError::TooLarge { file: (*path).clone(), bytes: largest.size, limit };

        let asked: Vec<_> =
            large.iter().map(|(path, file)| json!({"path": path, "size": file.size, "sample": ""})).collect();
        let url = self.api(&["preupload", revision.as_str()])?;
        let body = json!({"files": asked});
        let (answer, _) =
            self.patiently(|| self.json(&doing, self.request(Method::POST, url.clone()).json(&body))).await?;
        let modes = answer["files"].as_array().cloned().unwrap_or_default();
        let is_lfs = |path: &str| modes.iter().any(|file| file["path"] == path && file["uploadMode"] == "lfs");
        if !large.iter().all(|(path, _)| is_lfs(path)) {
            return Err(too_large());
        }

        let objects: Vec<_> = large.iter().map(|(_, file)| json!({"oid": file.sha256, "size": file.size})).collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart", "xet"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": {"name": revision.as_str()},
        });
        let git = format!("{}.git", self.repo.name());
        let url = self.url(&[self.repo.owner(), &git, "info", "lfs", "objects", "batch"])?;
        let (answer, _) =
            self.patiently(|| self.json(&doing, self.request(Method::POST, url.clone()).json(&body))).await?;
        if answer["transfer"] == "xet" { Ok(()) } else { Err(too_large()) }
    }
}

/// A file of a listing, if the entry is one and has a hash.
fn file(entry: &Value) -> Option<(String, Proof)> {
    if entry["type"] != "file" {
        return None;
    }
    // Of a large file `oid` is the hash of a pointer to it.
    let hash = entry["lfs"]["oid"].as_str().or_else(|| entry["oid"].as_str())?;
    let size = entry["lfs"]["size"].as_u64().or_else(|| entry["size"].as_u64())?;
    Proof::is_hash(hash).then(|| Some((entry["path"].as_str()?.to_owned(), Proof { size, hash: hash.to_owned() })))?
}
