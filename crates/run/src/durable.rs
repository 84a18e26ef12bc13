//! Files that are either the old ones or the new ones, whenever the power goes.
//!
//! A write reaches the disk in any order the kernel likes; only `fsync` of the file, then `rename`, then `fsync` of the
//! directory that holds the name, makes "the name exists" imply "the content is complete" after a crash. Every file
//! that this crate writes to be read later goes through here, or is part of a directory that gets the same treatment
//! ([`crate::checkpoint`]).

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::{self, Output, sync_dir};
use crate::memory;

/// Replaces `path` by `bytes`: written and synced under a temporary name beside it, then renamed over it.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_by(path, |temporary| write_synced(temporary, bytes))?;
    sync_dir(parent_of(path))
}

/// Replaces `path` by `bytes` without a sync: a reader never sees half of them, but a power failure may take them back.
pub(crate) fn replace_file_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_by(path, |temporary| Output::create(temporary)?.write_all(bytes))
}

/// Has `write` make a file under a temporary name beside `path`, and renames it to `path`.
fn replace_by(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let written = write(&temporary).and_then(|()| disk::rename(&temporary, path));
    if written.is_err() {
        // The error that matters is the first one; a leftover is overwritten by the next attempt.
        let _ = disk::remove_any(&temporary);
    }
    written
}

/// The directory that holds `path`'s name; `.` for a bare file name.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What to do about an input or output error at `path`, in one sentence.
pub fn io_help(error: &io::Error, path: &Path) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            // The file that could not be written is gone by now: ask for the place where it would have been.
            let free = path.ancestors().find_map(|place| memory::disk_free(place).ok());
            let free = free.map_or_else(|| "unknown".into(), memory::format_bytes);
            format!("free disk space or quota (free there now: {free}), or use another disk")
        }
        Kind::FileTooLarge => {
            "files may not grow that large here: raise the limit (`ulimit -f`), or use another disk".into()
        }
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            "the place is not writable or readable for this user: change its permissions, or choose another one".into()
        }
        Kind::NotFound => "check the path; something on it does not exist".into(),
        Kind::NotADirectory | Kind::AlreadyExists => {
            "a file stands where a directory is needed: move it away, or choose another path".into()
        }
        Kind::IsADirectory => "a directory stands where a file is needed: move it away, or choose another path".into(),
        _ => "check the disk (dmesg, mount) and run the same command again".into(),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = Output::create(path)?;
    file.write_all(bytes)?;
    file.sync()
}

fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name =
        path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;
    let mut temporary = std::ffi::OsString::from(".tmp-");
    temporary.push(name);
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::disk::faults::{Fault, Lacking, with};

    #[test]
    fn replacing_a_file_leaves_the_new_bytes_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        replace_file(&path, b"old").unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("occupied");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "kept").unwrap();
        replace_file(&path, b"new").unwrap_err();
        assert_eq!(fs::read_to_string(path.join("inside")).unwrap(), "kept");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn whichever_call_of_a_replacement_fails_the_file_is_the_old_or_the_new_one() {
        let (old, new) = (b"old".repeat(100), b"new".repeat(100));
        for fault in Fault::ALL {
            for call in 0.. {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("run.json");
                fs::write(&path, &old).unwrap();
                let (replaced, calls) = with(Lacking::default(), Some((call, fault)), || replace_file(&path, &new));
                let found = fs::read(&path).unwrap();
                assert!(found == new || replaced.is_err() && found == old, "{fault:?} in call {call}: {replaced:?}");
                replace_file(&path, &new).unwrap();
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
                if call > calls {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_full_disk_is_explained_with_the_space_that_is_left() {
        let error = fs::write("/dev/full", "x").unwrap_err();
        let help = io_help(&error, &std::env::temp_dir().join("gone/model.safetensors"));
        assert!(help.contains("free disk space") && !help.contains("unknown"), "{help}");
    }
}
