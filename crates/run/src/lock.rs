//! One process per run directory. The lock is the kernel's (`flock`), so a killed process never leaves a run locked; what
//! stands in the file is for people. Where the file system has no such locks, a lease (`lease`) stands for it.

mod lease;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::disk::{self, is_at, weak};
use crate::error::RunError;
use lease::Lease;

/// How long to try: whoever only looks holds the lock for some microseconds.
const PATIENCE: Duration = Duration::from_millis(200);

/// The exclusive lock on a run directory; released when dropped, or by the kernel when the process ends in any way.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    file: File,
    lease: Option<Lease>,
    /// There was no lock file before.
    created: bool,
}

/// What the lock file says, for the error message of the next process.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    since: String,
}

impl RunLock {
    /// Locks `root`'s `LOCK`.
    ///
    /// # Errors
    /// [`RunError::Locked`] names the holder; [`RunError::Io`] if the file cannot be created or locked at all.
    pub fn acquire(root: &Path) -> Result<Self, RunError> {
        let path = root.join("LOCK");
        let start = Instant::now();
        loop {
            let created = !path.exists();
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(RunError::io("open the lock", &path))?;
            let lease = match try_lock(&file) {
                Ok(()) if !is_at(&file, &path) => continue, // A refused start has removed it meanwhile.
                Ok(()) => None,
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(RunError::Locked { path, holder: describe_holder(&mut file) });
                }
                Err(TryLockError::Error(error)) if weak::cannot_lock(&error) => {
                    weak::LOCKS.warn(root, &error);
                    Some(Lease::take(root)?)
                }
                Err(TryLockError::Error(error)) => return Err(RunError::io("lock", &path)(error)),
            };
            if lease.is_none() {
                // A machine that has no locks on this file system may hold it.
                Lease::refuse_if_held(root)?;
            }
            sign(&mut file).map_err(RunError::io("write the lock", &path))?;
            return Ok(Self { path, file, lease, created });
        }
    }

    /// Whether a process of any machine that shares the lock holds the run in `root`.
    pub fn is_held(root: &Path) -> bool {
        let file = File::open(root.join("LOCK"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))) || Lease::is_held(root)
    }

    /// Whether another process has taken it over, as may happen to a lease whose holder was suspended.
    pub(crate) fn is_lost(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_lost)
    }

    /// The error of a lock that [is lost](Self::is_lost).
    pub(crate) fn taken_over(&self) -> RunError {
        RunError::Locked { path: self.path.clone(), holder: "a process that has taken over from this one".into() }
    }

    /// Whether its file is still there: not removed with its directory, nor hidden by another mount.
    pub(crate) fn is_in_place(&self) -> bool {
        is_at(&self.file, &self.path)
    }

    /// Removes the file, and releases the lock: of work that has ended for good.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove(self) -> io::Result<()> {
        if self.is_in_place() { disk::remove_any(&self.path) } else { Ok(()) }
    }

    /// Removes the file if it was not there before, and releases the lock.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn release_without_trace(self) -> io::Result<()> {
        if self.created && self.is_in_place() { disk::remove_any(&self.path) } else { Ok(()) }
    }
}

fn try_lock(file: &File) -> Result<(), TryLockError> {
    #[cfg(test)]
    disk::faults::may_lock().map_err(TryLockError::Error)?;
    file.try_lock()
}

/// The name of this machine, as the kernel knows it.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn sign(file: &mut File) -> io::Result<()> {
    let holder = Holder { pid: std::process::id(), host: host_name(), since: clock::now() };
    let text = serde_json::to_string(&holder)?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{text}")
}

fn describe_holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(4096).read_to_string(&mut text);
    match read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok()) {
        Some(Holder { pid, host, since }) => format!("process {pid} on {host} since {since}"),
        None => "another process".into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::faults::{Lacking, on};

    #[test]
    fn without_locks_a_lease_keeps_a_second_process_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let acquire = || on(Lacking { locks: true, ..Lacking::default() }, || RunLock::acquire(dir.path()));
        let first = acquire().unwrap();
        assert!(RunLock::is_held(dir.path()) && !first.is_lost());
        let error = acquire().unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        // Nor does a process get in that can lock here.
        assert!(matches!(RunLock::acquire(dir.path()), Err(RunError::Locked { .. })));
        drop(first);
        assert!(!RunLock::is_held(dir.path()));
        acquire().unwrap();
    }

    #[test]
    fn a_lock_whose_file_was_there_leaves_it_and_another_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        RunLock::acquire(dir.path()).unwrap().release_without_trace().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(RunLock::acquire(dir.path()).unwrap());
        RunLock::acquire(dir.path()).unwrap().release_without_trace().unwrap();
        assert!(dir.path().join("LOCK").exists());
    }

    #[test]
    fn a_lock_notices_that_its_directory_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        std::fs::create_dir(&root).unwrap();
        let lock = RunLock::acquire(&root).unwrap();
        assert!(lock.is_in_place());
        std::fs::remove_dir_all(&root).unwrap();
        assert!(!lock.is_in_place());
    }
}
