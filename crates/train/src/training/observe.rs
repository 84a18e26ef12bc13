//! The observers of a run: metrics, checkpoints, pictures, uploads. The loop knows them as [`Observe`].

mod clock;
mod draw;
mod save;

use std::path::PathBuf;
use std::time::Duration;

use ddpm_data::{Flow, Unreadable};
use ddpm_run::checkpoint::{Retention, Writer};
use ddpm_run::metrics::Timing;
use ddpm_run::{RunError, RunPhase, StatusFile};
use tracing::Span;

use self::clock::Clock;
use super::divergence::{Alarm, History};
use super::engines::Engines;
use super::events::PROGRESS;
use super::loop_of_steps::Observe;
use super::means::Means;
use super::outcome::StepOutcome;
use super::quarantine::Quarantine;
use super::setup::RunSetup;
use super::stop::{StopReason, StopWatch};
use super::trainer::Trainer;
use super::upload::Uploader;
use super::watchdog::{Activity, Watchdog};
use crate::config::Cadence;
use crate::error::{Error, in_one_line};
use crate::report::Reporter;

/// See the module.
pub(super) struct Observers<'a> {
    setup: &'a RunSetup<'a>,
    stop: &'a StopWatch,
    /// The run's span, in which the number of finished steps is recorded.
    run: Span,
    reporter: Reporter,
    writer: Writer,
    means: Means,
    /// The outcome of the newest finished step.
    last: Option<StepOutcome>,
    clock: Clock,
    saved: Saved,
    longest: Longest,
    uploader: Option<Uploader>,
    status: StatusFile,
    /// Whether a warning about a status that cannot be written was already given.
    status_failed: bool,
    engines: Option<Engines>,
    quarantine: Quarantine,
    watchdog: Watchdog,
    /// A save is due, and waits for a step that is not bad or for the save before.
    save_waits: bool,
    /// The newest steps, for a report on a divergence.
    history: History,
    alarm: Alarm,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All its steps are done.
    Reached,
    /// It was stopped early.
    Stopped(StopReason),
    /// It failed.
    Failed,
}

/// The longest durations so far, by kind: these must still fit in before a time limit.
#[derive(Clone, Copy, Debug, Default)]
struct Longest {
    step: Duration,
    save: Duration,
    picture: Duration,
}

/// The newest good checkpoint: its step and its place.
type Saved = Option<(u64, PathBuf)>;

/// What a run leaves when it ends.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// The newest good checkpoint.
    pub(super) checkpoint: Option<PathBuf>,
    /// The picture of the last step.
    pub(super) samples: Option<PathBuf>,
    /// The last picture was given up because of a signal or the time limit; the next start draws it.
    pub(super) interrupted: bool,
}

impl Observe for Observers<'_> {
    /// One more step, two saves and the last picture, at their longest.
    fn time_to_stop(&self) -> Duration {
        let Longest { step, save, picture } = self.longest;
        step + 2 * save + picture + Duration::from_secs(5)
    }

    fn begins(&mut self, activity: Activity) {
        self.watchdog.enter(activity);
    }

    fn waited(&mut self, wait: Duration, flow: Flow) {
        self.clock.waited(wait, flow);
    }

    fn met(&mut self, step: u64, unreadable: Vec<Unreadable>) {
        self.quarantine.add(step, unreadable);
    }

    /// Outcomes are read only where they are due, so that a GPU never waits for the host.
    fn after_step(&mut self, trainer: &mut Trainer) -> Result<(), Error> {
        let (step, plan) = (trainer.steps_taken(), self.setup.plan);
        let log = plan.log_cadence().is_due(step);
        let asked = self.stop.takes_save_request();
        let due = asked || self.save_waits || plan.checkpoint_cadence().is_due(step);
        let free = !due || self.disk_is_free(step);
        let wanted = due && free;
        let draw = plan.sample_cadence().is_due(step);
        self.take_outcomes(trainer, log || wanted || draw)?;
        // Weights that only lead to bad steps would push good ones out of the checkpoints that are kept.
        let save = wanted && !self.last.as_ref().is_some_and(StepOutcome::is_bad);
        self.save_waits = due && !save;
        trainer.take_notices().iter().for_each(|notice| tracing::warn!("{notice}"));
        self.run.record("step", step);
        let written = self.status.step(step);
        self.check_status(written);
        if log && let Some(outcome) = &self.last {
            let images = plan.images(step);
            let timing = self.clock.timing(images, self.setup.sensors.as_deref());
            let mut record = self.means.record(step, images, outcome, timing);
            record.params_hash = trainer.params_hash(step).map(str::to_owned);
            let Timing { images_per_s, data_wait, .. } = record.timing;
            let waits_for = record.timing.waits_for();
            tracing::info!(target: PROGRESS, step, loss = record.loss, images_per_s, data_wait, waits_for);
            self.reporter.metrics(&record);
            self.setup.exporter.logged(&record);
            self.status.speed(record.timing.images_per_s);
            self.clock.logged(images, &record.timing);
        }
        if let Some(result) = self.writer.poll() {
            self.saved(result);
        }
        self.uploader.iter_mut().for_each(Uploader::look);
        if save {
            self.enter(RunPhase::Saving);
            self.save(trainer)?;
        }
        if draw {
            self.enter(RunPhase::Sampling);
            self.draw(trainer)?;
        }
        if save || draw {
            self.enter(RunPhase::Training);
        }
        Ok(())
    }
}

impl<'a> Observers<'a> {
    /// `resumed` is the step and the path of the checkpoint that the run resumed from.
    ///
    /// # Errors
    /// The GPU does not answer.
    pub(super) fn new(
        setup: &'a RunSetup<'a>,
        stop: &'a StopWatch,
        run: Span,
        reporter: Reporter,
        means: Means,
        resumed: Saved,
        uploader: Option<Uploader>,
    ) -> Result<Self, Error> {
        let config = &setup.plan.config().checkpoint;
        let retention = Retention { keep_last: config.keep_last, keep_every: config.keep_every };
        let writer = Writer::new(setup.run_dir.paths().checkpoints(), retention);
        let first = resumed.as_ref().map_or(0, |(step, _)| *step);
        let clock = Clock::start(setup.plan.images(first));
        let (saved, longest) = (resumed, Longest::default());
        let status = StatusFile::new(setup.run_dir.paths().status(), first, setup.plan.config().train.steps);
        let engines = Engines::of_run(setup.run_dir.paths(), setup.device)?;
        Ok(Self {
            setup,
            stop,
            run,
            reporter,
            writer,
            means,
            last: None,
            clock,
            saved,
            longest,
            uploader,
            status,
            status_failed: false,
            engines,
            quarantine: Quarantine::of_run(setup.run_dir.paths()),
            watchdog: setup.watchdog.clone(),
            save_waits: false,
            history: History::default(),
            alarm: Alarm::new(setup.plan.config().train.max_bad_steps),
        })
    }

    /// Draws the picture that was due at the checkpoint the run resumes from, if a kill prevented it.
    pub(super) fn catch_up(&mut self, trainer: &mut Trainer) -> Result<(), Error> {
        let (step, paths) = (trainer.steps_taken(), self.setup.run_dir.paths());
        let here = self.saved.as_ref().is_some_and(|(_, path)| path.starts_with(paths.checkpoints()));
        if here && self.setup.plan.sample_cadence().is_due(step) && !paths.sample(step).exists() {
            self.draw(trainer)?;
        }
        Ok(())
    }

    /// Records that another phase of the run begins.
    pub(super) fn enter(&mut self, phase: RunPhase) {
        self.watchdog.enter(match phase {
            RunPhase::Saving => Activity::Save,
            RunPhase::Sampling => Activity::Sample,
            _ => Activity::Step,
        });
        let written = self.status.enter(phase);
        self.check_status(written);
    }

    /// Records how the run ended; `error` says why it failed.
    pub(super) fn ended(&mut self, phase: RunPhase, error: Option<&Error>) {
        let written = self.status.end(phase, error.map(|error| in_one_line(error)));
        self.check_status(written);
    }

    /// A status that cannot be written causes one warning and does not end the run.
    fn check_status(&mut self, written: Result<(), RunError>) {
        self.setup.exporter.status(self.status.status());
        if let Err(error) = written
            && !std::mem::replace(&mut self.status_failed, true)
        {
            tracing::warn!("{}", in_one_line(&error));
        }
    }

    /// Adds the outcomes of finished steps; with `all`, also of those that are still being computed.
    fn take_outcomes(&mut self, trainer: &mut Trainer, all: bool) -> Result<(), Error> {
        for outcome in trainer.outcomes(all)? {
            self.means.add(&outcome);
            self.history.add(&outcome);
            self.alarm.tell(&outcome);
            self.longest.step = self.longest.step.max(outcome.phases.total());
            self.last = Some(outcome);
        }
        Ok(())
    }

    /// The newest steps.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// Ends the run: a last checkpoint if the last step has none, a last picture, and an upload of a run that has reached its
    /// end.
    ///
    /// # Errors
    /// The last checkpoint could not be written: the newest steps are lost, and the caller must report it.
    pub(super) fn finish(&mut self, trainer: &mut Trainer, end: End) -> Result<Ending, Error> {
        self.take_outcomes(trainer, true)?;
        self.watchdog.enter(Activity::Save);
        self.finish_save();
        self.look_after_run_dir()?;
        let step = trainer.steps_taken();
        // Before the first step there is nothing to save; a checkpoint of step 0 is an import.
        if step > 0 && self.saved.as_ref().is_none_or(|(saved, _)| *saved != step) {
            // No save is running any more, so a result here already belongs to this save: it could not even begin.
            match self.submit(trainer)?.or_else(|| self.writer.finish()) {
                Some(Err(error)) => return Err(self.unsaved(step, error)),
                Some(ok) => self.saved(ok),
                None => {}
            }
        }
        if end == End::Reached {
            self.uploader.iter_mut().for_each(|uploader| uploader.push_last(step));
        }
        let picture = matches!(end, End::Reached | End::Stopped(StopReason::TimeLimit));
        // A finished run that is started again already has its last picture, and would draw the same one.
        let last = self.setup.run_dir.paths().sample(step);
        let wanted = picture && !last.exists() && self.setup.plan.sample_cadence() != Cadence::NEVER;
        self.watchdog.enter(Activity::Sample);
        let interrupted = wanted && !self.draw(trainer)?;
        self.watchdog.rest();
        if let Some(uploader) = self.uploader.take() {
            let stop = self.stop;
            uploader.finish(&|| end != End::Reached || stop.is_over());
        }
        self.reporter.syncing()();
        let samples = Some(last).filter(|path| path.exists());
        Ok(Ending { checkpoint: self.saved.take().map(|(_, path)| path), samples, interrupted })
    }
}
