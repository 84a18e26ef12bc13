//! One process per run directory. The lock is the kernel's (`flock`), so a killed process never leaves a run locked; what
//! stands in the file is for people.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::RunError;

/// How long to try: whoever only looks holds the lock for some microseconds.
const PATIENCE: Duration = Duration::from_millis(200);

/// The exclusive lock on a run directory; released when dropped, or by the kernel when the process ends in any way.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
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
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(RunError::io("open the lock", &path))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(RunError::Locked { path, holder: describe_holder(&mut file) });
                }
                Err(TryLockError::Error(error)) => return Err(RunError::io("lock", &path)(error)),
            }
        }
        sign(&mut file).map_err(RunError::io("write the lock", &path))?;
        Ok(Self { _file: file })
    }

    /// Whether a process of any machine that shares the lock holds the run in `root`.
    pub fn is_held(root: &Path) -> bool {
        let file = File::open(root.join("LOCK"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// The name of this machine, as the kernel knows it.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn sign(file: &mut File) -> std::io::Result<()> {
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
