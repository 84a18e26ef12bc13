//! What is known of a model's training: the card is written from this alone.
//!
//! A diffusers folder says what a network is, not how it came to be. `ddpm.json` says that, in a folder; an imported
//! checkpoint keeps it, so that whatever is exported again tells the same.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::TrainConfig;
use ddpm_run::checkpoint::{Checkpoint, parse_dir_name};
use ddpm_run::shell;
use ddpm_run::{RunPaths, RunRecord};

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
    /// The command that began the run.
    #[serde(default)]
    pub command: Option<String>,
    /// What the training started from, if not from random weights.
    pub fine_tuned_from: Option<String>,
    /// The configuration of the training, without names and places of this machine.
    pub config: TrainConfig,
}

/// What an import remembers of the folder it came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// The folder, as it was named.
    pub source: String,
    /// Its facts, if it had any.
    pub facts: Option<Facts>,
}

impl Imported {
    /// That of a checkpoint whose run began with an import.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        serde_json::from_value(checkpoint.state.extra.get(IMPORTED)?.clone()).ok()
    }
}

impl Facts {
    /// Of a checkpoint; none of an import that came without and has not been trained.
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
            config,
        })
    }

    /// Adds what the run of the checkpoint at `origin` knows besides, where there is one: the command that began it, and the
    /// last loss that it logged up to the checkpoint.
    pub(crate) fn with_run(mut self, origin: &Path) -> Self {
        let step = origin.file_name().and_then(|name| name.to_str()).and_then(parse_dir_name);
        let run = origin.parent().and_then(Path::parent);
        if let (Some(run), true) = (run, step == Some(self.step)) {
            let metrics = fs::read_to_string(RunPaths::new(run).metrics()).unwrap_or_default();
            self.loss = last_loss(&metrics, self.step).or(self.loss);
            let record = RunRecord::read(&RunPaths::new(run).record()).ok().flatten();
            self.command = record.map(|record| shell::command(&record.command)).or(self.command);
        }
        self
    }
}

fn last_loss(metrics: &str, step: u64) -> Option<f64> {
    let records = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let until = records.take_while(|record| record["step"].as_u64().is_some_and(|logged| logged <= step));
    until.last()?["loss"].as_f64()
}

#[cfg(test)]
mod tests {
    use super::last_loss;

    #[test]
    fn the_loss_is_the_last_one_logged_up_to_the_checkpoint() {
        let metrics = "{\"step\":1,\"loss\":0.5}\n{\"step\":3,\"loss\":0.25}\n{\"step\":9,\"loss\":0.1}\n{\"st";
        assert_eq!(last_loss(metrics, 8), Some(0.25));
        assert_eq!(last_loss(metrics, 9), Some(0.1));
        assert_eq!(last_loss(metrics, 0), None);
        assert_eq!(last_loss("", 5), None);
    }
}
