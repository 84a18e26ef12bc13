//! The files in which a run's numbers and pictures are kept.

use ddpm_run::disk::create_dir_all;
use ddpm_run::durable::parent_of;
use ddpm_run::jsonl::{JsonLines, truncate_after};
use ddpm_run::metrics::MetricRecord;
use ddpm_run::{RunDir, RunPaths};

use super::ReportError;
use super::pictures::{self, Png};
use super::tensorboard::EventWriter;

const METRICS: &str = "metrics.jsonl";

/// The options of a reporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReporterOptions {
    /// Write `metrics.jsonl`.
    pub jsonl: bool,
    /// Write TensorBoard events.
    pub tensorboard: bool,
    /// Steps already done: 0, or those of the checkpoint that was resumed.
    pub first: u64,
}

/// Writes a run's measurements. It never fails the run: it warns once per kind of file that cannot be written.
#[derive(Debug)]
pub struct Reporter {
    paths: RunPaths,
    metrics: Option<JsonLines>,
    events: Option<EventWriter>,
    complained: Vec<&'static str>,
}

impl Reporter {
    /// Opens the run's reports. It removes what an earlier process reported after `options.first`: those steps are done again.
    ///
    /// # Errors
    /// A file cannot be opened: at the start this is a reason to stop.
    pub fn open(run: &RunDir, options: ReporterOptions) -> Result<Self, ReportError> {
        let paths = run.paths().clone();
        truncate_after(&paths.metrics(), options.first)?;
        let metrics = options.jsonl.then(|| JsonLines::append(&paths.metrics())).transpose()?;
        let events =
            options.tensorboard.then(|| EventWriter::create(&paths.events(), options.first + 1)).transpose()?;
        Ok(Self { paths, metrics, events, complained: Vec::new() })
    }

    /// Logs a step.
    pub fn metrics(&mut self, record: &MetricRecord) {
        let line = self.metrics.as_mut().map_or(Ok(()), |lines| lines.write(record).map_err(ReportError::from));
        self.complain(METRICS, line);
        let event = self.events.as_mut().map_or(Ok(()), |events| events.scalars(record.step, &record.scalars()));
        self.complain("events", event);
    }

    /// What makes the metrics durable, on any thread. To be done before a checkpoint is written: a checkpoint that survives a power
    /// failure must not be newer than they are.
    pub fn syncing(&mut self) -> impl FnOnce() + Send + use<> {
        let syncing = self.metrics.as_mut().map(|lines| lines.syncing().map_err(ReportError::from)).transpose();
        let sync = syncing.unwrap_or_else(|error| {
            self.complain(METRICS, Err(error));
            None
        });
        move || {
            if let Some(Err(error)) = sync.map(|sync| sync().map_err(ReportError::from)) {
                warn(METRICS, &error);
            }
        }
    }

    /// Writes a sample grid of `step`: a file in `samples/`, and an event.
    pub fn samples(&mut self, step: u64, png: &Png) {
        let path = self.paths.sample(step);
        // It may have gone with the run's directory.
        let folder = create_dir_all(parent_of(&path)).map_err(ReportError::io("create the directory", &path));
        let written = folder.and_then(|()| pictures::write(&path, png));
        self.complain("samples", written);
        let event = self.events.as_mut().map_or(Ok(()), |events| events.image(step, "samples", png));
        self.complain("events", event);
    }

    /// Writes the resolved configuration of a start at `step`, for TensorBoard's text page; the indentation makes it code in
    /// Markdown.
    pub fn config(&mut self, step: u64, resolved_toml: &str) {
        let markdown: String = resolved_toml.lines().map(|line| format!("    {line}\n")).collect();
        let event = self.events.as_mut().map_or(Ok(()), |events| events.text(step, "config", &markdown));
        self.complain("events", event);
    }

    fn complain(&mut self, what: &'static str, result: Result<(), ReportError>) {
        if let Err(error) = result
            && !self.complained.contains(&what)
        {
            self.complained.push(what);
            warn(what, &error);
        }
    }
}

fn warn(what: &'static str, error: &ReportError) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    tracing::warn!(what, help = error.help(), "{error}{cause}; training goes on");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::super::testing::record;
    use super::*;

    fn options(first: u64) -> ReporterOptions {
        ReporterOptions { jsonl: true, tensorboard: true, first }
    }

    #[test]
    fn a_killed_and_resumed_run_leaves_the_metrics_of_an_unbroken_one() {
        let (killed, unbroken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let train = |dir: &tempfile::TempDir, first: u64, last: u64| {
            let run = RunDir::open(dir.path()).unwrap();
            let mut reporter = Reporter::open(&run, options(first)).unwrap();
            for step in first + 1..=last {
                reporter.metrics(&record(step));
            }
        };
        train(&killed, 0, 25);
        train(&killed, 20, 40);
        train(&unbroken, 0, 40);
        let metrics = |dir: &tempfile::TempDir| fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        assert_eq!(metrics(&killed), metrics(&unbroken));
        assert_eq!(fs::read_dir(killed.path().join("events")).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_written_does_not_end_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let mut reporter = Reporter::open(&run, options(0)).unwrap();
        fs::remove_dir_all(run.paths().samples()).unwrap();
        fs::write(run.paths().samples(), "a file").unwrap();
        let png = Png { width: 1, height: 1, bytes: vec![0] };
        reporter.samples(10, &png);
        reporter.samples(20, &png);
        assert_eq!(reporter.complained, ["samples"]);
        reporter.metrics(&record(20));
        reporter.syncing()();
        assert_eq!(fs::read_to_string(run.paths().metrics()).unwrap().lines().count(), 1);
    }
}
