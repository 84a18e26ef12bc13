//! What the loop talks to.

use ddpm_run::jsonl::{JsonLines, Level, LogRecord, truncate_after};
use ddpm_run::metrics::MetricRecord;
use ddpm_run::{RunDir, RunPaths};

use super::ReportError;
use super::pictures::{self, Png};
use super::progress::{Progress, Verbosity};
use super::tensorboard::EventWriter;
use super::terminal::Terminal;

/// What to report where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReporterOptions {
    /// Write `metrics.jsonl`.
    pub jsonl: bool,
    /// Write TensorBoard events.
    pub tensorboard: bool,
    /// How much to say on stderr.
    pub verbosity: Verbosity,
    /// What stderr can show.
    pub terminal: Terminal,
    /// Steps already done: 0, or those of the checkpoint that was resumed.
    pub first: u64,
    /// The step at which the run ends.
    pub total: u64,
}

/// Observes a run. Nothing it does can fail the run: what cannot be written is warned about once per kind.
#[derive(Debug)]
pub struct Reporter {
    paths: RunPaths,
    progress: Progress,
    metrics: Option<JsonLines>,
    log: JsonLines,
    events: Option<EventWriter>,
    step: u64,
    complained: Vec<&'static str>,
}

impl Reporter {
    /// Opens the run's reports. What an earlier process reported after `options.first` goes: those steps come again.
    ///
    /// # Errors
    /// A file cannot be opened: at the start that is worth stopping for.
    pub fn open(run: &RunDir, options: ReporterOptions) -> Result<Self, ReportError> {
        let paths = run.paths().clone();
        let ReporterOptions { terminal, verbosity, first, total, .. } = options;
        truncate_after(&paths.metrics(), first)?;
        let metrics = options.jsonl.then(|| JsonLines::append(&paths.metrics())).transpose()?;
        let events = options.tensorboard.then(|| EventWriter::create(&paths.events(), first + 1)).transpose()?;
        let log = JsonLines::append(&paths.log())?;
        let progress = Progress::new(terminal, verbosity, first, total);
        Ok(Self { paths, progress, metrics, log, events, step: first, complained: Vec::new() })
    }

    /// A step is done; cheap, for every step.
    pub fn step(&mut self, step: u64) {
        self.step = step;
        self.progress.step(step);
    }

    /// A step is logged.
    pub fn metrics(&mut self, record: &MetricRecord) {
        self.progress.metrics(record);
        let line = self.metrics.as_mut().map_or(Ok(()), |lines| lines.write(record).map_err(ReportError::from));
        self.complain("metrics.jsonl", line);
        let event = self.events.as_mut().map_or(Ok(()), |events| events.scalars(record.step, &record.scalars()));
        self.complain("events", event);
    }

    /// Makes the metrics durable. To be called before a checkpoint is written: a checkpoint that survives a power failure
    /// must not be ahead of them.
    pub fn sync(&mut self) {
        let synced = self.metrics.as_mut().map_or(Ok(()), |lines| lines.sync().map_err(ReportError::from));
        self.complain("metrics.jsonl", synced);
    }

    /// A sample grid of `step`: a file in `samples/`, and an event.
    pub fn samples(&mut self, step: u64, png: &Png) {
        let written = pictures::write(&self.paths.sample(step), png);
        self.complain("samples", written);
        let event = self.events.as_mut().map_or(Ok(()), |events| events.image(step, "samples", png));
        self.complain("events", event);
    }

    /// The resolved configuration, for TensorBoard's text page; the indentation makes it code in Markdown.
    pub fn config(&mut self, resolved_toml: &str) {
        let markdown: String = resolved_toml.lines().map(|line| format!("    {line}\n")).collect();
        let step = self.step;
        let event = self.events.as_mut().map_or(Ok(()), |events| events.text(step, "config", &markdown));
        self.complain("events", event);
    }

    /// Something worth keeping: a line on stderr and in the log.
    pub fn info(&mut self, message: &str) {
        self.progress.say(message);
        self.log(Level::Info, message);
    }

    /// Something for whoever asked for details; always in the log.
    pub fn detail(&mut self, message: &str) {
        self.progress.detail(message);
        self.log(Level::Info, message);
    }

    /// Something that is not as it should be.
    pub fn warn(&mut self, message: &str) {
        self.progress.warn(message);
        self.log(Level::Warning, message);
    }

    /// The run ends with an error, which the caller prints; here it only goes into the log.
    pub fn error(&mut self, message: &str) {
        self.log(Level::Error, message);
    }

    /// The run is over: the bar stays as it is, and the metrics are made durable.
    pub fn finish(&mut self) {
        self.sync();
        self.progress.finish();
    }

    fn log(&mut self, level: Level, message: &str) {
        let written = self.log.write(&LogRecord::now(level, self.step, message));
        if let Err(error) = written {
            self.complain_once("log.jsonl", &error.into());
        }
    }

    fn complain(&mut self, what: &'static str, result: Result<(), ReportError>) {
        if let Err(error) = result {
            self.complain_once(what, &error);
        }
    }

    /// Only on stderr: the log may be what cannot be written.
    fn complain_once(&mut self, what: &'static str, error: &ReportError) {
        if !self.complained.contains(&what) {
            self.complained.push(what);
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
            self.progress.warn(&format!("{error}{cause}; training goes on\n  help: {}", error.help()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::super::testing::record;
    use super::*;

    fn options(first: u64) -> ReporterOptions {
        let terminal = Terminal { interactive: false, colour: false };
        ReporterOptions { jsonl: true, tensorboard: true, verbosity: Verbosity::Quiet, terminal, first, total: 100 }
    }

    #[test]
    fn a_killed_and_resumed_run_leaves_the_metrics_of_an_unbroken_one() {
        let (killed, unbroken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let train = |dir: &tempfile::TempDir, first: u64, last: u64| {
            let run = RunDir::open(dir.path()).unwrap();
            let mut reporter = Reporter::open(&run, options(first)).unwrap();
            for step in first + 1..=last {
                reporter.step(step);
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
        let png = Png { width: 1, height: 1, bytes: vec![0] };
        reporter.samples(10, &png);
        reporter.samples(20, &png);
        assert_eq!(reporter.complained, ["samples"]);
        reporter.metrics(&record(20));
        reporter.finish();
        assert_eq!(fs::read_to_string(run.paths().metrics()).unwrap().lines().count(), 1);
    }

    #[test]
    fn the_log_has_a_line_per_message_with_level_and_step() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let mut reporter = Reporter::open(&run, options(7)).unwrap();
        reporter.detail("resumed");
        reporter.step(8);
        reporter.warn("slow disk");
        let log = fs::read_to_string(run.paths().log()).unwrap();
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let seen: Vec<_> =
            lines.iter().map(|line| (line["level"].as_str().unwrap(), line["step"].as_u64().unwrap())).collect();
        assert_eq!(seen, [("info", 7), ("warning", 8)]);
        assert_eq!(lines[1]["message"], "slow disk");
    }
}
