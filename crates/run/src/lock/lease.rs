//! A lock for file systems without locks: a file that its holder renews every [`BEAT`], and that may be taken over once it is
//! [`STALE`].
//!
//! Whether a lease is renewed is watched, not computed: clocks of two machines differ. Where holder and newcomer share the machine
//! (host, boot and pid namespace), the kernel is asked whether the process lives, and nobody waits. To take over is to rename an
//! own file over the old one; of two that do so at once the last one wins, so both look again after [`SETTLE`]. A holder that was
//! suspended for so long that its lease was taken over sees that at its next beat, and saves nothing more.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::host_name;
use crate::clock;
use crate::disk::{self, Output};
use crate::durable::replace_file_unsynced;
use crate::error::RunError;

/// How often a lease is renewed.
const BEAT: Duration = Duration::from_secs(5);
/// A lease that was not renewed for so long has no holder any more. A network disk may stall for some beats.
const STALE: Duration = Duration::from_secs(60);
/// How long a takeover is watched for another one.
const SETTLE: Duration = Duration::from_secs(1);

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sign {
    host: String,
    pid: u32,
    /// Of this boot of the machine; a process of an earlier one is gone.
    boot: Option<String>,
    /// Process ids mean something only among those that share it.
    pid_namespace: Option<String>,
    /// When the process started, in ticks since the boot: a process id may be used again.
    started: Option<u64>,
    /// The same process may lease several times.
    serial: u64,
    since: String,
    /// Counts the renewals.
    beat: u64,
    /// The last renewal, for people and for those that only look.
    renewed: String,
}

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Lease {
    path: PathBuf,
    sign: Sign,
    lost: Arc<AtomicBool>,
    end: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
}

/// Tells the leases of one process apart.
static SERIAL: AtomicU64 = AtomicU64::new(1);

impl Sign {
    /// Of this process, now.
    fn new() -> Self {
        let now = clock::now();
        Self {
            host: host_name(),
            pid: std::process::id(),
            boot: boot_id(),
            pid_namespace: pid_namespace(),
            started: start_of("self"),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            since: now.clone(),
            beat: 0,
            renewed: now,
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.host, self.pid, &self.boot, self.started, self.serial)
            == (&other.host, other.pid, &other.boot, other.started, other.serial)
    }

    /// Whether its process lives, where this machine can tell.
    fn lives(&self) -> Option<bool> {
        let boot = boot_id();
        if self.host != host_name() || self.boot.is_none() || boot.is_none() {
            return None;
        }
        if self.boot != boot {
            return Some(false);
        }
        // Another container of this machine may have the same name.
        if self.pid_namespace.is_none() || self.pid_namespace != pid_namespace() {
            return None;
        }
        let started = start_of(&self.pid.to_string());
        Some(started.is_some() && started == self.started)
    }

    fn describe(&self) -> String {
        let Self { pid, host, since, renewed, .. } = self;
        format!("process {pid} on {host} since {since}, last seen {renewed}")
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }
}

impl Lease {
    /// Leases `root`.
    ///
    /// # Errors
    /// [`RunError::Locked`] names the holder.
    pub(super) fn take(root: &Path) -> Result<Self, RunError> {
        let path = path_in(root);
        let failed = || RunError::io("write the lease", &path);
        let sign = Sign::new();
        let bytes = sign.bytes().map_err(failed())?;
        match Output::create_new(&path).and_then(|mut file| file.write_all(&bytes)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                wait_until_stale(&path, STALE)?;
                replace_file_unsynced(&path, &bytes).map_err(failed())?;
                std::thread::sleep(SETTLE);
                let there = read(&path);
                if !there.as_ref().is_some_and(|there| there.is_of(&sign)) {
                    return Err(locked(&path, there.as_ref()));
                }
            }
            Err(error) => return Err(failed()(error)),
        }
        Ok(Self::beating(path, sign, BEAT))
    }

    /// Starts to renew it.
    fn beating(path: PathBuf, sign: Sign, beat: Duration) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel();
        let (place, mut mine, gone) = (path.clone(), sign.clone(), Arc::clone(&lost));
        let heart = std::thread::Builder::new().name("lease".into()).spawn(move || {
            while ended.recv_timeout(beat) == Err(RecvTimeoutError::Timeout) {
                // A disk that cannot be read is no other holder, and one that cannot be written may be back at the next beat.
                match read(&place) {
                    Some(there) if !there.is_of(&mine) => {
                        tracing::error!(
                            "{}: taken over by {}; nothing more is saved here",
                            place.display(),
                            there.describe()
                        );
                        gone.store(true, Ordering::Relaxed);
                        return;
                    }
                    _ => {
                        mine.beat += 1;
                        mine.renewed = clock::now();
                        let _ = mine.bytes().and_then(|bytes| replace_file_unsynced(&place, &bytes));
                    }
                }
            }
        });
        // Without a thread it is a lease that ends too early: better than no run.
        Self { path, sign, lost, end: Some(end), heart: heart.ok() }
    }

    /// Whether it was taken over.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Refuses if a lease is renewed that another machine holds; removes a stale one.
    pub(super) fn refuse_if_held(root: &Path) -> Result<(), RunError> {
        let path = path_in(root);
        if !path.exists() {
            return Ok(());
        }
        wait_until_stale(&path, STALE)?;
        disk::remove_any(&path).map_err(RunError::io("remove the stale lease", &path))
    }

    /// Whether somebody holds it, as far as one look tells.
    pub(super) fn is_held(root: &Path) -> bool {
        let path = path_in(root);
        let age = || fs::metadata(&path).ok()?.modified().ok()?.elapsed().ok();
        read(&path).is_some_and(|sign| sign.lives().unwrap_or_else(|| age().is_none_or(|age| age < STALE)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.end.take());
        // It has nothing to say when it ends.
        let _ = self.heart.take().map(JoinHandle::join);
        if read(&self.path).is_some_and(|there| there.is_of(&self.sign)) {
            // One that stays is stale soon.
            let _ = disk::remove_any(&self.path);
        }
    }
}

/// Returns once the lease has no holder: at once where this machine knows that its process is gone, otherwise when it was not
/// renewed for as long as `stale`.
fn wait_until_stale(path: &Path, stale: Duration) -> Result<(), RunError> {
    let first = read(path);
    let since = Instant::now();
    let mut told = false;
    while path.exists() {
        let there = read(path);
        match there.as_ref().and_then(Sign::lives) {
            Some(false) => break,
            Some(true) => return Err(locked(path, there.as_ref())),
            None if there != first => return Err(locked(path, there.as_ref())),
            None if since.elapsed() >= stale => break,
            None => {}
        }
        if !std::mem::replace(&mut told, true) {
            let (holder, seconds) = (there.as_ref().map_or("another process".into(), Sign::describe), stale.as_secs());
            tracing::warn!("{}: leased by {holder}; waiting up to {seconds} s for a sign of life", path.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn locked(path: &Path, holder: Option<&Sign>) -> RunError {
    RunError::Locked { path: path.into(), holder: holder.map_or("another process".into(), Sign::describe) }
}

fn path_in(root: &Path) -> PathBuf {
    root.join("LEASE")
}

fn read(path: &Path) -> Option<Sign> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn pid_namespace() -> Option<String> {
    Some(fs::read_link("/proc/self/ns/pid").ok()?.display().to_string())
}

/// When a process started; nothing if it is gone, or dead and only not yet waited for by its parent.
fn start_of(process: &str) -> Option<u64> {
    start_in(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// The same from its line. The name in the second field may hold anything, also brackets.
fn start_in(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The field 22; the first behind the state is the fourth.
    fields.nth(22 - 4).filter(|_| !["Z", "X"].contains(&state))?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_millis(300);

    #[test]
    fn a_dead_process_that_nobody_waited_for_holds_nothing() {
        let stat = |state: &str| format!("12 (a) b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20");
        assert_eq!(["S", "R", "Z", "X"].map(|state| start_in(&stat(state))), [Some(4711), Some(4711), None, None]);
    }

    fn leased(dir: &Path, change: impl FnOnce(&mut Sign)) -> PathBuf {
        let mut sign = Sign::new();
        change(&mut sign);
        fs::write(path_in(dir), sign.bytes().unwrap()).unwrap();
        path_in(dir)
    }

    #[test]
    fn a_lease_of_a_process_that_is_gone_or_of_an_earlier_boot_is_stale_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let changes: [fn(&mut Sign); 3] =
            [|sign| sign.pid = u32::MAX, |sign| sign.started = Some(1), |sign| sign.boot = Some("earlier".into())];
        for change in changes {
            wait_until_stale(&leased(dir.path(), change), Duration::from_secs(3600)).unwrap();
            assert!(!Lease::is_held(dir.path()));
        }
        leased(dir.path(), |_| {});
        assert!(Lease::is_held(dir.path()));
        assert!(matches!(Lease::take(dir.path()), Err(RunError::Locked { .. })));
    }

    #[test]
    fn a_lease_of_another_machine_is_watched_and_taken_over_when_nothing_renews_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = leased(dir.path(), |sign| sign.host = "elsewhere".into());
        let start = Instant::now();
        wait_until_stale(&path, SOON).unwrap();
        assert!(start.elapsed() >= SOON);

        let mut sign = read(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(SOON);
                sign.beat += 1;
                replace_file_unsynced(&path, &sign.bytes().unwrap()).unwrap();
            });
            let error = wait_until_stale(&path, 100 * SOON).unwrap_err();
            assert!(error.to_string().contains("on elsewhere"), "{error}");
        });
    }

    #[test]
    fn a_lease_is_renewed_and_one_that_was_taken_over_is_lost_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let sign = Sign::new();
        fs::write(path_in(dir.path()), sign.bytes().unwrap()).unwrap();
        let lease = Lease::beating(path_in(dir.path()), sign, Duration::from_millis(20));
        let wait_for = |what: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !what() {
                assert!(start.elapsed() < Duration::from_secs(20), "it does not happen");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for(&|| read(&path_in(dir.path())).is_some_and(|sign| sign.beat >= 2));
        assert!(!lease.is_lost());
        // A renewal between the look and the write may hide one takeover, not the next.
        wait_for(&|| {
            leased(dir.path(), |sign| sign.host = "elsewhere".into());
            std::thread::sleep(Duration::from_millis(30));
            lease.is_lost()
        });
        drop(lease);
        assert_eq!(read(&path_in(dir.path())).unwrap().host, "elsewhere");
    }
}
