//! The life of a run: take the directory, start or go on, step, save, stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ddpm_data::Loader;
use ddpm_run::checkpoint::{Checkpoint, remove_stale};
use ddpm_run::memory::format_bytes;
use ddpm_run::{RunDir, Start};

use super::context::{RunContext, device_name, loader_config};
use super::gpu_memory::GpuEstimate;
use super::observe::{End, Observers};
use super::resume::{Resume, choose_checkpoint, refuse_to_leave_an_import, start_or_go_on};
use super::stop::{StopReason, StopWatch};
use super::trainer::Trainer;
use crate::config::{TrainPlan, take_gpu_notices};
use crate::error::{Error, Kind};
use crate::memory;
use crate::report::progress::Verbosity;
use crate::report::terminal::Terminal;
use crate::report::{Reporter, ReporterOptions};

/// What a run is asked to do besides its plan.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where to go on from.
    pub resume: Resume,
    /// End at this step.
    pub max_steps: Option<u64>,
    /// Save and stop before this many hours have passed.
    pub max_hours: Option<f64>,
    /// The command, for the record.
    pub command: Vec<String>,
    /// How much to say on stderr.
    pub verbosity: Verbosity,
    /// What stderr can show.
    pub terminal: Terminal,
    /// Set from outside to have the run finish its step, save and end.
    pub stop: Arc<AtomicBool>,
    /// How an error that ends the run is told in its log.
    pub tell: fn(&Error) -> String,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Steps taken in all.
    pub step: u64,
    /// Images seen in all.
    pub images: u64,
    /// The time this process took.
    pub elapsed: Duration,
    /// Why it stopped early, if it did.
    pub stopped: Option<StopReason>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The newest picture.
    pub samples: Option<PathBuf>,
}

/// Trains as `plan` says, from the start or from where the run directory stands.
///
/// # Errors
/// Of any [`Kind`]; whatever was saved before stays.
pub fn train(plan: &TrainPlan, options: &RunOptions) -> Result<Summary, Error> {
    let started = Instant::now();
    let stop = StopWatch::new(started, options.max_hours, Arc::clone(&options.stop));
    let device = plan.device().open()?;
    let source = ddpm_data::open(&plan.config().data.source, &plan.open_options())?;
    refuse_to_leave_an_import(plan, &options.resume)?;
    let run_dir = RunDir::open(plan.run_dir())?;
    let removed = remove_stale(&run_dir.paths().checkpoints(), run_dir.lock())?;
    let (checkpoint, skipped) = choose_checkpoint(&run_dir, &options.resume)?;
    let context = RunContext { plan, run_dir: &run_dir, source, device: &device };
    let (mut trainer, window) = start_or_go_on(&context, checkpoint.as_ref())?;
    let first = trainer.steps_taken();
    let end = options.max_steps.unwrap_or(u64::MAX).min(plan.config().train.steps);
    // The loader checks its settings before anything is written.
    let mut loader = Loader::start(Arc::clone(&context.source), loader_config(plan), first)?;

    let resolved = plan.resolved().to_toml();
    run_dir.write_config(&resolved)?;
    run_dir.record_start(Start { step: first, device: device_name(&device), command: options.command.clone() })?;
    let mut reporter = open_reporter(&context, options, first, end)?;
    reporter.config(&resolved);
    for message in removed.iter().map(|name| format!("{name}: an unfinished save was removed")).chain(skipped) {
        reporter.warn(&message);
    }
    context.source.notices().iter().for_each(|notice| reporter.warn(&format!("data.source: {notice}")));
    announce(&context, &mut reporter, &trainer, checkpoint.as_ref(), end);

    let resumed = checkpoint.map(|checkpoint| (first, checkpoint.path));
    let mut observers = Observers::new(&context, &stop, reporter, window, resumed)?;
    let looped = observers
        .catch_up(&mut trainer)
        .and_then(|()| train_until(end, &mut trainer, &mut loader, &stop, &mut observers));
    drop(loader);
    let stopped = match looped {
        Ok(stopped) => stopped,
        Err(error) => {
            observers.reporter.error(&(options.tell)(&error));
            return Err(save_what_is_good(&mut observers, &mut trainer, error));
        }
    };
    // For information alone: the last checkpoint does not depend on it.
    if let Err(error) = tell_peak(&context, &trainer, &mut observers.reporter) {
        observers.reporter.warn(&error.to_string());
    }
    let ending = observers.finish(&mut trainer, stopped.map_or(End::Reached, End::Stopped))?;
    let stopped = stopped.or_else(|| stop.reason(Duration::ZERO).filter(|_| ending.interrupted));
    let step = trainer.steps_taken();
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

/// The loop.
fn train_until(
    end: u64,
    trainer: &mut Trainer,
    loader: &mut Loader,
    stop: &StopWatch,
    observers: &mut Observers<'_>,
) -> Result<Option<StopReason>, Error> {
    while trainer.steps_taken() < end {
        if let Some(reason) = stop.reason(observers.time_to_stop()) {
            return Ok(Some(reason));
        }
        let waiting = Instant::now();
        let batch = loader.next()?;
        observers.waited(waiting.elapsed());
        for unreadable in loader.take_warnings() {
            observers.reporter.warn(&format!("{unreadable} (skipped; data.on_corrupt = \"skip\")"));
        }
        trainer.step(batch)?;
        observers.after_step(trainer)?;
    }
    Ok(None)
}

/// How much of a GPU's memory the steps took, beside what was foretold.
fn tell_peak(context: &RunContext<'_>, trainer: &Trainer, reporter: &mut Reporter) -> Result<(), Error> {
    if let Some(peak) = memory::peak_on(context.device)?
        && !context.device.is_cpu()
    {
        let estimated = GpuEstimate::new(context.plan.config())?.of(trainer.images_at_once()).total_bytes;
        reporter.info(&format!("GPU memory: peak {}, estimated {}", format_bytes(peak), format_bytes(estimated)));
    }
    Ok(())
}

/// Data that ended a run, a label or size that the configuration does not allow, or a GPU whose memory is full, is no reason
/// to lose the steps since the last checkpoint; diverged weights are not saved.
fn save_what_is_good(observers: &mut Observers<'_>, trainer: &mut Trainer, error: Error) -> Error {
    let good = matches!(error.kind(), Kind::Data | Kind::Setting | Kind::Device | Kind::Memory);
    if !good || trainer.steps_taken() == 0 {
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

fn open_reporter(context: &RunContext<'_>, options: &RunOptions, first: u64, end: u64) -> Result<Reporter, Error> {
    let log = &context.plan.config().log;
    let options = ReporterOptions {
        jsonl: log.jsonl,
        tensorboard: log.tensorboard,
        verbosity: options.verbosity,
        terminal: options.terminal,
        first,
        total: end,
    };
    Ok(Reporter::open(context.run_dir, options)?)
}

fn announce(
    context: &RunContext<'_>,
    reporter: &mut Reporter,
    trainer: &Trainer,
    checkpoint: Option<&Checkpoint>,
    end: u64,
) {
    for warning in context.plan.warnings() {
        reporter.warn(&format!("{}: {}", warning.key, warning.message));
    }
    take_gpu_notices().iter().for_each(|notice| reporter.warn(notice));
    let parameters = trainer.unet().layout().parameters() as f64 / 1e6;
    let (device, data) = (device_name(context.device), context.source.describe());
    reporter.info(&format!("{parameters:.2} M parameters on {device}; data: {data}"));
    reporter.info(&match checkpoint {
        Some(Checkpoint { path, state, .. }) => {
            let done = if state.step < end { "" } else { ": nothing left to train" };
            format!("going on from {} (step {}) to step {end}{done}", path.display(), state.step)
        }
        None => format!("training to step {end} in {}", context.run_dir.paths().root().display()),
    });
}
