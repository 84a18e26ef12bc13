//! Writing a checkpoint so that it is complete or absent, whichever instant the process or the machine stops at.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::manifest::{FileEntry, Manifest, check_file_name};
use super::tensors::{self, HashingWriter};
use super::{CheckpointError, FORMAT_VERSION, MANIFEST_FILE, STATE_FILE, Snapshot, dir_name};
use crate::disk::{self, Output, move_dir, remove_any, sync_dir};
use crate::durable::parent_of;

/// Prefix of a directory that is being written or deleted.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// Prefix of a checkpoint moved aside while its successor takes its name.
pub(super) const ASIDE_PREFIX: &str = ".old-";

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its directory.
    pub path: PathBuf,
    /// Its step.
    pub step: u64,
    /// All its files together.
    pub bytes: u64,
}

/// Writes `snapshot` as `dir/step-…`; `dir` exists. A checkpoint of the same name is replaced in one atomic exchange.
///
/// # Errors
/// The snapshot contradicts itself, or the disk refuses. Then nothing new is left behind and nothing old is touched.
pub fn save(dir: &Path, snapshot: &Snapshot) -> Result<Saved, CheckpointError> {
    let step = snapshot.state.step;
    let headers = check(snapshot).map_err(|reason| CheckpointError::Snapshot { step, reason })?;
    let name = dir_name(step);
    let temporary = dir.join(format!("{TEMPORARY_PREFIX}{name}"));
    let path = dir.join(name);

    let written = write_directory(&temporary, snapshot, &headers).and_then(|bytes| {
        put_in_place(&temporary, &path).map_err(CheckpointError::io("name the finished checkpoint", &path))?;
        Ok(Saved { path, step, bytes })
    });
    if written.is_err() {
        // A full disk gets its space back at once; the first error is the one to report.
        let _ = remove_any(&temporary);
    }
    written
}

/// Refuses what could not be read back; returns the header of each tensor file.
fn check(snapshot: &Snapshot) -> Result<Vec<Vec<u8>>, String> {
    let mut seen = vec![STATE_FILE];
    for file in &snapshot.files {
        check_file_name(&file.name)?;
        if seen.contains(&file.name.as_str()) {
            return Err(format!("two files are called {:?}", file.name));
        }
        seen.push(&file.name);
    }
    snapshot.files.iter().map(tensors::header).collect()
}

/// Fills `dir`: tensors, state, manifest last, each synced, then the directory itself. Returns the bytes written.
fn write_directory(dir: &Path, snapshot: &Snapshot, headers: &[Vec<u8>]) -> Result<u64, CheckpointError> {
    remove_any(dir).map_err(CheckpointError::io("remove the leftover", dir))?;
    disk::create_dir(dir).map_err(CheckpointError::io("create the directory", dir))?;

    let mut files = Vec::with_capacity(snapshot.files.len() + 1);
    for (file, header) in snapshot.files.iter().zip(headers) {
        files.push(write_file(dir, &file.name, |out| tensors::write(out, header, &file.tensors))?);
    }
    files.push(write_file(dir, STATE_FILE, |out| Ok(serde_json::to_writer_pretty(out, &snapshot.state)?))?);

    let manifest = Manifest { format_version: FORMAT_VERSION, files };
    let entry = write_file(dir, MANIFEST_FILE, |out| out.write_all(&manifest.to_json()?))?;
    sync_dir(dir).map_err(CheckpointError::io("sync the directory", dir))?;
    Ok(manifest.files.iter().map(|file| file.size).sum::<u64>() + entry.size)
}

/// Creates, fills and syncs one file; returns its line in the manifest.
fn write_file(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<HashingWriter<Output>>) -> io::Result<()>,
) -> Result<FileEntry, CheckpointError> {
    let path = dir.join(name);
    let write = || {
        let mut out = BufWriter::new(HashingWriter::new(Output::create_new(&path)?));
        fill(&mut out)?;
        let (file, entry) = out.into_inner().map_err(io::IntoInnerError::into_error)?.finish(name);
        file.sync()?;
        Ok(entry)
    };
    write().map_err(CheckpointError::io("write the file", &path))
}

/// Gives the complete `temporary` its final name, durably; what had that name before is gone afterwards. What is replaced is
/// deleted only when its successor's name is durable.
fn put_in_place(temporary: &Path, path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        move_checkpoint(temporary, path)
    } else if disk::exchange(temporary, path).is_ok() {
        sync_dir(parent_of(path))?;
        remove_checkpoint(temporary)
    } else {
        replace_stepwise(temporary, path)
    }
}

/// For file systems that cannot exchange two names, as some of the network do. Killed before the end, the old checkpoint is only
/// aside: [`super::put_back`] gives it its name again at the next start.
fn replace_stepwise(temporary: &Path, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{ASIDE_PREFIX}{name}"));
    remove_checkpoint(&aside)?;
    move_checkpoint(path, &aside)?;
    if let Err(error) = move_checkpoint(temporary, path) {
        // If this fails too, the next start does it; the first error is the one to report.
        let _ = remove_checkpoint(path).and_then(|()| move_checkpoint(&aside, path));
        return Err(error);
    }
    remove_checkpoint(&aside)
}

/// Renames a checkpoint, durably. Where a directory cannot be renamed it is copied, its manifest last.
pub(super) fn move_checkpoint(from: &Path, to: &Path) -> io::Result<()> {
    move_dir(from, to, |name| usize::from(name == MANIFEST_FILE))?;
    sync_dir(parent_of(to))
}

/// Deletes a checkpoint, its manifest first: what is left of it can never be taken for one.
pub(super) fn remove_checkpoint(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        remove_any(&path.join(MANIFEST_FILE))?;
    }
    remove_any(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::snapshot;
    use super::super::{Checkpoint, MODEL_FILE};
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_saved_snapshot_is_read_back_equal_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = snapshot(20, 0.25);
        let saved = save(dir.path(), &snapshot).unwrap();
        assert_eq!(names(dir.path()), ["step-000000020"]);
        assert_eq!(names(&saved.path), ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]);
        let checkpoint = Checkpoint::open(&saved.path).unwrap();
        assert_eq!(checkpoint.state, snapshot.state);
        for file in &snapshot.files {
            assert_eq!(checkpoint.tensors(&file.name).unwrap(), file.tensors);
        }
        let on_disk: u64 = fs::read_dir(&saved.path).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(saved.bytes, on_disk);
    }

    #[test]
    fn the_same_snapshot_gives_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (save(a.path(), &snapshot(3, 1.0)).unwrap(), save(b.path(), &snapshot(3, 1.0)).unwrap());
        for name in names(&a.path) {
            assert_eq!(fs::read(a.path.join(&name)).unwrap(), fs::read(b.path.join(&name)).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_checkpoint_of_the_same_step_good_or_damaged_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = save(dir.path(), &snapshot(20, 1.0)).unwrap().path;
        for (damage, seed) in [(false, 2.0), (true, 3.0)] {
            if damage {
                fs::remove_file(path.join(MODEL_FILE)).unwrap();
            }
            save(dir.path(), &snapshot(20, seed)).unwrap();
            let read = Checkpoint::open(&path).unwrap().tensors(MODEL_FILE).unwrap();
            assert_eq!(read, snapshot(20, seed).files[0].tensors);
            assert_eq!(names(dir.path()), ["step-000000020"]);
        }
    }

    #[test]
    fn where_names_cannot_be_exchanged_the_old_one_steps_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = save(dir.path(), &snapshot(20, 1.0)).unwrap().path;
        let temporary = dir.path().join(".tmp-step-000000020");
        fs::rename(save(dir.path(), &snapshot(21, 2.0)).unwrap().path, &temporary).unwrap();
        replace_stepwise(&temporary, &path).unwrap();
        assert!(fs::read_to_string(path.join(STATE_FILE)).unwrap().contains("\"step\": 21"));
        assert_eq!(names(dir.path()), ["step-000000020"]);
    }

    #[test]
    fn a_leftover_of_a_killed_save_does_not_disturb_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let leftover = dir.path().join(".tmp-step-000000020");
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join("model.safetensors"), "half").unwrap();
        save(dir.path(), &snapshot(20, 1.0)).unwrap();
        assert_eq!(names(dir.path()), ["step-000000020"]);
    }

    #[test]
    fn a_contradictory_snapshot_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut wrong_shape = snapshot(1, 0.0);
        wrong_shape.files[0].tensors[0].shape[0] += 1;
        let mut two_files = snapshot(1, 0.0);
        two_files.files[1].name = MODEL_FILE.into();
        let mut state_twice = snapshot(1, 0.0);
        state_twice.files[0].name = STATE_FILE.into();
        let mut escape = snapshot(1, 0.0);
        escape.files[0].name = "../model.safetensors".into();
        for snapshot in [wrong_shape, two_files, state_twice, escape] {
            let error = save(dir.path(), &snapshot).unwrap_err();
            assert!(matches!(error, CheckpointError::Snapshot { step: 1, .. }), "{error}");
            assert_eq!(names(dir.path()), [""; 0]);
        }
    }

    #[test]
    fn a_failing_file_system_is_reported_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("gone");
        let error = save(&missing, &snapshot(1, 0.0)).unwrap_err();
        assert!(error.to_string().contains("gone/.tmp-step-000000001: cannot create the directory"), "{error}");
    }
}
