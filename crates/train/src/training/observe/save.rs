//! The checkpoints of a run: a copy is taken between two steps, and written beside the next ones.

use std::time::Duration;

use ddpm_run::checkpoint::{CheckpointError, SaveOutcome};

use super::Observers;
use crate::error::{Error, Kind, in_one_line};
use crate::training::engines::Engines;
use crate::training::state::Position;
use crate::training::trainer::Trainer;

/// How long a step waits for the save before, when the next one is due.
const PATIENCE: Duration = Duration::from_secs(2);

impl Observers<'_> {
    /// Whether the save before has ended. A slow disk delays saves, and steps only by [`PATIENCE`]: the save that is due is then
    /// made as soon as the disk is ready.
    pub(super) fn disk_is_free(&self, step: u64) -> bool {
        let patience = if self.save_waits { Duration::ZERO } else { PATIENCE };
        let free = self.writer.is_free_within(patience);
        if !free && !self.save_waits {
            tracing::warn!(
                "the disk is slow: at step {step} the checkpoint before is still being written; the next one waits for it, and \
                 training goes on"
            );
        }
        free
    }

    /// Starts writing a checkpoint; with `checkpoint.async = false`, also waits for it.
    pub(super) fn save(&mut self, trainer: &Trainer) -> Result<(), Error> {
        if let Some(earlier) = self.submit(trainer)? {
            self.saved(earlier);
        }
        if !self.setup.plan.config().checkpoint.r#async {
            self.finish_save();
        }
        Ok(())
    }

    /// Starts writing a checkpoint; returns the result of the save before, if it was not read yet.
    pub(super) fn submit(&mut self, trainer: &Trainer) -> Result<Option<Result<SaveOutcome, CheckpointError>>, Error> {
        let span = tracing::debug_span!("snapshot", step = trainer.steps_taken()).entered();
        self.look_after_run_dir()?;
        let sync = self.reporter.syncing();
        if let Some(Err(error)) = self.engines.as_mut().map(Engines::keep) {
            tracing::warn!("engines.json was not written: {error}");
        }
        let copy = trainer.copy(&Position {
            plan: self.setup.plan,
            data: self.setup.data,
            means: &self.means,
            rollbacks: self.setup.rollbacks,
        })?;
        span.exit();
        Ok(self.writer.submit(trainer.steps_taken(), || {
            sync();
            copy.into_snapshot().map_err(|error| in_one_line(&error))
        }))
    }

    /// Makes the run's directory again if it is gone, with all that was saved there.
    ///
    /// # Errors
    /// The run belongs to another process now. Any other failure is also that of the save, which is tried again.
    pub(super) fn look_after_run_dir(&mut self) -> Result<(), Error> {
        match self.setup.run_dir.make_again_if_gone() {
            Ok(true) => self.saved = None,
            Ok(false) => {}
            Err(error) if error.kind() == Kind::Held => return Err(error.into()),
            Err(error) => tracing::warn!("{}", in_one_line(&error)),
        }
        Ok(())
    }

    /// Records the end of a save; a failed one causes a warning, and the next checkpoint is the next attempt.
    pub(super) fn saved(&mut self, result: Result<SaveOutcome, CheckpointError>) {
        match result {
            Ok(outcome) => {
                self.longest.save = self.longest.save.max(outcome.took);
                self.setup.exporter.saved(outcome.saved.step, outcome.took);
                let (path, seconds) = (outcome.saved.path.display(), outcome.took.as_secs_f64());
                tracing::debug!(checkpoint = %path, seconds, "checkpoint {path}");
                self.uploader.iter_mut().for_each(|uploader| uploader.saved(outcome.saved.step));
                self.saved = Some((outcome.saved.step, outcome.saved.path));
                if let Err(error) = outcome.removed {
                    tracing::warn!("an older checkpoint was not removed: {}", in_one_line(&error));
                }
            }
            Err(error) => {
                let why = in_one_line(&error);
                tracing::warn!(
                    help = error.help(),
                    "the checkpoint was not written: {why}; training goes on and tries again"
                );
            }
        }
    }

    /// Waits for the save that is running, if one is.
    pub(in crate::training) fn finish_save(&mut self) {
        if let Some(result) = self.writer.finish() {
            self.saved(result);
        }
    }

    /// The end without a checkpoint.
    pub(super) fn unsaved(&self, step: u64, cause: CheckpointError) -> Error {
        // One whose directory is gone is nothing to go on from.
        let saved = self.saved.as_ref().filter(|(_, path)| path.exists());
        Error::Unsaved { step, saved: saved.map(|(saved, _)| *saved), cause }
    }
}
