//! How much disk a run needs: bytes, and files where a file system counts them.
//!
//! A disk that fills up costs no checkpoint that is there, but it costs those that do not fit; whoever starts a run of weeks
//! wants to know that before.

use std::path::Path;

use ddpm_model::diffusion::TimestepSamplerKind;
use ddpm_model::params::ParamLayout;
use ddpm_run::RunPaths;
use ddpm_run::memory::{disk_free, format_bytes, inodes_free};

use crate::config::{Cadence, TrainPlan, Warning};

/// Bytes of a line of `metrics.jsonl` with its TensorBoard events, and of a picture; rough values, small beside the rest.
const LOG_LINE_BYTES: u64 = 1500;
const PICTURE_BYTES: u64 = 500_000;
/// Files and directories of a run beside checkpoints and pictures, with those that are being replaced.
const OTHER_FILES: u64 = 16;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskNeed {
    /// Of a checkpoint: weights, both moments and each average, in f32.
    pub checkpoint_bytes: u64,
    /// Of a finished run, with one checkpoint that is being replaced.
    pub run_bytes: u64,
    /// Files of a checkpoint, with its directory.
    checkpoint_files: u64,
    /// The same as `run_bytes`.
    run_files: u64,
}

impl DiskNeed {
    /// The need of a run from its first step to its last.
    pub fn of(plan: &TrainPlan, layout: &ParamLayout) -> Self {
        let config = plan.config();
        let (steps, averages) = (config.train.steps, config.train.ema_decays.len() as u64);
        let checkpoint_bytes = layout.parameters() as u64 * 4 * (3 + averages);
        let observes = config.loss.timestep_sampler == TimestepSamplerKind::LossSecondMoment;
        // The directory, weights, moments, state and manifest.
        let checkpoint_files = 5 + averages + u64::from(observes);
        let lines = plan.log_cadence().count(steps).saturating_mul(LOG_LINE_BYTES);
        let pictures = plan.sample_cadence().count(steps).saturating_add(1);
        let checkpoints = checkpoints_at_once(plan);
        Self {
            checkpoint_bytes,
            run_bytes: checkpoint_bytes
                .saturating_mul(checkpoints)
                .saturating_add(lines)
                .saturating_add(pictures.saturating_mul(PICTURE_BYTES)),
            checkpoint_files,
            run_files: checkpoint_files
                .saturating_mul(checkpoints)
                .saturating_add(pictures)
                .saturating_add(OTHER_FILES),
        }
    }

    /// A warning if the run in `paths` will not fit on its disk, be it there already in part or not yet.
    pub fn warning(&self, paths: &RunPaths) -> Option<Warning> {
        let place = paths.root().ancestors().map(or_here).find(|place| place.exists())?;
        let free = Room { bytes: disk_free(place).ok(), files: inodes_free(place).ok().flatten() };
        let there = Room { bytes: Some(0), files: Some(0) }.with_all_in(paths.root());
        self.compare(place, free, there)
    }

    fn compare(&self, place: &Path, free: Room, there: Room) -> Option<Warning> {
        let place = place.display();
        let few = |needed: u64, free: Option<u64>| free.filter(|free| *free < needed);
        let bytes = |free| format!("{} free", format_bytes(free));
        let files = |free| format!("room for {free} more files");
        let next = few(self.checkpoint_bytes, free.bytes)
            .map(|free| (format_bytes(self.checkpoint_bytes), bytes(free)))
            .or_else(|| {
                let needed = self.checkpoint_files + OTHER_FILES;
                few(needed, free.files).map(|free| (format!("{needed} files"), files(free)))
            });
        let more = |all: u64, there: Option<u64>| all.saturating_sub(there.unwrap_or(0));
        let all = || {
            let (more_bytes, more_files) = (more(self.run_bytes, there.bytes), more(self.run_files, there.files));
            few(more_bytes, free.bytes)
                .map(|free| (format_bytes(more_bytes), bytes(free)))
                .or_else(|| few(more_files, free.files).map(|free| (format!("{more_files} more files"), files(free))))
        };
        let advice =
            "free some, keep fewer checkpoints (checkpoint.keep_last), or put the run on another disk (run.dir)";
        let message = match (next, all()) {
            (Some((needed, free)), _) => format!(
                "the next checkpoint needs {needed}, and {place} has {free}: it cannot be saved there; {advice}"
            ),
            (None, Some((needed, free))) => {
                format!(
                    "the whole run needs {needed} more, and {place} has {free}: later checkpoints will not fit; {advice}"
                )
            }
            (None, None) => return None,
        };
        Some(Warning { key: "run.dir", message })
    }
}

/// Bytes and files; `None` where the system does not tell.
#[derive(Clone, Copy)]
struct Room {
    bytes: Option<u64>,
    files: Option<u64>,
}

impl Room {
    /// With what a directory holds; a part that cannot be read does not count.
    fn with_all_in(mut self, dir: &Path) -> Self {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            self.files = self.files.map(|files| files + 1);
            if metadata.is_dir() {
                self = self.with_all_in(&entry.path());
            } else {
                self.bytes = self.bytes.map(|bytes| bytes + metadata.len());
            }
        }
        self
    }
}

/// The current directory has no name in a relative path.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The most checkpoints that exist at once: an old one is removed only after a newer one was verified.
fn checkpoints_at_once(plan: &TrainPlan) -> u64 {
    let (checkpoint, steps) = (&plan.config().checkpoint, plan.config().train.steps);
    let written = plan.checkpoint_cadence().count(steps).saturating_add(1);
    let kept_for_good = Cadence::new(checkpoint.keep_every).count(steps);
    written.min(kept_for_good.saturating_add(checkpoint.keep_last as u64).saturating_add(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Resolved;

    fn at_once(text: &str) -> u64 {
        let text = format!("{text}\n[data]\nsource = \"x\"\n[train]\nsteps = 100\nwarmup_steps = 10\n");
        let resolved = Resolved::from_layers(Path::new("my.toml"), &text, [], &[]).unwrap();
        checkpoints_at_once(&TrainPlan::new(&resolved).unwrap())
    }

    #[test]
    fn disk_holds_the_kept_checkpoints_and_one_more() {
        assert_eq!(at_once("[checkpoint]\nevery = 10\nkeep_last = 2"), 3);
        assert_eq!(at_once("[checkpoint]\nevery = 10\nkeep_last = 2\nkeep_every = 50"), 5);
        assert_eq!(at_once("[checkpoint]\nevery = 0"), 1);
    }

    #[test]
    fn a_disk_too_small_for_a_save_or_for_the_run_is_said_in_bytes_and_in_files() {
        const MIB: u64 = 1 << 20;
        let need = DiskNeed { checkpoint_bytes: 4 * MIB, run_bytes: 14 * MIB, checkpoint_files: 6, run_files: 40 };
        let says = |bytes: u64, files: Option<u64>, there: u64| {
            let (free, there) =
                (Room { bytes: Some(bytes * MIB), files }, Room { bytes: Some(there * MIB), files: Some(0) });
            need.compare(Path::new("disk"), free, there).map_or_else(String::new, |warning| warning.message)
        };
        let next = says(3, None, 0);
        assert!(next.starts_with("the next checkpoint needs 4.0 MiB, and disk has 3.0 MiB free"), "{next}");
        let run = says(6, None, 0);
        assert!(run.starts_with("the whole run needs 14 MiB more, and disk has 6.0 MiB free"), "{run}");
        assert_eq!(says(6, None, 9), "", "most of it is there already");
        let files = says(20, Some(8), 0);
        assert!(files.contains("needs 22 files, and disk has room for 8 more files"), "{files}");
        assert!(says(20, Some(30), 0).contains("needs 40 more files"), "{}", says(20, Some(30), 0));
        assert_eq!(says(20, Some(100), 0), "");
    }
}
