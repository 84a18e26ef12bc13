//! `ddpm train`.

use std::path::Path;

use ddpm_data::{DataError, counted, shown, without_query};
use ddpm_run::secrets::masked;
use ddpm_run::shell;
use ddpm_train::Error;
use ddpm_train::config::{Resolved, Setting, TrainPlan};
use ddpm_train::training::accept::Accept;
use ddpm_train::training::ranks::{CollectiveError, Launch};
use ddpm_train::training::resume::Resume;
use ddpm_train::training::run::{RunOptions, Summary, train};
use serde_json::json;
use tracing::subscriber::NoSubscriber;

use super::args::TrainArgs;
use super::output::Output;
use crate::failure::{ExitCode, Failure, Outcome};
use crate::listen::format_duration;
use crate::signals;

/// Trains, and prints where everything is.
pub(super) fn run(args: &TrainArgs, output: &Output) -> Result<Outcome, Failure> {
    if args.dry_run {
        return dry_run(args, output);
    }
    let plan = TrainPlan::new(&Resolved::load(&args.config, &args.settings())?)?;
    let launch = Launch::from_variables(|name| std::env::var(name).ok()).map_err(Error::from)?;
    let speaks = launch.as_ref().is_none_or(|launch| launch.rank == 0);
    let summary = match train(&plan, &RunOptions { launch, ..options(args)? }) {
        Err(Error::Data(DataError::Stopped)) => {
            tracing::warn!("stopped while the data was opened: the same command begins again");
            return Ok(Outcome::Stopped);
        }
        Err(error @ Error::Ranks(CollectiveError::Stopped)) => {
            tracing::warn!("{error}: the same command begins again");
            return Ok(Outcome::Stopped);
        }
        summary => summary?,
    };
    if speaks {
        output.result(&document(&summary), || text(&summary))?;
    }
    Ok(if summary.stopped.is_some() { Outcome::Stopped } else { Outcome::Done })
}

/// A run's options from the command line; from now on signals may stop the run.
fn options(args: &TrainArgs) -> Result<RunOptions, Failure> {
    Ok(RunOptions {
        resume: args.resume.clone(),
        max_steps: args.max_steps,
        max_hours: args.max_hours,
        command: this_command(),
        requests: signals::requests()?,
        accept: Accept { keys: args.accept.clone(), data: args.accept_data },
        // A hung call can neither be waited for nor taken back.
        on_stall: Some(|| std::process::exit(ExitCode::Stalled as i32)),
        // A dry run is alone.
        launch: None,
        poisoned: Vec::new(),
    })
}

/// Does everything once, in a temporary directory: the same code as a real run, with other numbers.
fn dry_run(args: &TrainArgs, output: &Output) -> Result<Outcome, Failure> {
    let dir = tempfile::tempdir()
        .map_err(|error| Failure::caused_by(ExitCode::Other, "cannot make a temporary directory", &error))?;
    let setting = |key: &str, value: String| Setting { key: key.to_owned(), value };
    let mut settings = args.settings();
    settings.push(setting("run.dir", dir.path().join("run").display().to_string()));
    // A model of one step must not go to the hub.
    settings.push(setting("hub.repo", "\"\"".to_owned()));
    settings.push(setting("log.metrics_addr", "\"\"".to_owned()));
    settings.push(setting("log.every", "1".to_owned()));
    settings.push(setting("sample.num", "1".to_owned()));
    settings.push(setting("sample.steps", "2".to_owned()));
    let plan = TrainPlan::new(&Resolved::load(&args.config, &settings)?)?;
    let options = RunOptions { resume: Resume::Auto, max_steps: Some(1), ..options(args)? };
    // The checkpoint is read back and verified where it is written; a second start reads it as a resume would.
    if train(&plan, &options)?.stopped.is_some() {
        return Ok(Outcome::Stopped);
    }
    // Everything it would print was printed already.
    let summary = tracing::subscriber::with_default(NoSubscriber::new(), || train(&plan, &options))?;
    let seconds = summary.elapsed.as_secs_f64();
    output.result(&json!({"status": "done", "dry_run": true, "step": summary.step, "seconds": seconds}), || {
        "dry run: one step, one checkpoint written and read back, one sample: all well".to_owned()
    })?;
    Ok(Outcome::Done)
}

fn document(summary: &Summary) -> serde_json::Value {
    json!({
        "run_dir": summary.run_dir,
        "step": summary.step,
        "images": summary.images,
        "seconds": summary.elapsed.as_secs_f64(),
        "status": if summary.stopped.is_some() { "stopped" } else { "done" },
        "checkpoint": summary.checkpoint,
        "samples": summary.samples,
    })
}

/// The command as it was typed, but for secrets: it is kept with the run and goes on its card.
pub(super) fn this_command() -> Vec<String> {
    std::env::args_os().map(|arg| masked(without_signature(&arg.to_string_lossy())).into_owned()).collect()
}

/// An argument without the query of a web address in it, which may be a signature.
fn without_signature(arg: &str) -> &str {
    let address = ["https://", "http://"].iter().find_map(|scheme| arg.find(scheme));
    address.map_or(arg, |start| &arg[..start + without_query(&arg[start..]).len()])
}

fn text(summary: &Summary) -> String {
    let run = summary.run_dir.display();
    let elapsed = format_duration(summary.elapsed);
    let mut lines = vec![match summary.stopped {
        Some(reason) => format!("stopped by {reason} at step {} after {elapsed}; everything is saved", summary.step),
        None => format!("done: step {}, {}, {elapsed}", summary.step, counted(summary.images as usize, "image")),
    }];
    let mut place = |what: &str, path: Option<String>| {
        lines.extend(path.map(|path| format!("  {what:<11} {}", shown(&path))));
    };
    place("checkpoint", summary.checkpoint.as_ref().map(|path| path.display().to_string()));
    place("pictures", summary.samples.as_ref().map(|path| path.display().to_string()));
    place("metrics", Some(format!("{run}/metrics.jsonl")));
    lines.push("next:".to_owned());
    if summary.stopped.is_some() {
        lines.push(format!("  {}    # the same command goes on from here", shell::command(&this_command())));
    }
    let quoted = |path: &Path| shell::quoted(&path.display().to_string());
    lines.push(format!("  ddpm sample {} --num 64", quoted(&summary.run_dir)));
    lines.push(format!("  tensorboard --logdir {}", quoted(&summary.run_dir.join("events"))));
    lines.join("\n")
}
