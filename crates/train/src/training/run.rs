//! The life of a run: lock the directory, start or resume, step, save, stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use ddpm_data::{DataError, Loader, Source};
use ddpm_run::checkpoint::Checkpoint;
use ddpm_run::memory::format_bytes;
use ddpm_run::{RunDir, RunPhase, StartFacts};
use tracing::Span;

use super::cpu_memory::require_room;
use super::disk_need::DiskNeed;
use super::divergence::{report, second_try};
use super::events::{FAILURE, PROGRESS, RUN};
use super::exporter::Service;
use super::follow::follow;
use super::gpu_memory::GpuEstimate;
use super::loop_of_steps::train_until;
use super::observe::{End, Ending, Observers};
pub use super::options::{RunOptions, Summary};
use super::ranks::{Ranks, Start, meet};
use super::resume::{Beginning, choose_checkpoint, refuse_to_leave_an_import, with_the_models_classes};
use super::setup::{RunSetup, device_name, loader_config, open_data};
use super::stop::{StopReason, StopWatch};
use super::trainer::Trainer;
use super::upload::Uploader;
use super::watchdog::Watch;
use crate::config::{TrainPlan, Warning};
use crate::error::{Error, Kind, in_one_line};
use crate::known_data::{KnownData, unused_classes};
use crate::memory;
use crate::report::{Reporter, ReporterOptions};
use crate::sensors::Sensors;

/// What stays the same however often the run goes back.
struct Frame<'a> {
    started: Instant,
    ranks: Ranks,
    stop: StopWatch,
    watch: Watch,
    service: Service,
    sensors: Option<Arc<Sensors>>,
    device: Device,
    source: Arc<dyn Source>,
    data: KnownData,
    run_dir: RunDir,
    options: &'a RunOptions,
}

/// How a try ended.
enum Ended {
    Finished(Box<Summary>),
    /// It diverged; the next try begins here.
    GoesBack(Box<Beginning>),
}

/// Trains as `plan` says, from the beginning or from the run directory's newest checkpoint.
///
/// # Errors
/// An error of any [`Kind`]; earlier checkpoints remain.
pub fn train(plan: &TrainPlan, options: &RunOptions) -> Result<Summary, Error> {
    let (plan, ranks) = meet(plan, options.launch.as_ref(), &options.requests.stop)?;
    let trained = if ranks.rank() == 0 { lead(&plan, options, &ranks) } else { follow(&plan, options, &ranks) };
    trained.map_err(|error| {
        // What was given up because a rank was lost.
        let error = match (ranks.failure(), error) {
            (Some(failure), Error::Data(DataError::Stopped) | Error::Cancelled) => failure.into(),
            (_, error) => error,
        };
        ranks.abort(&in_one_line(&error));
        error
    })
}

/// The run of a rank that is alone or the first: it alone writes.
fn lead(plan: &TrainPlan, options: &RunOptions, ranks: &Ranks) -> Result<Summary, Error> {
    let started = Instant::now();
    let stop = StopWatch::new(started, options.max_hours, options.requests.clone());
    options.accept.check()?;
    let run = &plan.config().run;
    let on_stall = options.on_stall.filter(|_| run.exit_on_stall);
    let watch = Watch::begin(Duration::from_secs(run.stall_after), on_stall)?;
    let service = Service::start(&plan.config().log.metrics_addr, &run.name, watch.watchdog());
    let device = plan.device().open()?;
    let sensors = if device.is_cpu() { None } else { Sensors::open().map(Arc::new) };
    require_room(plan.config(), plan.at_once(), &device)?;
    let source = open_data(plan, &options.requests)?;
    refuse_to_leave_an_import(plan, &options.resume)?;
    // Only a claim: a start that is refused below leaves everything as it was.
    let run_dir = RunDir::claim(plan.run_dir())?;
    run_dir.put_back()?;
    let (checkpoint, mut notices) = choose_checkpoint(run_dir.paths(), &options.resume)?;
    let source = with_the_models_classes(plan, source, checkpoint.as_ref(), options.accept.data)?;
    // Before a refusal too: they may say why the data is other data.
    source.notices().iter().for_each(|notice| tracing::warn!("data.source: {notice}"));
    let data = KnownData::of_source(&*source, plan.config());
    let mut beginning = Beginning::at(checkpoint, plan, &data, &options.accept)?;
    beginning.require_steps_to_accept(options.last_step(plan))?;
    let ranks = Arc::clone(ranks);
    let frame = Frame { started, ranks, stop, watch, service, sensors, device, source, data, run_dir, options };
    loop {
        match try_from(&frame, &beginning, &std::mem::take(&mut notices))? {
            Ended::Finished(summary) => return Ok(*summary),
            Ended::GoesBack(earlier) => beginning = *earlier,
        }
    }
}

/// Trains from `beginning` to the end, or until it diverges.
fn try_from(frame: &Frame<'_>, beginning: &Beginning, notices: &[String]) -> Result<Ended, Error> {
    let Frame { stop, device, data, run_dir, options, .. } = frame;
    let (plan, rollbacks, watchdog) = (&beginning.plan, beginning.rollbacks, frame.watch.watchdog());
    let exporter = frame.service.exporter();
    let sensors = frame.sensors.clone();
    exporter.begins(&device_name(device), rollbacks, sensors.clone());
    let setup = RunSetup {
        plan,
        run_dir,
        source: Arc::clone(&frame.source),
        data,
        device,
        rollbacks,
        watchdog,
        exporter,
        sensors,
    };
    let (mut trainer, means) = beginning.trainer(device)?;
    trainer.poison(options.poisoned.iter().copied());
    let (first, end) = (trainer.steps_taken(), options.last_step(plan));
    // These two check their settings before anything is recorded.
    let mut loader = Loader::start(Arc::clone(&setup.source), loader_config(plan), first)?;
    let uploader = Uploader::start(plan.config(), run_dir.paths(), first)?;
    Start::lead(&frame.ranks, &mut trainer, &setup, end)?;

    let resolved = plan.resolved().to_toml();
    run_dir.begin()?;
    let removed = run_dir.remove_stale()?;
    run_dir.write_config(&resolved)?;
    run_dir.record_start(start_facts(&setup, beginning, options))?;
    let mut reporter = open_reporter(&setup, first)?;
    let run = span_of_run(run_dir, first, end).entered();
    reporter.config(first, &resolved);
    removed.iter().for_each(|name| tracing::warn!(name, "{name}: an unfinished save was removed"));
    notices.iter().chain(&beginning.reason).for_each(|notice| tracing::warn!("{notice}"));
    announce(&setup, &trainer, beginning, end);

    let resumed = beginning.checkpoint.as_ref().map(|checkpoint| (first, checkpoint.path.clone()));
    let mut observers = Observers::new(&setup, stop, (*run).clone(), reporter, means, resumed, uploader)?;
    observers.enter(RunPhase::Training);
    let looped = observers
        .catch_up(&mut trainer)
        .and_then(|()| train_until(end, &mut trainer, &mut loader, stop, &mut observers));
    drop(loader);
    let ended = match looped {
        Ok(stopped) => finish(&setup, &mut observers, &mut trainer, stopped),
        Err(Error::Diverged { step, what, .. }) => {
            observers.finish_save();
            let report = report(&setup, &mut trainer, observers.history(), &what);
            if let Some(earlier) = second_try(&setup, beginning, step, &what)? {
                return Ok(Ended::GoesBack(Box::new(earlier)));
            }
            Err(Error::Diverged { step, what, report })
        }
        Err(error) => Err(save_what_is_good(&mut observers, &mut trainer, error)),
    };
    let summary = conclude(frame, plan, &mut observers, trainer.steps_taken(), ended)?;
    Ok(Ended::Finished(Box::new(summary)))
}

/// Records how a run ended.
fn conclude(
    frame: &Frame<'_>,
    plan: &TrainPlan,
    observers: &mut Observers<'_>,
    step: u64,
    ended: Result<(Option<StopReason>, Ending), Error>,
) -> Result<Summary, Error> {
    let (stopped, ending) = ended.inspect_err(|error| {
        tracing::error!(target: FAILURE, kind = ?error.kind(), causes = error.causes().join(": "), "{error}");
        observers.ended(RunPhase::Failed, Some(error));
    })?;
    let stopped = stopped.or_else(|| frame.stop.reason(Duration::ZERO).filter(|_| ending.interrupted));
    let all = stopped.is_none() && step >= plan.config().train.steps;
    observers.ended(if all { RunPhase::Done } else { RunPhase::Stopped }, None);
    Ok(Summary {
        run_dir: frame.run_dir.paths().root().to_owned(),
        step,
        images: plan.images(step),
        elapsed: frame.started.elapsed(),
        stopped,
        checkpoint: ending.checkpoint,
        samples: ending.samples,
    })
}

/// What is recorded of this start.
fn start_facts(setup: &RunSetup<'_>, beginning: &Beginning, options: &RunOptions) -> StartFacts {
    StartFacts {
        step: beginning.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step),
        device: device_name(setup.device),
        command: options.command.clone(),
        accepted: beginning.accepted(),
        reason: beginning.reason.clone(),
        changed_data: beginning.changed_data.clone(),
    }
}

/// Ends a run whose loop ended well; returns why it stopped early, if it did, and what is there now.
fn finish(
    setup: &RunSetup<'_>,
    observers: &mut Observers<'_>,
    trainer: &mut Trainer,
    stopped: Option<StopReason>,
) -> Result<(Option<StopReason>, Ending), Error> {
    // The others need not wait for the last picture.
    trainer.ranks().leave();
    // For information only: the last checkpoint does not depend on it.
    if let Err(error) = tell_peak(setup, trainer) {
        tracing::warn!("{error}");
    }
    let ending = observers.finish(trainer, stopped.map_or(End::Reached, End::Stopped))?;
    Ok((stopped, ending))
}

/// Reports the peak GPU memory of the steps, beside the estimate.
fn tell_peak(setup: &RunSetup<'_>, trainer: &Trainer) -> Result<(), Error> {
    if let Some(peak) = memory::peak_on(setup.device)?
        && !setup.device.is_cpu()
    {
        let estimated = GpuEstimate::new(setup.plan.config())?.of(trainer.images_at_once()).total_bytes;
        let (measured, expected) = (format_bytes(peak), format_bytes(estimated));
        tracing::info!(
            peak_bytes = peak,
            estimated_bytes = estimated,
            "GPU memory: peak {measured}, estimated {expected}"
        );
    }
    Ok(())
}

/// Saves after this error, if the newest weights are good. A run that ends because of its data, of the network that they come over, of a label or
/// size that the configuration does not allow, of full GPU memory or of another rank should not lose the steps since the last checkpoint.
fn save_what_is_good(observers: &mut Observers<'_>, trainer: &mut Trainer, error: Error) -> Error {
    let good =
        matches!(error.kind(), Kind::Data | Kind::Hub | Kind::Setting | Kind::Device | Kind::Memory | Kind::Lost);
    if !good || trainer.steps_taken() == 0 {
        observers.finish_save();
        return error;
    }
    match observers.finish(trainer, End::Failed) {
        Ok(_) => error,
        Err(second) => Error::Besides {
            error: Box::new(error),
            besides: format!("besides, the last steps could not be saved: {second}"),
        },
    }
}

fn open_reporter(setup: &RunSetup<'_>, first: u64) -> Result<Reporter, Error> {
    let log = &setup.plan.config().log;
    let options = ReporterOptions { jsonl: log.jsonl, tensorboard: log.tensorboard, first };
    Ok(Reporter::open(setup.run_dir, options)?)
}

/// See [`events`](super::events).
fn span_of_run(run_dir: &RunDir, first: u64, total: u64) -> Span {
    let (dir, log) = (run_dir.paths().root().display(), run_dir.paths().log());
    tracing::info_span!(target: PROGRESS, RUN, %dir, log = %log.display(), rank = 0_u64, first, total, step = first)
}

fn announce(setup: &RunSetup<'_>, trainer: &Trainer, beginning: &Beginning, end: u64) {
    let unused = unused_classes(setup.plan.config(), &*setup.source);
    for warning in setup.plan.warnings().iter().chain(&unused) {
        tracing::warn!(key = warning.key, "{}: {}", warning.key, warning.message);
    }
    let need = DiskNeed::of(setup.plan, trainer.unet().layout());
    if let Some(Warning { key, message }) = need.warning(setup.run_dir.paths()) {
        tracing::warn!("{key}: {message}");
    }
    let (world, share) = (trainer.ranks().world(), setup.plan.share());
    if world > 1 {
        tracing::info!(
            world,
            "{world} ranks: this one learns from {} of {} images a step, and it alone writes",
            share.count(),
            share.of()
        );
    }
    let parameters = trainer.unet().layout().parameters();
    let (device, data) = (device_name(setup.device), setup.source.describe());
    let millions = parameters as f64 / 1e6;
    tracing::info!(parameters, device, data, "{millions:.2} M parameters on {device}; data: {data}");
    beginning.changed_data.iter().for_each(|change| tracing::warn!("data.source: {change}"));
    for change in beginning.accepted() {
        tracing::warn!("accepted from step {} on: {change}", trainer.steps_taken());
    }
    match &beginning.checkpoint {
        Some(Checkpoint { path, state, .. }) => {
            let (path, step) = (path.display(), state.step);
            let done = if step < end { "" } else { ": nothing left to train" };
            tracing::info!(checkpoint = %path, end, "going on from {path} (step {step}) to step {end}{done}");
        }
        None => {
            let dir = setup.run_dir.paths().root().display();
            tracing::info!(%dir, end, "training to step {end} in {dir}");
        }
    }
}
