//! Where a run starts: from the beginning, or from a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use ddpm_data::Source;
use ddpm_run::checkpoint::{Checkpoint, list, newest_good};
use ddpm_run::{ChangedData, RunPaths};

use super::accept::{Accept, Continuation, go_on_from, is_untrained};
use super::means::Means;
use super::state::rollbacks_before;
use super::trainer::Trainer;
use crate::config::{Change, TrainPlan};
use crate::error::Error;
use crate::exchange::class_names;
use crate::known_data::KnownData;

/// Where a run resumes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// The newest good checkpoint of the run directory, if there is one.
    #[default]
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

/// Where a run begins, for the first time or again.
#[derive(Debug)]
pub(super) struct Beginning {
    /// Its plan from here on.
    pub(super) plan: TrainPlan,
    /// What it goes on from; `None` for the beginning.
    pub(super) checkpoint: Option<Checkpoint>,
    /// Changes of the configuration that are accepted here.
    pub(super) accepted: Vec<Change>,
    /// The data, if it is other data than the checkpoint's.
    pub(super) changed_data: Option<ChangedData>,
    /// How often the run has gone back after a divergence.
    pub(super) rollbacks: u64,
    /// Why it goes back to here, if it does.
    pub(super) reason: Option<String>,
}

impl Beginning {
    /// At this checkpoint, with `plan` and this data.
    ///
    /// # Errors
    /// Other settings or other data than the checkpoint's, that are not accepted.
    pub(super) fn at(
        checkpoint: Option<Checkpoint>,
        plan: &TrainPlan,
        data: &KnownData,
        accept: &Accept,
    ) -> Result<Self, Error> {
        let Some(checkpoint) = checkpoint else {
            return Ok(Self::of(plan.clone(), None, 0));
        };
        let Continuation { plan, accepted, changed_data } = go_on_from(plan, &checkpoint, data, accept)?;
        let rollbacks = rollbacks_before(&checkpoint);
        Ok(Self { accepted, changed_data, ..Self::of(plan, Some(checkpoint), rollbacks) })
    }

    /// With `plan` at this checkpoint, without any change.
    pub(super) fn of(plan: TrainPlan, checkpoint: Option<Checkpoint>, rollbacks: u64) -> Self {
        Self { plan, checkpoint, accepted: Vec::new(), changed_data: None, rollbacks, reason: None }
    }

    /// Refuses changes where no step would be made with them: the configuration would say what the weights have not learnt with.
    pub(super) fn require_steps_to_accept(&self, last: u64) -> Result<(), Error> {
        match self.checkpoint.as_ref().map(|checkpoint| checkpoint.state.step) {
            Some(step) if step >= last && !self.accepted.is_empty() => {
                Err(Error::NothingLeft { step, changes: self.accepted() })
            }
            _ => Ok(()),
        }
    }

    /// The changes of the configuration that are accepted here, for a person.
    pub(super) fn accepted(&self) -> Vec<String> {
        self.accepted.iter().map(|Change { key, old, new }| format!("{key}: {old} -> {new}")).collect()
    }

    /// The trainer that begins here, and the means since its last logged step.
    pub(super) fn trainer(&self, device: &Device) -> Result<(Trainer, Means), Error> {
        let (trainer, mut means) = match &self.checkpoint {
            Some(checkpoint) => Trainer::restore(&self.plan, device, checkpoint)?,
            None => (Trainer::new(&self.plan, device)?, Means::default()),
        };
        means.accept(self.accepted());
        Ok((trainer, means))
    }
}

/// The checkpoint to resume from, if any, and why newer ones were skipped.
///
/// # Errors
/// There are checkpoints but no good one, or the requested start would overwrite some.
pub(super) fn choose_checkpoint(run: &RunPaths, resume: &Resume) -> Result<(Option<Checkpoint>, Vec<String>), Error> {
    let dir = run.checkpoints();
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
            Some(newest) => Err(occupied(run, newest, None)),
        },
        Resume::From(path) => {
            let checkpoint = open_named(path)?;
            match newest.filter(|&step| step > checkpoint.state.step) {
                None => Ok((Some(checkpoint), Vec::new())),
                Some(newest) => Err(occupied(run, newest, Some(checkpoint.state.step))),
            }
        }
    }
}

/// The step that a run with `plan` and this data would go on from; `None` if it would begin anew. Changes nothing.
///
/// # Errors
/// Those with which [`train`](super::run::train) would refuse to start.
pub fn would_go_on_from(plan: &TrainPlan, data: &KnownData, accept: &Accept) -> Result<Option<u64>, Error> {
    accept.check()?;
    refuse_to_leave_an_import(plan, &Resume::Auto)?;
    let (checkpoint, _) = choose_checkpoint(&RunPaths::new(plan.run_dir()), &Resume::Auto)?;
    let beginning = Beginning::at(checkpoint, plan, data, accept)?;
    beginning.require_steps_to_accept(plan.config().train.steps)?;
    Ok(beginning.checkpoint.map(|checkpoint| checkpoint.state.step))
}

/// The checkpoint of a run at this step.
///
/// # Errors
/// There is none, or it is damaged.
pub(super) fn of_step(run: &RunPaths, step: u64) -> Result<Checkpoint, Error> {
    let there = list(&run.checkpoints())?;
    match there.iter().find(|(found, _)| *found == step) {
        Some((_, path)) => Ok(Checkpoint::open(path)?),
        None => {
            let (run, steps) = (run.root().to_owned(), there.into_iter().map(|(step, _)| step).collect());
            Err(Error::NoSuchStep { run, step, steps })
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

fn occupied(run: &RunPaths, newest: u64, from: Option<u64>) -> Error {
    Error::Occupied { run_dir: run.root().to_owned(), newest, from }
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
