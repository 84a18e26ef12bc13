//! `ddpm fork`: a branch of a run, from one of its checkpoints on, in a directory of its own.
//!
//! It has the checkpoint, the configuration and the metrics up to there, so that it goes on as the run itself would, and can be
//! given another setting with `--accept`. The run is only read.

use std::fs;
use std::path::{Path, PathBuf};

use ddpm_run::checkpoint::{Checkpoint, newest_good, save};
use ddpm_run::jsonl::truncate_after;
use ddpm_run::{RunDir, RunPaths, RunRecord, StartFacts};

use super::resume::of_step;
use crate::config::Resolved;
use crate::error::Error;
use crate::exchange::refuse_taken;
use crate::weights::checkpoint_config;

/// Makes the run directory `to`, a branch of the run in `from` at the checkpoint of step `at`, or at the newest one; returns the
/// new checkpoint and its step.
///
/// # Errors
/// There is no such checkpoint, or it is damaged; `to` is taken or cannot be written.
pub fn fork(from: &Path, at: Option<u64>, to: &Path, command: Vec<String>) -> Result<(PathBuf, u64), Error> {
    refuse_taken(to)?;
    if !RunPaths::new(from).checkpoints().is_dir() {
        let what = if from.is_dir() { "not a run directory" } else { "no such directory" };
        return Err(Error::NotAModel { path: from.to_owned(), what: what.to_owned() });
    }
    let run = RunPaths::new(from);
    let checkpoint = choose(&run, at)?;
    let step = checkpoint.state.step;
    let mut config = checkpoint_config(&checkpoint)?;
    config.run.name = to.file_name().map_or_else(|| "fork".into(), |name| name.to_string_lossy().into_owned());
    config.run.dir = to.display().to_string();
    let snapshot = checkpoint.snapshot()?;

    let branch = RunDir::open(to)?;
    let saved = save(&branch.paths().checkpoints(), &snapshot)?;
    if run.metrics().exists() {
        let copied = fs::copy(run.metrics(), branch.paths().metrics());
        copied.map_err(Error::caused(format!("{} cannot be copied", run.metrics().display())))?;
        truncate_after(&branch.paths().metrics(), step)?;
    }
    let id = RunRecord::read(&run.record())?.map_or_else(|| "unknown".to_owned(), |record| record.id);
    branch.record_start(StartFacts {
        step,
        device: "none".to_owned(),
        command,
        accepted: Vec::new(),
        changed_data: None,
        reason: Some(format!("a branch of {} (run {id}) from step {step} on", from.display())),
    })?;
    // Last: without a configuration a run that is not whole cannot be trained.
    branch.write_config(&Resolved::from_config(&branch.paths().config(), config).to_toml())?;
    Ok((saved.path, step))
}

fn choose(run: &RunPaths, at: Option<u64>) -> Result<Checkpoint, Error> {
    let dir = run.checkpoints();
    if let Some(step) = at {
        return of_step(run, step);
    }
    let (checkpoint, skipped) = newest_good(&dir)?;
    let skipped = skipped.iter().map(ToString::to_string).collect();
    checkpoint.ok_or(Error::NoCheckpoint { dir, skipped })
}
