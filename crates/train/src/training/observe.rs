//! What watches a run: metrics, checkpoints, pictures, uploads. The loop calls [`Observers::after_step`] and knows no more.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ddpm_run::checkpoint::{CheckpointError, Outcome, Retention, Writer};
use ddpm_run::memory;
use ddpm_run::metrics::Timing;

use super::context::{RunContext, picture_request, sampler_config};
use super::engines::Engines;
use super::outcome::StepOutcome;
use super::state::Position;
use super::stop::{StopReason, StopWatch};
use super::trainer::Trainer;
use super::upload::{Report, Uploader};
use super::window::Window;
use crate::config::{Cadence, take_gpu_notices};
use crate::drawing::{Images, Painter, Request};
use crate::error::{Error, Kind, in_one_line};
use crate::report::Reporter;
use crate::report::pictures::{Layout, encode, grid};

/// See the module.
pub(super) struct Observers<'a> {
    context: &'a RunContext<'a>,
    stop: &'a StopWatch,
    pub(super) reporter: Reporter,
    writer: Writer,
    window: Window,
    /// What the last step did whose results are there.
    last: Option<StepOutcome>,
    clock: Clock,
    saved: Saved,
    longest: Longest,
    uploader: Option<Uploader>,
    engines: Option<Engines>,
}

/// How a run comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It has made its steps.
    Reached,
    /// It was stopped before.
    Stopped(StopReason),
    /// It failed.
    Failed,
}

/// The longest of each kind so far: what must still fit in before a time limit.
#[derive(Clone, Copy, Debug, Default)]
struct Longest {
    step: Duration,
    save: Duration,
    picture: Duration,
}

/// The newest good checkpoint: its step and its place.
type Saved = Option<(u64, PathBuf)>;

/// What is there when a run has ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// The newest good checkpoint.
    pub(super) checkpoint: Option<PathBuf>,
    /// The picture of the last step.
    pub(super) samples: Option<PathBuf>,
    /// The last picture was given up for a signal or the time limit; the next start draws it.
    pub(super) interrupted: bool,
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
    ///
    /// # Errors
    /// An environment in which nothing can be uploaded as asked.
    pub(super) fn new(
        context: &'a RunContext<'a>,
        stop: &'a StopWatch,
        mut reporter: Reporter,
        window: Window,
        resumed: Saved,
    ) -> Result<Self, Error> {
        let config = &context.plan.config().checkpoint;
        let retention = Retention { keep_last: config.keep_last, keep_every: config.keep_every };
        let writer = Writer::new(context.run_dir.paths().checkpoints(), retention);
        let first = resumed.as_ref().map_or(0, |(step, _)| *step);
        let clock = Clock::start(context.plan.images(first));
        let (saved, longest) = (resumed, Longest::default());
        let uploader =
            Uploader::start(context.plan.config(), context.run_dir.paths(), first)?.map(|(uploader, amiss)| {
                amiss.into_iter().for_each(|amiss| reporter.warn(&amiss));
                uploader
            });
        let engines = Engines::of_run(context.run_dir.paths(), context.device)?.map(|(engines, amiss)| {
            amiss.into_iter().for_each(|amiss| reporter.warn(&amiss));
            engines
        });
        Ok(Self { context, stop, reporter, writer, window, last: None, clock, saved, longest, uploader, engines })
    }

    /// How long another step, saving and the last picture may take.
    pub(super) fn time_to_stop(&self) -> Duration {
        let Longest { step, save, picture } = self.longest;
        step + 2 * save + picture + Duration::from_secs(5)
    }

    /// Draws the picture that was due with the checkpoint the run goes on from, if a kill came before it.
    pub(super) fn catch_up(&mut self, trainer: &mut Trainer) -> Result<(), Error> {
        let (step, paths) = (trainer.steps_taken(), self.context.run_dir.paths());
        let here = self.saved.as_ref().is_some_and(|(_, path)| path.starts_with(paths.checkpoints()));
        if here && self.context.plan.sample_cadence().is_due(step) && !paths.sample(step).exists() {
            self.draw(trainer)?;
        }
        Ok(())
    }

    /// The loop waited for data.
    pub(super) fn waited(&mut self, wait: Duration) {
        self.clock.data_wait += wait;
    }

    /// A step was made, or on a GPU queued; `trainer` has taken it already. What steps did is asked for only where it is
    /// due, so that a GPU never waits for the host to look.
    pub(super) fn after_step(&mut self, trainer: &mut Trainer) -> Result<(), Error> {
        let (step, plan) = (trainer.steps_taken(), self.context.plan);
        let log = plan.log_cadence().is_due(step);
        let (save, draw) = (plan.checkpoint_cadence().is_due(step), plan.sample_cadence().is_due(step));
        self.take_outcomes(trainer, log || save || draw)?;
        for notice in trainer.take_notices().into_iter().chain(take_gpu_notices()) {
            self.reporter.warn(&notice);
        }
        self.reporter.step(step);
        if log && let Some(outcome) = &self.last {
            let images = plan.images(step);
            let record = self.window.record(step, images, outcome, self.clock.timing(images));
            self.reporter.metrics(&record);
            self.clock = Clock::start(images);
        }
        if let Some(result) = self.writer.poll() {
            self.saved(result);
        }
        self.tell_of_uploads();
        if save {
            self.save(trainer)?;
        }
        if draw {
            self.draw(trainer)?;
        }
        Ok(())
    }

    /// Takes in what steps did; with `all`, also of those that are still being computed.
    fn take_outcomes(&mut self, trainer: &mut Trainer, all: bool) -> Result<(), Error> {
        for outcome in trainer.outcomes(all)? {
            self.window.add(&outcome);
            self.longest.step = self.longest.step.max(outcome.phases.total());
            self.last = Some(outcome);
        }
        Ok(())
    }

    /// Starts writing a checkpoint; with `checkpoint.async = false`, also waits for it.
    fn save(&mut self, trainer: &Trainer) -> Result<(), Error> {
        if let Some(earlier) = self.submit(trainer)? {
            self.saved(earlier);
        }
        if !self.context.plan.config().checkpoint.r#async
            && let Some(result) = self.writer.finish()
        {
            self.saved(result);
        }
        Ok(())
    }

    /// Starts writing a checkpoint; what became of the one before, if nobody asked yet.
    fn submit(&mut self, trainer: &Trainer) -> Result<Option<Result<Outcome, CheckpointError>>, Error> {
        self.reporter.sync();
        if let Some(Err(error)) = self.engines.as_mut().map(Engines::keep) {
            self.reporter.warn(&format!("engines.json was not written: {error}"));
        }
        let snapshot = trainer.snapshot(&Position {
            plan: self.context.plan,
            data_fingerprint: self.context.source.fingerprint(),
            data_len: self.context.source.len(),
            window: &self.window,
        })?;
        Ok(self.writer.submit(snapshot))
    }

    /// Notes a save that ended; a failed one is warned about and tried again at the next.
    fn saved(&mut self, result: Result<Outcome, CheckpointError>) {
        match result {
            Ok(outcome) => {
                self.longest.save = self.longest.save.max(outcome.took);
                self.reporter.detail(&format!("checkpoint {}", outcome.saved.path.display()));
                self.uploader.iter_mut().for_each(|uploader| uploader.saved(outcome.saved.step));
                self.saved = Some((outcome.saved.step, outcome.saved.path));
                if let Err(error) = outcome.removed {
                    self.reporter.warn(&format!("an older checkpoint was not removed: {}", in_one_line(&error)));
                }
            }
            Err(error) => self.reporter.warn(&format!(
                "the checkpoint was not written: {}; training goes on and tries again\n  help: {}",
                in_one_line(&error),
                error.help()
            )),
        }
    }

    /// Draws pictures from the moving average and shows them; gives up when the run is to stop, for that may take minutes
    /// and the next start can do it as well; whether it came to an end. A GPU without room for pictures ends no run.
    fn draw(&mut self, trainer: &mut Trainer) -> Result<bool, Error> {
        let (start, step) = (Instant::now(), trainer.steps_taken());
        let images = match self.paint(trainer) {
            Ok(Some(images)) => images,
            Ok(None) => return Ok(false),
            Err(error) if matches!(error.kind(), Kind::Device | Kind::Memory) => {
                self.reporter.warn(&format!("no picture at step {step}: {error}"));
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let layout = Layout::visible(images.shape[1], images.shape[2]);
        match grid(&images.pixels, images.shape, layout).and_then(|page| encode(&page)) {
            Ok(png) => self.reporter.samples(step, &png),
            Err(error) => self.reporter.warn(&format!("no picture: {error}")),
        }
        self.longest.picture = self.longest.picture.max(start.elapsed());
        Ok(true)
    }

    /// The images of a picture: where a GPU's memory is full, after what the training keeps for itself is given back, and then
    /// fewer at once.
    fn paint(&self, trainer: &mut Trainer) -> Result<Option<Images>, Error> {
        let config = self.context.plan.config();
        let sampler = sampler_config(config);
        let mut request = picture_request(config, &sampler);
        let paint = |trainer: &Trainer, request: &Request<'_>| {
            let params = trainer.sampling_params()?;
            let painter = Painter { unet: trainer.unet(), params: &params, process: trainer.process() };
            painter.draw_unless(request, &|| self.stop.is_over())
        };
        loop {
            match paint(trainer, &request) {
                Err(error) if error.is_full_memory() && trainer.give_back_memory()? => {}
                Err(error) if error.is_full_memory() && request.batch_size > 1 => {
                    request.batch_size = request.batch_size.div_ceil(2);
                }
                painted => return painted,
            }
        }
    }

    /// Tells what became of uploads.
    fn tell_of_uploads(&mut self) {
        let reports = self.uploader.as_mut().map(Uploader::reports).unwrap_or_default();
        reports.into_iter().for_each(|report| self.tell(report));
    }

    fn tell(&mut self, report: Report) {
        match report {
            Report::Done(what) => self.reporter.info(&what),
            Report::Failed(what) => self.reporter.warn(&what),
        }
    }

    /// Ends the run: a last checkpoint if the last step has none, a last picture, and an upload of a run that has reached its
    /// end.
    ///
    /// # Errors
    /// The last checkpoint could not be written: then the run is not safe, and that is what the caller must say.
    pub(super) fn finish(&mut self, trainer: &mut Trainer, end: End) -> Result<Ending, Error> {
        self.take_outcomes(trainer, true)?;
        if let Some(result) = self.writer.finish() {
            self.saved(result);
        }
        let step = trainer.steps_taken();
        if self.saved.as_ref().is_none_or(|(saved, _)| *saved != step) {
            // Nothing is in flight any more, so a result here is already that of this save: it could not even begin.
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
        // A finished run that is started again has its last picture already, and would draw the same one.
        let last = self.context.run_dir.paths().sample(step);
        let wanted = picture && !last.exists() && self.context.plan.sample_cadence() != Cadence::NEVER;
        let interrupted = wanted && !self.draw(trainer)?;
        if let Some(uploader) = self.uploader.take() {
            let stop = self.stop;
            let reports = uploader.finish(&|| end != End::Reached || stop.is_over());
            reports.into_iter().for_each(|report| self.tell(report));
        }
        self.reporter.finish();
        let samples = Some(last).filter(|path| path.exists());
        Ok(Ending { checkpoint: self.saved.take().map(|(_, path)| path), samples, interrupted })
    }

    /// The end without a checkpoint.
    fn unsaved(&self, step: u64, cause: CheckpointError) -> Error {
        Error::Unsaved { step, saved: self.saved.as_ref().map(|(saved, _)| *saved), cause }
    }
}
