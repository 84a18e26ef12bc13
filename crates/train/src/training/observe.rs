//! What watches a run: metrics, checkpoints, pictures. The loop calls [`Observers::after_step`] and knows no more.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::context::{RunContext, sampler_config};
use super::pictures::{Painter, Request};
use super::state::Position;
use super::step::{StepOutcome, Trainer};
use super::window::Window;
use crate::checkpoint::{CheckpointError, Outcome, Retention, Writer};
use crate::config::Cadence;
use crate::error::{ExitCode, Failure};
use crate::memory;
use crate::report::pictures::{Layout, encode, grid};
use crate::report::{Reporter, Timing};
use crate::training::model::data_classes;

/// See the module.
pub(super) struct Observers<'a> {
    context: &'a RunContext<'a>,
    pub(super) reporter: Reporter,
    writer: Writer,
    window: Window,
    clock: Clock,
    saved: Saved,
    last_picture: Option<u64>,
}

/// What is known of the saves so far.
#[derive(Clone, Debug)]
struct Saved {
    /// The newest good checkpoint: its step and its place.
    newest: Option<(u64, PathBuf)>,
    longest: Duration,
}

/// What is there when a run has ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// The newest good checkpoint.
    pub(super) checkpoint: Option<PathBuf>,
    /// The newest picture of this process.
    pub(super) samples: Option<PathBuf>,
}

/// Time and data wait since the last logged step.
struct Clock {
    since: Instant,
    first_image: u64,
    data_wait: Duration,
}

impl Clock {
    fn start(images: u64) -> Self {
        Self { since: Instant::now(), first_image: images, data_wait: Duration::ZERO }
    }

    fn timing(&self, images: u64) -> Timing {
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        Timing {
            images_per_s: (images - self.first_image) as f64 / elapsed,
            data_wait: self.data_wait.as_secs_f64() / elapsed,
            memory_bytes: memory::resident(),
        }
    }
}

impl<'a> Observers<'a> {
    /// `resumed` is the step and the place of the checkpoint that the run went on from.
    pub(super) fn new(
        context: &'a RunContext<'a>,
        reporter: Reporter,
        window: Window,
        resumed: Option<(u64, PathBuf)>,
    ) -> Self {
        let config = &context.plan.config().checkpoint;
        let retention = Retention { keep_last: config.keep_last, keep_every: config.keep_every };
        let writer = Writer::new(context.run_dir.paths().checkpoints(), retention);
        let clock = Clock::start(context.images(resumed.as_ref().map_or(0, |(step, _)| *step)));
        let saved = Saved { newest: resumed, longest: Duration::ZERO };
        Self { context, reporter, writer, window, clock, saved, last_picture: None }
    }

    /// How long saving and the last picture may take.
    pub(super) fn time_to_stop(&self) -> Duration {
        2 * self.saved.longest + Duration::from_secs(5)
    }

    /// The loop waited for data.
    pub(super) fn waited(&mut self, wait: Duration) {
        self.clock.data_wait += wait;
    }

    /// A step was made; `trainer` has taken it already.
    pub(super) fn after_step(&mut self, trainer: &Trainer, outcome: &StepOutcome) -> Result<(), Failure> {
        let (step, plan) = (trainer.steps_taken(), self.context.plan);
        self.window.add(outcome);
        self.reporter.step(step);
        if plan.log_cadence().is_due(step) {
            let images = self.context.images(step);
            let record = self.window.record(step, images, outcome, self.clock.timing(images));
            self.reporter.metrics(&record);
            self.clock = Clock::start(images);
        }
        if let Some(result) = self.writer.poll() {
            self.saved(result);
        }
        if plan.checkpoint_cadence().is_due(step) {
            self.save(trainer)?;
        }
        if plan.sample_cadence().is_due(step) {
            self.draw(trainer)?;
        }
        Ok(())
    }

    /// Starts writing a checkpoint; with `checkpoint.async = false`, also waits for it.
    fn save(&mut self, trainer: &Trainer) -> Result<(), Failure> {
        self.reporter.sync();
        let snapshot = trainer.snapshot(&Position {
            plan: self.context.plan,
            data_fingerprint: self.context.source.fingerprint(),
            data_len: self.context.source.len(),
            window: &self.window,
        })?;
        if let Some(earlier) = self.writer.submit(snapshot) {
            self.saved(earlier);
        }
        if !self.context.plan.config().checkpoint.r#async
            && let Some(result) = self.writer.finish()
        {
            self.saved(result);
        }
        Ok(())
    }

    /// Notes a save that ended; a failed one is warned about and tried again at the next.
    fn saved(&mut self, result: Result<Outcome, CheckpointError>) {
        match result {
            Ok(outcome) => {
                self.saved.longest = self.saved.longest.max(outcome.took);
                self.reporter.detail(&format!("checkpoint {}", outcome.saved.path.display()));
                self.saved.newest = Some((outcome.saved.step, outcome.saved.path));
                if let Err(error) = outcome.removed {
                    self.reporter.warn(&format!("an older checkpoint was not removed: {}", describe(&error)));
                }
            }
            Err(error) => self.reporter.warn(&format!(
                "the checkpoint was not written: {}; training goes on and tries again\n  help: {}",
                describe(&error),
                error.help()
            )),
        }
    }

    /// Draws pictures from the moving average and shows them.
    fn draw(&mut self, trainer: &Trainer) -> Result<(), Failure> {
        let plan = self.context.plan;
        let settings = &plan.config().sample;
        let sampler = sampler_config(plan.config());
        let request = Request {
            num: settings.num,
            sampler: &sampler,
            seed: settings.seed,
            classes: data_classes(plan.config()).map(|classes| (0..classes as u32).collect()),
            guidance: None,
        };
        let painter = Painter {
            unet: trainer.unet(),
            params: trainer.sampling_params(),
            process: trainer.process(),
            device: self.context.device,
        };
        let images = painter.draw(&request, |_| ())?;
        let layout = Layout::visible(images.shape[1], images.shape[2]);
        let step = trainer.steps_taken();
        match grid(&images.pixels, images.shape, layout).and_then(|page| encode(&page)) {
            Ok(png) => self.reporter.samples(step, &png),
            Err(error) => self.reporter.warn(&format!("no picture: {error}")),
        }
        self.last_picture = Some(step);
        Ok(())
    }

    /// Ends the run: a last checkpoint if the last step has none, and with `picture` a last picture.
    ///
    /// # Errors
    /// The last checkpoint could not be written: then the run is not safe, and that is what the caller must say.
    pub(super) fn finish(&mut self, trainer: &Trainer, picture: bool) -> Result<Ending, Failure> {
        if let Some(result) = self.writer.finish() {
            self.saved(result);
        }
        let step = trainer.steps_taken();
        if self.saved.newest.as_ref().is_none_or(|(saved, _)| *saved != step) {
            self.save(trainer)?;
            match self.writer.finish() {
                Some(Err(error)) => return Err(self.unsaved(step, &error)),
                Some(ok) => self.saved(ok),
                None => {}
            }
        }
        if picture && self.last_picture != Some(step) && self.context.plan.sample_cadence() != Cadence::NEVER {
            self.draw(trainer)?;
        }
        self.reporter.finish();
        let samples = self.last_picture.map(|step| self.context.run_dir.paths().sample(step));
        Ok(Ending { checkpoint: self.saved.newest.take().map(|(_, path)| path), samples })
    }

    /// The end without a checkpoint. Not exit code 6, which says that one cannot be read.
    fn unsaved(&self, step: u64, error: &CheckpointError) -> Failure {
        let from = self.saved.newest.as_ref().map_or("the start".to_owned(), |(saved, _)| format!("step {saved}"));
        let message = format!("step {step} could not be saved; the same command goes on from {from}");
        Failure::caused_by(ExitCode::Other, message, error).hint(error.help())
    }
}

fn describe(error: &CheckpointError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
