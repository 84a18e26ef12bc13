//! What a run is asked for beside its plan, and what comes of it.

use std::path::PathBuf;
use std::time::Duration;

use super::accept::Accept;
use super::ranks::Launch;
use super::resume::Resume;
use super::stop::{Requests, StopReason};
use crate::config::TrainPlan;

/// The options of a run beside its plan.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Where to resume from.
    pub resume: Resume,
    /// End at this step.
    pub max_steps: Option<u64>,
    /// Save and stop before this many hours have passed.
    pub max_hours: Option<f64>,
    /// The command, for `run.json`.
    pub command: Vec<String>,
    /// Requests that may come while it runs.
    pub requests: Requests,
    /// Called when the run stalls, if the configuration asks for an end.
    pub on_stall: Option<fn()>,
    /// What may differ from the checkpoint, from there on.
    pub accept: Accept,
    /// Which of several ranks this is; `None` if it is alone.
    pub launch: Option<Launch>,
    /// For tests of divergence: see [`Trainer::poison`](super::trainer::Trainer::poison).
    pub poisoned: Vec<u64>,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Steps done in all.
    pub step: u64,
    /// Images seen in all.
    pub images: u64,
    /// The time that this process ran.
    pub elapsed: Duration,
    /// Why it stopped early, if so.
    pub stopped: Option<StopReason>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The newest picture.
    pub samples: Option<PathBuf>,
}

impl RunOptions {
    /// The step that this process ends with at the latest.
    pub(super) fn last_step(&self, plan: &TrainPlan) -> u64 {
        self.max_steps.unwrap_or(u64::MAX).min(plan.config().train.steps)
    }
}
