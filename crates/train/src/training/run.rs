//! The life of a run: lock the directory, start or resume, step, save, stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ddpm_data::Loader;
use ddpm_run::checkpoint::{Checkpoint, remove_stale};
use ddpm_run::memory::format_bytes;
use ddpm_run::{Phase, RunDir, StartFacts};
use tracing::Span;

use super::events::{FAILURE, PROGRESS, RUN};
use super::gpu_memory::GpuEstimate;
use super::observe::{End, Ending, Observers};
use super::quarantine::Quarantine;
use super::resume::{
    Resume, changed_data, choose_checkpoint, refuse_to_leave_an_import, start_or_go_on, with_the_models_classes,
};
use super::setup::{RunSetup, device_name, loader_config};
use super::stop::{Requests, StopReason, StopWatch};
use super::trainer::Trainer;
use super::upload::Uploader;
use crate::config::TrainPlan;
use crate::error::{Error, Kind};
use crate::known_data::{KnownData, unused_classes};
use crate::memory;
use crate::report::{Reporter, ReporterOptions};

/// The options of a run beside its plan.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where to resume from.
    pub resume: Resume,
    /// Go on with other data than the checkpoint's (`--accept-data`).
    pub accept_data: bool,
    /// End at this step.
    pub max_steps: Option<u64>,
    /// Save and stop before this many hours have passed.
    pub max_hours: Option<f64>,
    /// The command, for `run.json`.
    pub command: Vec<String>,
    /// Requests that may come while it runs.
    pub requests: Requests,
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

/// Trains as `plan` says, from the beginning or from the run directory's newest checkpoint.
///
/// # Errors
/// An error of any [`Kind`]; earlier checkpoints remain.
pub fn train(plan: &TrainPlan, options: &RunOptions) -> Result<Summary, Error> {
    let started = Instant::now();
    let stop = StopWatch::new(started, options.max_hours, options.requests.clone());
    let device = plan.device().open()?;
    let source = ddpm_data::open(&plan.config().data.source, &plan.open_options())?;
    refuse_to_leave_an_import(plan, &options.resume)?;
    let run_dir = RunDir::open(plan.run_dir())?;
    let removed = remove_stale(&run_dir.paths().checkpoints(), run_dir.lock())?;
    let (checkpoint, skipped) = choose_checkpoint(&run_dir, &options.resume)?;
    let source = with_the_models_classes(plan, source, checkpoint.as_ref(), options.accept_data)?;
    // Before a refusal too: they may say why the data is other data.
    source.notices().iter().for_each(|notice| tracing::warn!("data.source: {notice}"));
    let data = KnownData::of_source(&*source, plan.config());
    let setup = RunSetup { plan, run_dir: &run_dir, source, data, device: &device };
    let (mut trainer, means) = start_or_go_on(&setup, checkpoint.as_ref(), options.accept_data)?;
    let first = trainer.steps_taken();
    let end = options.max_steps.unwrap_or(u64::MAX).min(plan.config().train.steps);
    // These two check their settings before anything is recorded.
    let mut loader = Loader::start(Arc::clone(&setup.source), loader_config(plan), first)?;
    let uploader = Uploader::start(plan.config(), run_dir.paths(), first)?;

    let resolved = plan.resolved().to_toml();
    run_dir.write_config(&resolved)?;
    let (name, command) = (device_name(&device), options.command.clone());
    let changed_data = changed_data(&setup, checkpoint.as_ref());
    run_dir.record_start(StartFacts { step: first, device: name, command, changed_data: changed_data.clone() })?;
    let mut reporter = open_reporter(&setup, first)?;
    let run = span_of_run(&run_dir, first, end).entered();
    reporter.config(first, &resolved);
    removed.iter().for_each(|name| tracing::warn!(name, "{name}: an unfinished save was removed"));
    skipped.iter().for_each(|skipped| tracing::warn!("{skipped}"));
    announce(&setup, &trainer, checkpoint.as_ref(), end);
    changed_data.iter().for_each(|change| tracing::warn!("data.source: {change}"));

    let resumed = checkpoint.map(|checkpoint| (first, checkpoint.path));
    let mut observers = Observers::new(&setup, &stop, (*run).clone(), reporter, means, resumed, uploader)?;
    let mut quarantine = Quarantine::of_run(run_dir.paths());
    observers.enter(Phase::Training);
    let looped = observers
        .catch_up(&mut trainer)
        .and_then(|()| train_until(end, &mut trainer, &mut loader, &stop, &mut observers, &mut quarantine));
    drop(loader);
    let finished = match looped {
        Ok(stopped) => finish(&setup, &mut observers, &mut trainer, stopped),
        Err(error) => Err(save_what_is_good(&mut observers, &mut trainer, error)),
    };
    let (stopped, ending) = finished.inspect_err(|error| {
        tracing::error!(target: FAILURE, kind = ?error.kind(), causes = error.causes().join(": "), "{error}");
        observers.ended(Phase::Failed, Some(error));
    })?;
    let stopped = stopped.or_else(|| stop.reason(Duration::ZERO).filter(|_| ending.interrupted));
    let step = trainer.steps_taken();
    let all = stopped.is_none() && step >= plan.config().train.steps;
    observers.ended(if all { Phase::Done } else { Phase::Stopped }, None);
    Ok(Summary {
        run_dir: run_dir.paths().root().to_owned(),
        step,
        images: plan.images(step),
        elapsed: started.elapsed(),
        stopped,
        checkpoint: ending.checkpoint,
        samples: ending.samples,
    })
}

/// Ends a run whose loop ended well; returns why it stopped early, if it did, and what is there now.
fn finish(
    setup: &RunSetup<'_>,
    observers: &mut Observers<'_>,
    trainer: &mut Trainer,
    stopped: Option<StopReason>,
) -> Result<(Option<StopReason>, Ending), Error> {
    // For information only: the last checkpoint does not depend on it.
    if let Err(error) = tell_peak(setup, trainer) {
        tracing::warn!("{error}");
    }
    let ending = observers.finish(trainer, stopped.map_or(End::Reached, End::Stopped))?;
    Ok((stopped, ending))
}

/// The loop.
fn train_until(
    end: u64,
    trainer: &mut Trainer,
    loader: &mut Loader,
    stop: &StopWatch,
    observers: &mut Observers<'_>,
    quarantine: &mut Quarantine,
) -> Result<Option<StopReason>, Error> {
    while trainer.steps_taken() < end {
        if let Some(reason) = stop.reason(observers.time_to_stop()) {
            return Ok(Some(reason));
        }
        let step = tracing::trace_span!("step", step = trainer.steps_taken() + 1).entered();
        let waiting = Instant::now();
        let next = tracing::trace_span!("data").in_scope(|| loader.next_unless(&|| stop.is_over()));
        quarantine.add(trainer.steps_taken() + 1, loader.take_warnings());
        loader.take_notices().iter().for_each(|notice| tracing::warn!("data.source: {notice}"));
        let Some(batch) = next? else { continue };
        observers.waited(waiting.elapsed());
        trainer.step(batch)?;
        step.exit();
        observers.after_step(trainer)?;
    }
    Ok(None)
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

/// Whether to save after this error. A run that ends because of its data, of a label or size that the configuration does not
/// allow, or of full GPU memory should not lose the steps since the last checkpoint; diverged weights are not saved.
fn save_what_is_good(observers: &mut Observers<'_>, trainer: &mut Trainer, error: Error) -> Error {
    let good = matches!(error.kind(), Kind::Data | Kind::Setting | Kind::Device | Kind::Memory);
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

fn announce(setup: &RunSetup<'_>, trainer: &Trainer, checkpoint: Option<&Checkpoint>, end: u64) {
    let unused = unused_classes(setup.plan.config(), &*setup.source);
    for warning in setup.plan.warnings().iter().chain(&unused) {
        tracing::warn!(key = warning.key, "{}: {}", warning.key, warning.message);
    }
    let parameters = trainer.unet().layout().parameters();
    let (device, data) = (device_name(setup.device), setup.source.describe());
    let millions = parameters as f64 / 1e6;
    tracing::info!(parameters, device, data, "{millions:.2} M parameters on {device}; data: {data}");
    match checkpoint {
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
