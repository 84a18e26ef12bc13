//! One commit with everything, and never two.
//!
//! A commit that fails may have been applied all the same: the connection can break between the hub's work and its answer.
//! So before each attempt the hub is asked what it has. Files are compared by their hashes, which makes pushing the same
//! model twice one commit, even if another process made it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;

use super::client::Hub;
use super::digest::Digests;
use super::remote::Head;
use crate::error::HubError;
use crate::name::Revision;

/// hf-hub would inline a larger file as text where the hub has no xet storage.
const MAX_INLINE: u64 = 5_000_000;

/// What is to be in a repository.
pub(super) struct Wanted<'a> {
    pub(super) revision: &'a Revision,
    /// Make the repository private, if it has to be made.
    pub(super) private: bool,
    /// The folder of the files.
    pub(super) folder: &'a Path,
    /// The files by their paths in it.
    pub(super) files: &'a BTreeMap<String, Digests>,
    pub(super) message: &'a str,
}

/// A repository that holds what was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) commit: String,
    /// Nothing had to be sent.
    pub(super) was_there: bool,
}

impl Hub {
    /// Makes the repository where it is missing, and commits what it does not have.
    ///
    /// # Errors
    /// The last failure. Whether the commit was applied is not known then; the next call will see.
    pub(super) fn commit(&self, wanted: &Wanted<'_>) -> Result<Applied, HubError> {
        self.settings.may_push(&self.repo)?;
        self.block_on(async {
            let mut head = self.prepared(wanted).await?;
            if self.has(&head, wanted).await? {
                return Ok(Applied { commit: head.commit, was_there: true });
            }
            self.refuse_inline(wanted.revision, wanted.files, MAX_INLINE).await?;
            let mut tried = 0;
            loop {
                let error = match self.attempt(wanted, &head).await {
                    Ok(commit) => return Ok(Applied { commit, was_there: false }),
                    Err(error) => error,
                };
                // What the hub refused outright it has not done.
                let may_be_there = error.status().is_none_or(|status| status >= 500 || matches!(status, 409 | 412));
                if !may_be_there && !error.is_passing() {
                    return Err(error);
                }
                // If the hub does not answer here either, the first failure is the one to report.
                let Ok(now) = self.head(wanted.revision).await else { return Err(error) };
                if now.commit != head.commit && self.has(&now, wanted).await? {
                    return Ok(Applied { commit: now.commit, was_there: false });
                }
                // A commit by somebody else is no reason to give up: ours goes on top of it.
                let moved = matches!(error.status(), Some(409 | 412));
                if !moved && !error.is_passing() {
                    return Err(error);
                }
                head = now;
                self.pause(error, &mut tried).await?;
            }
        })
    }

    /// The head of the branch, made with its repository where they are missing.
    async fn prepared(&self, wanted: &Wanted<'_>) -> Result<Head, HubError> {
        let head = match self.head(wanted.revision).await {
            Err(HubError::Status { status: 404, code, .. }) => {
                if code.as_deref() != Some("RevisionNotFound") {
                    self.create(wanted.private).await?;
                }
                if *wanted.revision != Revision::default() {
                    self.create_branch(wanted.revision).await?;
                }
                self.head(wanted.revision).await?
            }
            head => head?,
        };
        if wanted.private && !head.is_private {
            return Err(HubError::Public { repo: self.repo.to_string() });
        }
        Ok(head)
    }

    /// Whether a commit has all the files, to the byte.
    async fn has(&self, head: &Head, wanted: &Wanted<'_>) -> Result<bool, HubError> {
        let tree = self.tree(&head.commit).await?;
        Ok(wanted.files.iter().all(|(path, digests)| tree.get(path).is_some_and(|proof| proof.holds(digests))))
    }

    /// Uploads and commits, once, on top of `head`; returns the commit.
    async fn attempt(&self, wanted: &Wanted<'_>, head: &Head) -> Result<String, HubError> {
        let doing = format!("pushing to {}", self.repo);
        let silence = self.settings.timeout;
        let operations =
            wanted.files.keys().map(|path| CommitOperation::add_file(path, wanted.folder.join(path))).collect();
        let pulse = Arc::new(Pulse::new());
        let library = self.library()?;
        let model = library.model(self.repo.owner(), self.repo.name());
        let commit = model
            .create_commit()
            .operations(operations)
            .commit_message(wanted.message)
            .revision(wanted.revision.as_str())
            .parent_commit(head.commit.as_str())
            .progress(Arc::clone(&pulse))
            .send();
        let lost = async {
            // The requests have this limit each; twice as long without a byte is the xet upload's, which has none.
            while pulse.age() < (2 * silence).as_secs_f64() {
                tokio::time::sleep(silence / 4).await;
            }
        };
        let info = tokio::select! {
            info = commit => info.map_err(|error| HubError::of_library(&doing, error, silence))?,
            () = lost => return Err(HubError::Silent { doing, seconds: 2 * silence }),
        };
        match info.commit_oid {
            Some(commit) => Ok(commit),
            // An answer without the hash is no failure: the head has it.
            None => Ok(self.head(wanted.revision).await?.commit),
        }
    }
}

/// When the transfer of large files last made progress.
struct Pulse {
    start: Instant,
    /// The state that was reported last, as one number.
    state: AtomicU64,
    /// Milliseconds from `start` to the last change of it.
    changed: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self { start: Instant::now(), state: AtomicU64::new(0), changed: AtomicU64::new(0) }
    }

    fn beat(&self) {
        self.changed.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Seconds since the last change.
    fn age(&self) -> f64 {
        self.start.elapsed().as_secs_f64() - self.changed.load(Ordering::Relaxed) as f64 / 1e3
    }
}

impl ProgressHandler for Pulse {
    fn on_progress(&self, event: &ProgressEvent) {
        // Reported ten times a second, whether or not there was progress: only a change counts.
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, transfer_bytes_completed, .. }) = event {
            let state = bytes_completed.wrapping_add(*transfer_bytes_completed);
            if self.state.swap(state, Ordering::Relaxed) == state {
                return;
            }
        }
        self.beat();
    }
}
