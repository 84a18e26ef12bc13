//! `ddpm runs`: lists runs and their progress.

use std::path::Path;
use std::time::Duration;

use ddpm_data::shown;
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

fn none_in(dir: &Path) -> String {
    format!("no runs in {}", dir.display())
}

impl<'a> Line<'a> {
    fn of(run: &'a RunView) -> Self {
        let root = run.paths.root();
        let status = run.status.as_ref();
        let running = run.state == RunState::Running;
        let root_name = root.canonicalize().ok().and_then(|root| Some(root.file_name()?.to_owned()));
        Self {
            name: root_name.unwrap_or_else(|| root.as_os_str().to_owned()).to_string_lossy().into_owned(),
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
        let state = serde_json::to_value(line.state).unwrap_or_default();
        table.row(&[
            &shown(&line.name),
            &state.as_str().unwrap_or_default(),
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
