//! Where a run starts: from the beginning, or from a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ddpm_data::Source;
use ddpm_run::checkpoint::{Checkpoint, list, newest_good};
use ddpm_run::{ChangedData, RunDir, RunPaths};

use super::means::Means;
use super::setup::RunSetup;
use super::state::{has_other_data, is_untrained};
use super::trainer::Trainer;
use crate::config::TrainPlan;
use crate::error::Error;
use crate::exchange::class_names;
use crate::known_data::KnownData;

/// Where a run resumes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest good checkpoint of the run directory, if there is one.
    Auto,
    /// None: start from the beginning.
    Never,
    /// This checkpoint.
    From(PathBuf),
}

impl From<&str> for Resume {
    fn from(text: &str) -> Self {
        match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::From(path.into()),
        }
    }
}

/// The checkpoint to resume from, if any, and why newer ones were skipped.
///
/// # Errors
/// There are checkpoints but no good one, or the requested start would overwrite some.
pub(super) fn choose_checkpoint(run_dir: &RunDir, resume: &Resume) -> Result<(Option<Checkpoint>, Vec<String>), Error> {
    let dir = run_dir.paths().checkpoints();
    let newest = list(&dir)?.first().map(|(step, _)| *step);
    match resume {
        Resume::Auto => {
            let (checkpoint, skipped) = newest_good(&dir)?;
            let skipped: Vec<String> = skipped.iter().map(|skipped| format!("checkpoint {skipped}")).collect();
            if checkpoint.is_none() && !skipped.is_empty() {
                return Err(Error::AllDamaged { dir, skipped });
            }
            Ok((checkpoint, skipped))
        }
        Resume::Never => match newest {
            None => Ok((None, Vec::new())),
            Some(newest) => Err(occupied(run_dir, newest, None)),
        },
        Resume::From(path) => {
            let checkpoint = open_named(path)?;
            match newest.filter(|&step| step > checkpoint.state.step) {
                None => Ok((Some(checkpoint), Vec::new())),
                Some(newest) => Err(occupied(run_dir, newest, Some(checkpoint.state.step))),
            }
        }
    }
}

/// Refuses to start from the beginning with a configuration that lies beside imported weights. A user who trains it means these
/// weights, but a moved directory or another `--run-dir` would silently leave them behind.
///
/// # Errors
/// There is such an import.
pub(super) fn refuse_to_leave_an_import(plan: &TrainPlan, resume: &Resume) -> Result<(), Error> {
    let beside = plan.path().parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A directory that cannot be listed is reported when it is opened.
    let newest = |root: &Path| list(&RunPaths::new(root).checkpoints()).ok()?.first().map(|(step, _)| *step);
    let run_dir = plan.run_dir();
    let same = beside.canonicalize().ok().is_some_and(|beside| run_dir.canonicalize().ok() == Some(beside));
    if same || *resume != Resume::Auto || newest(beside) != Some(0) || newest(&run_dir).is_some() {
        return Ok(());
    }
    Err(Error::ImportLeft { config: plan.path().to_owned(), beside: beside.to_owned(), run_dir })
}

/// The checkpoint of `--resume PATH`. A path that is no checkpoint and a damaged checkpoint are different errors.
fn open_named(path: &Path) -> Result<Checkpoint, Error> {
    let not_one = |what| Error::NotACheckpoint { path: path.to_owned(), what };
    if !path.is_dir() {
        return Err(not_one("no such directory"));
    }
    if RunPaths::new(path).checkpoints().is_dir() {
        return Err(not_one("a run directory, not one of its checkpoints"));
    }
    Ok(Checkpoint::open(path)?)
}

fn occupied(run_dir: &RunDir, newest: u64, from: Option<u64>) -> Error {
    Error::Occupied { run_dir: run_dir.paths().root().to_owned(), newest, from }
}

/// A trainer, new or from `checkpoint`, and the means since its last logged step.
pub(super) fn start_or_go_on(
    setup: &RunSetup<'_>,
    checkpoint: Option<&Checkpoint>,
    accept_data: bool,
) -> Result<(Trainer, Means), Error> {
    match checkpoint {
        Some(checkpoint) => Trainer::restore(setup.plan, setup.device, checkpoint, &setup.data, accept_data),
        None => Ok((Trainer::new(setup.plan, setup.device)?, Means::default())),
    }
}

/// `source` with the labels of the model in `checkpoint`, by the names of its classes. With `accept_data` new classes take rows
/// that have no name yet, and an import that no step has changed takes the classes of its data.
///
/// # Errors
/// The data has a class that the model does not know.
pub(super) fn with_the_models_classes(
    plan: &TrainPlan,
    source: Arc<dyn Source>,
    checkpoint: Option<&Checkpoint>,
    accept_data: bool,
) -> Result<Arc<dyn Source>, Error> {
    let known = checkpoint.and_then(|checkpoint| Some((checkpoint, class_names(checkpoint)?)));
    let (Some(rows), Some((checkpoint, mut names))) = (plan.config().data_classes(), known) else { return Ok(source) };
    if accept_data {
        let there = source.class_names().unwrap_or_default();
        let new: Vec<String> = there.iter().filter(|name| !names.contains(name)).cloned().collect();
        if is_untrained(checkpoint) && !new.is_empty() {
            return Ok(source);
        }
        if names.len() + new.len() <= rows {
            names.extend(new);
        }
    }
    Ok(ddpm_data::with_classes(source, &names)?)
}

/// The change of the data since `checkpoint`, if it is other data.
pub(super) fn changed_data(setup: &RunSetup<'_>, checkpoint: Option<&Checkpoint>) -> Option<ChangedData> {
    let checkpoint = checkpoint.filter(|checkpoint| has_other_data(checkpoint, &setup.data))?;
    Some(ChangedData {
        fingerprint_then: checkpoint.state.data_fingerprint.clone(),
        images_then: KnownData::of_checkpoint(checkpoint).map(|then| then.images),
        fingerprint: setup.data.fingerprint.clone(),
        images: setup.data.images,
    })
}
