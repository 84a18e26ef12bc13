//! Which older checkpoints stay.

use std::path::{Path, PathBuf};

use super::read::looks_complete;
use super::save::{TEMPORARY_PREFIX, remove_checkpoint};
use super::{Checkpoint, CheckpointError, list};
use crate::disk::{self, remove_any, sync_dir, sync_names};

/// The rule for deleting: only what is older than a checkpoint that was just verified, and in no way protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How many of the newest complete checkpoints stay; 0 keeps all.
    pub keep_last: usize,
    /// Checkpoints at multiples of this many steps stay for ever; 0 protects none.
    pub keep_every: u64,
}

impl Retention {
    /// Deletes what is older than `newest` and not kept. Returns the names deleted. That `newest` is a [`Checkpoint`]
    /// is the proof that it was read back and verified.
    ///
    /// # Errors
    /// A deletion fails.
    pub fn apply(&self, dir: &Path, newest: &Checkpoint) -> Result<Vec<String>, CheckpointError> {
        let older = list(dir)?.into_iter().filter(|(step, _)| *step < newest.state.step);
        let durable = sync_names(dir).map_err(CheckpointError::io("sync the directory", dir))?;
        // Where names are not sure to be durable, a power failure may take the newest one back: then one more is needed.
        let keep_last = if durable || self.keep_last != 1 { self.keep_last } else { 2 };
        let mut removed = Vec::new();
        for path in (Self { keep_last, ..*self }).expendable(older, looks_complete) {
            removed.push(remove(dir, &path)?);
        }
        if !removed.is_empty() {
            sync_dir(dir).map_err(CheckpointError::io("sync the directory", dir))?;
        }
        Ok(removed)
    }

    /// Those of the `older` ones, newest first, that no rule keeps. An incomplete one does not count.
    fn expendable(
        &self,
        older: impl Iterator<Item = (u64, PathBuf)>,
        is_complete: impl Fn(&Path) -> bool,
    ) -> Vec<PathBuf> {
        if self.keep_last == 0 {
            return Vec::new();
        }
        let mut kept = 1;
        let mut expendable = Vec::new();
        for (step, path) in older {
            let protected = self.keep_every > 0 && step.is_multiple_of(self.keep_every);
            if kept < self.keep_last {
                kept += usize::from(is_complete(&path));
            } else if !protected {
                expendable.push(path);
            }
        }
        expendable
    }
}

/// Renames, then deletes: half a checkpoint never carries a checkpoint's name. Where it cannot be renamed, its manifest goes first.
fn remove(dir: &Path, path: &Path) -> Result<String, CheckpointError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let doomed = dir.join(format!("{TEMPORARY_PREFIX}{name}"));
    remove_any(&doomed)
        .and_then(|()| match disk::rename(path, &doomed) {
            Ok(()) => remove_any(&doomed),
            Err(_) => remove_checkpoint(path),
        })
        .map_err(CheckpointError::io("delete the old checkpoint", path))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::super::testing::snapshot;
    use super::super::{dir_name, save};
    use super::*;

    fn steps_left(keep_last: usize, keep_every: u64, damage: &[u64]) -> Vec<u64> {
        let dir = tempfile::tempdir().unwrap();
        for step in [10, 20, 30, 40, 50] {
            save(dir.path(), &snapshot(step, 1.0)).unwrap();
        }
        for step in damage {
            fs::remove_file(dir.path().join(dir_name(*step)).join("state.json")).unwrap();
        }
        let newest = Checkpoint::open(&dir.path().join(dir_name(50))).unwrap();
        Retention { keep_last, keep_every }.apply(dir.path(), &newest).unwrap();
        list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn the_last_ones_and_the_milestones_stay() {
        assert_eq!(steps_left(2, 0, &[]), [50, 40]);
        assert_eq!(steps_left(1, 20, &[]), [50, 40, 20]);
        assert_eq!(steps_left(0, 0, &[]), [50, 40, 30, 20, 10]);
        assert_eq!(steps_left(9, 0, &[]), [50, 40, 30, 20, 10]);
    }

    #[test]
    fn a_damaged_older_one_does_not_take_the_place_of_a_good_one() {
        assert_eq!(steps_left(2, 0, &[40]), [50, 40, 30]);
    }

    #[test]
    fn only_older_ones_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = [10, 20, 30].map(|step| save(dir.path(), &snapshot(step, 1.0)).unwrap().path).into();
        let removed =
            Retention { keep_last: 1, keep_every: 0 }.apply(dir.path(), &Checkpoint::open(&paths[1]).unwrap()).unwrap();
        assert_eq!(removed, [dir_name(10)]);
        assert!(paths[2].exists());
    }
}
