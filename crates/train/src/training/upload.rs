//! Uploads beside the loop: one thread, which pushes the newest checkpoint. The loop hands over a step and never waits.
//!
//! A hub that is slow or down costs the run nothing but warnings: what is not sent waits in `hub/` of the run directory,
//! where a newer model takes its place and `ddpm push` finds it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use candle_core::Device;
use ddpm_hub::{Pushed, RepoName, Revision, Settings, Target};
use ddpm_run::RunPaths;
use ddpm_run::shell;

use crate::config::TrainConfig;
use crate::error::Error;
use crate::exchange::{CARD_SAMPLES, Model};
use crate::publish::{Publication, spool_of};

/// Silences of the hub that the end of a run waits for at most: as many as one push can meet.
const WAITS: u32 = 10;
/// How often a waiting end looks whether the run is to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Uploader {
    every: u64,
    repo: RepoName,
    run: PathBuf,
    /// The longest wait at the end of the run.
    patience: Duration,
    /// The step of the last checkpoint that was looked at.
    seen: u64,
    /// The last step that was handed over.
    handed: Option<u64>,
    /// Pushes that were handed over and have not been told of.
    pending: usize,
    steps: Sender<u64>,
    reports: Receiver<Report>,
    /// It is not joined: a push that takes too long is left to end with the process.
    _thread: JoinHandle<()>,
}

/// What became of a push.
pub(super) enum Report {
    /// The hub has the model.
    Done(String),
    /// It has not; the run goes on.
    Failed(String),
}

impl Uploader {
    /// Starts the thread, if `[hub]` asks for it; also what is already amiss.
    ///
    /// # Errors
    /// An environment that cannot be.
    pub(super) fn start(
        config: &TrainConfig,
        run: &RunPaths,
        first: u64,
    ) -> Result<Option<(Self, Option<String>)>, Error> {
        let hub = &config.hub;
        let Ok(repo) = hub.repo.parse::<RepoName>() else { return Ok(None) };
        let settings = Settings::from_environment()?;
        let why = match (&settings.token, settings.offline) {
            (_, true) => Some("HF_HUB_OFFLINE is set"),
            (None, false) => Some("there is no token (HF_TOKEN)"),
            (Some(_), false) => None,
        };
        let amiss = why.map(|why| format!("nothing will reach {repo}: {why}; `ddpm push` can send it later"));
        let publication = Publication {
            target: Target { repo: repo.clone(), revision: Revision::default(), private: hub.private },
            samples: CARD_SAMPLES,
            epsilon_only: false,
            licence: None,
            measured: None,
        };
        let patience = WAITS * settings.timeout;
        let (steps, wanted) = channel();
        let (sender, reports) = channel();
        let root = run.root().to_owned();
        let _thread = thread::Builder::new()
            .name("upload".into())
            .spawn(move || work(&wanted, &sender, &root, &publication, &settings))
            .map_err(Error::caused("no thread for uploads"))?;
        let run = run.root().to_owned();
        let uploader = Self {
            every: hub.push_every,
            repo,
            run,
            patience,
            seen: first,
            handed: None,
            pending: 0,
            steps,
            reports,
            _thread,
        };
        Ok(Some((uploader, amiss)))
    }

    /// A checkpoint of `step` is on the disk: hands it over, if a push is due.
    pub(super) fn saved(&mut self, step: u64) {
        let passed = |step: u64| step.checked_div(self.every);
        if passed(step) > passed(self.seen) {
            self.hand_over(step);
        }
        self.seen = step;
    }

    fn hand_over(&mut self, step: u64) {
        self.handed = Some(step);
        // A thread that has ended has said so.
        if self.steps.send(step).is_ok() {
            self.pending += 1;
        }
    }

    /// What became of pushes since the last call.
    pub(super) fn reports(&mut self) -> Vec<Report> {
        let mut told = Vec::new();
        loop {
            match self.reports.try_recv() {
                Ok(report) => told.push(report),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    if self.pending > told.len() {
                        told.push(Report::Failed("the upload thread ended early".to_owned()));
                        self.pending = told.len();
                    }
                    break;
                }
            }
        }
        self.pending -= told.len().min(self.pending);
        told
    }

    /// The run has reached its end: its last model is to be pushed, if it is not on its way already.
    pub(super) fn push_last(&mut self, step: u64) {
        if self.handed != Some(step) {
            self.hand_over(step);
        }
    }

    /// Waits for what was handed over, a bounded time and not when the run `is_over`; then tells what is left.
    pub(super) fn finish(mut self, is_over: &dyn Fn() -> bool) -> Vec<Report> {
        let start = Instant::now();
        let mut told = self.reports();
        while self.pending > 0 && !is_over() && start.elapsed() < self.patience {
            match self.reports.recv_timeout(GLANCE) {
                Ok(report) => {
                    self.pending -= 1;
                    told.push(report);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => told.extend(self.reports()),
            }
        }
        if self.pending > 0 {
            told.push(Report::Failed(format!("the upload to {} had not ended{}", self.repo, later(&self.run))));
        }
        told
    }
}

/// What to type when the hub is well again.
fn later(run: &Path) -> String {
    format!("\n  help: `ddpm push {}` sends what is left", shell::quoted(&run.display().to_string()))
}

/// The thread: pushes whenever a step was handed over, once for all that were meanwhile.
fn work(wanted: &Receiver<u64>, reports: &Sender<Report>, run: &Path, publication: &Publication, settings: &Settings) {
    while wanted.recv().is_ok() {
        let more = wanted.try_iter().count();
        let report = match push_newest(run, publication, settings) {
            Ok((step, pushed)) => {
                let done = if pushed.was_there { "is on the hub already" } else { "pushed" };
                let step = step.map_or_else(String::new, |step| format!("step {step} "));
                Report::Done(format!("{step}{done}: {} ({})", pushed.url, pushed.commit))
            }
            Err(error) => Report::Failed(told(&error, publication, run)),
        };
        // One report for each step that was handed over; nobody listens when the run is over.
        let skipped = (0..more).map(|_| Report::Done("a newer model was pushed instead".to_owned()));
        if std::iter::once(report).chain(skipped).any(|report| reports.send(report).is_err()) {
            return;
        }
    }
}

/// The newest checkpoint, and not a certain one: that may have been removed while an earlier push took its time.
fn push_newest(run: &Path, publication: &Publication, settings: &Settings) -> Result<(Option<u64>, Pushed), Error> {
    // On the CPU: the memory of a device belongs to the training.
    let model = Model::open(run, false, &Device::Cpu, &|_| {})?;
    let spool = spool_of(&model, publication, &mut |_| {})?;
    let step = model.facts.as_ref().map(|facts| facts.step);
    drop(model);
    Ok((step, spool.push(settings.clone())?))
}

fn told(error: &Error, publication: &Publication, run: &Path) -> String {
    let causes: String = error.causes().iter().map(|cause| format!(": {cause}")).collect();
    format!("no upload to {}: {error}{causes}; training goes on{}", publication.target.repo, later(run))
}
