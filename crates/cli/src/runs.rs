//! `ddpm runs`: lists runs and their progress.

use std::io;
use std::path::Path;
use std::time::Duration;

use ddpm_data::shown;
use ddpm_run::durable::io_help;
use ddpm_run::{RunState, RunView};
use serde::Serialize;

use super::args::RunsArgs;
use super::output::{Align, Output, Table};
use crate::failure::{ExitCode, Failure};
use crate::listen::format_duration;

/// A run in the list.
#[derive(Debug, Serialize)]
struct Line<'a> {
    name: String,
    run_dir: &'a Path,
    state: RunState,
    step: u64,
    steps: Option<u64>,
    loss: Option<f64>,
    images_per_s: Option<f64>,
    seconds_left: Option<f64>,
    error: Option<&'a str>,
    checkpoint: Option<&'a Path>,
    device: &'a str,
    created: &'a str,
    updated: Option<&'a str>,
}

/// Lists the runs in a directory.
pub(super) fn run(args: &RunsArgs, output: &Output) -> Result<(), Failure> {
    let (runs, unread) = RunView::all_in(&args.dir).map_err(|error| {
        let message = format!("{}: no runs can be listed here", args.dir.display());
        Failure::caused_by(ExitCode::Usage, message, &error)
            .hint("name the directory that holds the runs: ddpm runs DIR")
    })?;
    unread.iter().for_each(|error| tracing::warn!("{error}"));
    let lines: Vec<Line<'_>> = runs.iter().map(Line::of).collect();
    output.result(&lines, || if lines.is_empty() { none_in(&args.dir) } else { text(&lines) })
}

/// The run in `root`, for a command that is about this one.
///
/// # Errors
/// Exit code 2 where there is no run; 6 where its record cannot be read.
pub(super) fn open_run(root: &Path) -> Result<RunView, Failure> {
    let hint = "name a run directory (runs/NAME); `ddpm runs` lists them";
    match RunView::open(root) {
        Ok(Some(run)) => Ok(run),
        Ok(None) => Err(Failure::new(ExitCode::Usage, format!("{}: there is no run", root.display())).hint(hint)),
        Err(error) => {
            let message = format!("{}: the run cannot be read", root.display());
            Err(Failure::caused_by(ExitCode::Checkpoint, message, &error).hint(error.help()))
        }
    }
}

/// The failure to read a run's file at `path`.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("{}: cannot be read", path.display());
    Failure::caused_by(ExitCode::Other, message, error).hint(io_help(error, path))
}

/// The name of the run in `root`.
pub(super) fn name_of(root: &Path) -> String {
    let name = root.canonicalize().ok().and_then(|root| Some(root.file_name()?.to_owned()));
    name.unwrap_or_else(|| root.as_os_str().to_owned()).to_string_lossy().into_owned()
}

/// A name for each of several runs: that of its directory, or its whole path where two are called the same.
pub(super) fn names_of(runs: &[RunView]) -> Vec<String> {
    let short: Vec<String> = runs.iter().map(|run| name_of(run.paths.root())).collect();
    let is_unique = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
    let whole = |run: &RunView| run.paths.root().display().to_string();
    let name = |(run, name): (&RunView, &String)| if is_unique(name) { name.clone() } else { whole(run) };
    // They stand in tables, pictures and drawings.
    runs.iter().zip(&short).map(name).map(|name| shown(&name).into_owned()).collect()
}

fn none_in(dir: &Path) -> String {
    format!("no runs in {}", dir.display())
}

impl<'a> Line<'a> {
    fn of(run: &'a RunView) -> Self {
        let root = run.paths.root();
        let status = run.status.as_ref();
        let running = run.state == RunState::Running;
        Self {
            name: name_of(root),
            run_dir: root,
            state: run.state,
            step: run.step(),
            steps: status.map(|status| status.steps),
            loss: run.metrics.as_ref().map(|metrics| metrics.loss),
            images_per_s: run.metrics.as_ref().filter(|_| running).map(|metrics| metrics.timing.images_per_s),
            seconds_left: status.filter(|_| running).and_then(|status| status.seconds_left),
            error: status.filter(|_| run.state == RunState::Failed).and_then(|status| status.error.as_deref()),
            checkpoint: run.checkpoint.as_ref().map(|(_, path)| path.as_path()),
            device: &run.record.device,
            created: &run.record.created,
            updated: status.map(|status| status.updated.as_str()),
        }
    }
}

fn text(lines: &[Line<'_>]) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[Left, Left, Right, Right, Right, Right, Left]);
    table.row(&[&"run", &"state", &"step", &"loss", &"images/s", &"left", &"last seen"]);
    let or_nothing = |number: Option<String>| number.unwrap_or_default();
    for line in lines {
        let step = line.steps.map_or_else(|| line.step.to_string(), |steps| format!("{}/{steps}", line.step));
        table.row(&[
            &shown(&line.name),
            &line.state,
            &step,
            &or_nothing(line.loss.map(|loss| format!("{loss:.4}"))),
            &or_nothing(line.images_per_s.map(|speed| format!("{speed:.0}"))),
            &or_nothing(line.seconds_left.map(|seconds| format_duration(Duration::from_secs_f64(seconds)))),
            &line.updated.map_or(line.created, |updated| updated),
        ]);
    }
    let errors = lines.iter().filter_map(|line| Some(format!("{}: {}\n", shown(&line.name), line.error?)));
    let errors: String = errors.collect();
    if errors.is_empty() { table.render() } else { format!("{}\n{errors}", table.render()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_says_why_under_the_table() {
        let line = Line {
            name: "a".into(),
            run_dir: Path::new("runs/a"),
            state: RunState::Failed,
            step: 30,
            steps: Some(100),
            loss: Some(0.125),
            images_per_s: None,
            seconds_left: None,
            error: Some("the loss is NaN"),
            checkpoint: None,
            device: "cpu",
            created: "2026-11-24T09:53:00.125Z",
            updated: None,
        };
        let text = text(&[line]);
        assert_eq!(text.lines().nth(1), Some("a    failed  30/100  0.1250                  2026-11-24T09:53:00.125Z"));
        assert_eq!(text.lines().last(), Some("a: the loss is NaN"));
    }
}
