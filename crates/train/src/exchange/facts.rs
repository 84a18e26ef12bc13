//! The known facts about a model's training: the card is written from these alone.
//!
//! A diffusers folder describes a network, not its training. `ddpm.json` in a folder describes the training; an imported
//! checkpoint keeps it, so that a second export says the same.

use std::path::Path;

use ddpm_run::checkpoint::Checkpoint;
use ddpm_run::metrics::last_loss;
use ddpm_run::shell;
use ddpm_run::{RunPaths, RunRecord};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::known_data::KnownData;

/// The field of a checkpoint's state that holds an [`Imported`].
pub(crate) const IMPORTED: &str = "imported";

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The version of ddpm that trained it.
    pub program_version: String,
    /// Optimizer steps.
    pub step: u64,
    /// Images seen, each as often as it was.
    pub images: u64,
    /// Which weights these are.
    pub weights: String,
    /// The last logged training loss at that step.
    pub loss: Option<f64>,
    /// The variance head was left out.
    pub epsilon_only: bool,
    /// The command that started the run.
    #[serde(default)]
    pub command: Option<String>,
    /// What the training started from, if not random weights.
    pub fine_tuned_from: Option<String>,
    /// The names of its classes in the order of their labels, where they have names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// The configuration of the training, without names and places of this machine.
    pub config: TrainConfig,
}

/// What an import records about its folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// The folder, as it was named.
    pub source: String,
    /// The folder's facts, if it had any.
    pub facts: Option<Facts>,
}

impl Imported {
    /// The record in a checkpoint whose run began with an import.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        serde_json::from_value(checkpoint.state.extra.get(IMPORTED)?.clone()).ok()
    }
}

/// The names of the classes that the model in a checkpoint knows: those of its data, or, before the first step, of what was
/// imported. Older checkpoints do not remember them.
pub(crate) fn class_names(checkpoint: &Checkpoint) -> Option<Vec<String>> {
    match KnownData::of_checkpoint(checkpoint) {
        Some(data) => data.classes,
        None => Imported::of(checkpoint)?.facts?.classes,
    }
}

impl Facts {
    /// The facts of a checkpoint; none of an untrained import whose folder had none.
    pub(crate) fn of_checkpoint(checkpoint: &Checkpoint, config: &TrainConfig, weights: String) -> Option<Self> {
        let state = &checkpoint.state;
        let imported = Imported::of(checkpoint);
        if state.step == 0
            && let Some(imported) = imported
        {
            return imported.facts;
        }
        let mut config = config.clone();
        config.run.dir.clear();
        config.data.cache_dir.clear();
        Some(Self {
            program_version: state.program_version.clone(),
            step: state.step,
            images: state.images,
            weights,
            loss: None,
            epsilon_only: false,
            command: None,
            fine_tuned_from: imported.map(|imported| imported.source),
            classes: class_names(checkpoint),
            config,
        })
    }

    /// Adds facts from the run of the checkpoint at `origin`, if there is one: the command that started it, and the last loss
    /// that it logged up to the checkpoint.
    pub(crate) fn with_run(mut self, origin: &Path) -> Self {
        if let Some((run, step)) = RunPaths::of_checkpoint(origin)
            && step == self.step
        {
            self.loss = last_loss(&run.metrics(), step).or(self.loss);
            let record = RunRecord::read(&run.record()).ok().flatten();
            self.command = record.map(|record| shell::command(&record.command)).or(self.command);
        }
        self
    }
}
