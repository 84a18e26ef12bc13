//! `run.json`: where and how the run was started, so that it can be repeated.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::durable::replace_file;
use crate::error::RunError;
use crate::lock::host_name;

/// What the caller knows about a start; the rest is read from the machine.
#[derive(Debug, Clone)]
pub struct StartFacts {
    /// The step it goes on from; 0 for a fresh start.
    pub step: u64,
    /// The device, in words.
    pub device: String,
    /// The exact command, one entry per argument.
    pub command: Vec<String>,
    /// Changes of the configuration that are accepted from here on: `key: old -> new`.
    pub accepted: Vec<String>,
    /// Why it begins here: the run went back after a divergence, or is a branch of another.
    pub reason: Option<String>,
    /// The data is not that of the checkpoint, and was accepted.
    pub changed_data: Option<ChangedData>,
}

/// Data that is not that of the checkpoint which a run went on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedData {
    /// Its fingerprint in the checkpoint.
    pub fingerprint_then: String,
    /// The number of images then, where the checkpoint knows it.
    pub images_then: Option<usize>,
    /// Its fingerprint from this start on.
    pub fingerprint: String,
    /// The number of images from this start on.
    pub images: usize,
}

impl fmt::Display for ChangedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let then = self.images_then.map_or(String::new(), |then| format!(" ({} now, {then} then)", self.images));
        write!(f, "other images than in the checkpoint{then} are accepted; from here on the order is that of these")
    }
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Unique among runs.
    pub id: String,
    /// UTC, RFC 3339.
    pub created: String,
    /// Version of the program that created it.
    pub program_version: String,
    /// Where it was created.
    pub host: String,
    /// On what.
    pub device: String,
    /// Commit of the working directory it was started from, where there is one.
    pub git_hash: Option<String>,
    /// The command that created it.
    pub command: Vec<String>,
    /// As in [`StartFacts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Every later start.
    pub restarts: Vec<Restart>,
}

/// One later start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// UTC, RFC 3339.
    pub at: String,
    /// The step it went on from.
    pub step: u64,
    /// Version of the program that went on.
    pub program_version: String,
    /// Where.
    pub host: String,
    /// On what.
    pub device: String,
    /// As in [`RunRecord`].
    pub git_hash: Option<String>,
    /// The command.
    pub command: Vec<String>,
    /// As in [`StartFacts`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
    /// As in [`StartFacts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The data changed at this start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_data: Option<ChangedData>,
}

impl RunRecord {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no such record.
    pub fn read(path: &Path) -> Result<Option<Self>, RunError> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(RunError::io("read the record", path))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| RunError::Record { path: path.into(), source })
    }

    pub(crate) fn created(start: StartFacts) -> Self {
        let (created, host) = (clock::now(), host_name());
        let unique = format!("{created} {host} {} {:?}", std::process::id(), std::time::SystemTime::now());
        Self {
            id: blake3::hash(unique.as_bytes()).to_hex()[..16].to_owned(),
            created,
            program_version: env!("CARGO_PKG_VERSION").into(),
            host,
            device: start.device,
            git_hash: git_hash_here(),
            command: start.command,
            reason: start.reason,
            restarts: Vec::new(),
        }
    }

    pub(crate) fn restarted(mut self, start: StartFacts) -> Self {
        self.restarts.push(Restart {
            at: clock::now(),
            step: start.step,
            program_version: env!("CARGO_PKG_VERSION").into(),
            host: host_name(),
            device: start.device,
            git_hash: git_hash_here(),
            command: start.command,
            accepted: start.accepted,
            reason: start.reason,
            changed_data: start.changed_data,
        });
        self
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), RunError> {
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| replace_file(path, &text))
            .map_err(RunError::io("write the record", path))
    }
}

/// Where a run went on in another process or another way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// The step that it went on from.
    pub step: u64,
    /// What happened there.
    pub kind: TurnKind,
    /// The changes that were accepted, or why it went back; empty for a plain resume.
    pub what: String,
}

/// The kinds of [`Turn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnKind {
    /// Another process went on as before.
    Resumed,
    /// It went on with another setting or other data, which was accepted.
    Accepted,
    /// It went back to a checkpoint after a divergence.
    WentBack,
}

impl RunRecord {
    /// Where the run went on in another process or another way, as recorded; several at one step are one, if they are of a kind.
    pub fn turns(&self) -> Vec<Turn> {
        let mut turns: Vec<Turn> = self.restarts.iter().map(Restart::turn).collect();
        turns.sort_by_key(|turn| (turn.step, turn.kind as u8));
        turns.dedup_by(|next, turn| (next.step, next.kind) == (turn.step, turn.kind));
        turns
    }
}

impl Restart {
    fn turn(&self) -> Turn {
        let changes: Vec<String> =
            self.accepted.iter().cloned().chain(self.changed_data.iter().map(|_| "other data".to_owned())).collect();
        let (kind, what) = match &self.reason {
            Some(reason) => (TurnKind::WentBack, reason.clone()),
            None if changes.is_empty() => (TurnKind::Resumed, String::new()),
            None => (TurnKind::Accepted, changes.join(", ")),
        };
        Turn { step: self.step, kind, what }
    }
}

fn git_hash_here() -> Option<String> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().find_map(git_hash)
}

/// The commit that `root`'s `.git` points at, read from the files alone: loose and packed refs, and worktrees.
fn git_hash(root: &Path) -> Option<String> {
    let git = git_dir(root)?;
    // A worktree has its own HEAD, but shares the refs of the repository it belongs to.
    let common = fs::read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |dir| git.join(dir.trim()));
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let hash = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(name) => match fs::read_to_string(common.join(name)) {
            Ok(hash) => hash.trim().to_owned(),
            Err(_) => packed_ref(&common, name)?,
        },
    };
    (hash.len() >= 40 && hash.chars().all(|c| c.is_ascii_hexdigit())).then_some(hash)
}

fn git_dir(root: &Path) -> Option<PathBuf> {
    let git = root.join(".git");
    if git.is_dir() {
        return Some(git);
    }
    let pointer = fs::read_to_string(git).ok()?;
    Some(root.join(pointer.trim().strip_prefix("gitdir: ")?))
}

fn packed_ref(common: &Path, name: &str) -> Option<String> {
    let packed = fs::read_to_string(common.join("packed-refs")).ok()?;
    packed.lines().find_map(|line| Some(line.strip_suffix(name)?.strip_suffix(' ')?.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::folder_with;

    const HASH: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_commit_is_read_from_loose_packed_detached_and_worktree_refs() {
        let line = format!("{HASH}\n");
        let packed = format!("# pack-refs\n{HASH} refs/heads/main\n");
        let head = ("repo/.git/HEAD", "ref: refs/heads/main\n");
        let cases = [
            folder_with(&[head, ("repo/.git/refs/heads/main", &line)]),
            folder_with(&[head, ("repo/.git/packed-refs", &packed)]),
            folder_with(&[("repo/.git/HEAD", &line)]),
            folder_with(&[
                ("repo/.git", "gitdir: ../main/.git/worktrees/w\n"),
                ("main/.git/worktrees/w/HEAD", "ref: refs/heads/main\n"),
                ("main/.git/worktrees/w/commondir", "../..\n"),
                ("main/.git/refs/heads/main", &line),
            ]),
        ];
        for case in &cases {
            assert_eq!(git_hash(&case.path().join("repo")).as_deref(), Some(HASH));
        }
    }

    #[test]
    fn turns_are_told_apart_and_repeated_resumes_are_one() {
        use crate::run_dir::testing::start;
        let begun = RunRecord::created(start(0));
        let accepted = StartFacts { accepted: vec!["train.lr: 2e-4 -> 1e-4".into()], ..start(40) };
        let back = StartFacts { reason: Some("training diverged".into()), ..start(20) };
        let record = [start(40), start(20), accepted, start(40), back].into_iter().fold(begun, RunRecord::restarted);
        let turns: Vec<_> = record.turns().into_iter().map(|turn| (turn.step, turn.kind, turn.what)).collect();
        let expected = [
            (20, TurnKind::Resumed, String::new()),
            (20, TurnKind::WentBack, "training diverged".into()),
            (40, TurnKind::Resumed, String::new()),
            (40, TurnKind::Accepted, "train.lr: 2e-4 -> 1e-4".into()),
        ];
        assert_eq!(turns, expected);
    }

    #[test]
    fn no_repository_or_no_commit_yet_is_no_hash() {
        assert_eq!(git_hash(folder_with(&[]).path()), None);
        assert_eq!(git_hash(folder_with(&[(".git/HEAD", "ref: refs/heads/main\n")]).path()), None);
        assert_eq!(git_hash(folder_with(&[(".git/HEAD", "nonsense\n")]).path()), None);
    }
}
