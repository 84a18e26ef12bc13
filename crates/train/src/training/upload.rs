//! Uploads beside the loop: one thread, which pushes the newest checkpoint and reports the result. The loop hands over a step
//! and never waits.
//!
//! A hub that is slow or down costs the run only warnings: a model that was not sent waits in `hub/` of the run directory,
//! where a newer model replaces it and `ddpm push` finds it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use candle_core::Device;
use ddpm_hub::{Pushed, RepoName, Revision, Settings, Target};
use ddpm_run::RunPaths;
use tracing::Span;

use crate::config::TrainConfig;
use crate::error::Error;
use crate::exchange::{CARD_SAMPLES, Model};
use crate::publish::{Publication, spool_of};

/// Names a hint of what to type: how to send the model that waits in the run of the field `run`.
const PUSH_LATER: &str = "push-later";
/// The most time-outs of the hub that the end of a run waits for: as many as one push can meet.
const WAITS: u32 = 10;
/// How often the waiting end of a run checks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Uploader {
    every: u64,
    repo: RepoName,
    run: PathBuf,
    /// The longest wait at the end of the run.
    patience: Duration,
    /// The step of the last checkpoint that was considered.
    seen: u64,
    /// The last step that was handed over.
    handed: Option<u64>,
    /// Steps that were handed over and not finished.
    pending: usize,
    steps: Sender<u64>,
    done: Receiver<()>,
    /// It is not joined: a push that takes too long ends with the process.
    _thread: JoinHandle<()>,
}

impl Uploader {
    /// Starts the thread, if `[hub]` asks for it; warns if no upload can succeed.
    ///
    /// # Errors
    /// The environment's settings are invalid.
    pub(super) fn start(config: &TrainConfig, run: &RunPaths, first: u64) -> Result<Option<Self>, Error> {
        let hub = &config.hub;
        let Ok(repo) = hub.repo.parse::<RepoName>() else { return Ok(None) };
        let settings = Settings::from_environment()?;
        let why = match (&settings.token, settings.offline) {
            (_, true) => Some("HF_HUB_OFFLINE is set"),
            (None, false) => Some("there is no token (HF_TOKEN)"),
            (Some(_), false) => None,
        };
        if let Some(why) = why {
            let run = run.root().display();
            tracing::warn!(%repo, %run, hint = PUSH_LATER, "nothing will reach {repo}: {why}");
        }
        let publication = Publication {
            target: Target { repo: repo.clone(), revision: Revision::default(), private: hub.private },
            samples: CARD_SAMPLES,
            epsilon_only: false,
            licence: None,
            measured: None,
        };
        let patience = WAITS * settings.timeout;
        let (steps, wanted) = channel();
        let (sender, done) = channel();
        let (root, span) = (run.root().to_owned(), Span::current());
        let _thread = thread::Builder::new()
            .name("upload".into())
            .spawn(move || work(&wanted, &sender, &span, &Work { run: &root, publication, settings }))
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
            done,
            _thread,
        };
        Ok(Some(uploader))
    }

    /// Hands over the checkpoint of `step`, which is on the disk, if a push is due.
    pub(super) fn saved(&mut self, step: u64) {
        let passed = |step: u64| step.checked_div(self.every);
        if passed(step) > passed(self.seen) {
            self.hand_over(step);
        }
        self.seen = step;
    }

    fn hand_over(&mut self, step: u64) {
        self.handed = Some(step);
        // A thread that has ended has reported it.
        if self.steps.send(step).is_ok() {
            self.pending += 1;
        }
    }

    /// Counts what was finished since the last call.
    pub(super) fn look(&mut self) {
        loop {
            match self.done.try_recv() {
                Ok(()) => self.pending = self.pending.saturating_sub(1),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    if std::mem::take(&mut self.pending) > 0 {
                        tracing::warn!(repo = %self.repo, "the upload thread ended early");
                    }
                    break;
                }
            }
        }
    }

    /// At the end of the run: hands over its last model, unless that was done already.
    pub(super) fn push_last(&mut self, step: u64) {
        if self.handed != Some(step) {
            self.hand_over(step);
        }
    }

    /// Waits for what was handed over, for a bounded time and not if the run `is_over`; reports what is left.
    pub(super) fn finish(mut self, is_over: &dyn Fn() -> bool) {
        let start = Instant::now();
        self.look();
        while self.pending > 0 && !is_over() && start.elapsed() < self.patience {
            match self.done.recv_timeout(GLANCE) {
                Ok(()) => self.pending -= 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.look(),
            }
        }
        if self.pending > 0 {
            let (repo, run) = (&self.repo, self.run.display());
            tracing::warn!(%repo, %run, hint = PUSH_LATER, "the upload to {repo} had not ended");
        }
    }
}

/// What the thread needs.
struct Work<'a> {
    run: &'a Path,
    publication: Publication,
    settings: Settings,
}

/// The thread: pushes whenever a step was handed over; steps that come meanwhile share the next push.
fn work(wanted: &Receiver<u64>, done: &Sender<()>, run: &Span, work: &Work<'_>) {
    while wanted.recv().is_ok() {
        let more = wanted.try_iter().count();
        let repo = &work.publication.target.repo;
        let _span = tracing::debug_span!(parent: run, "upload", %repo).entered();
        match push_newest(work) {
            Ok((step, Pushed { url, commit, was_there })) => {
                let done = if was_there { "is on the hub already" } else { "pushed" };
                let model = step.map_or_else(String::new, |step| format!("step {step} "));
                tracing::info!(url, commit, pushed_step = step, "{model}{done}: {url} ({commit})");
            }
            Err(error) => {
                let (causes, run) = (error.causes(), work.run.display());
                let causes: String = causes.iter().map(|cause| format!(": {cause}")).collect();
                tracing::warn!(%run, hint = PUSH_LATER, "no upload to {repo}: {error}{causes}; training goes on");
            }
        }
        if more > 0 {
            tracing::info!(models = more, "a newer model was pushed instead of the {more} before it");
        }
        // One message for each step that was handed over; the receiver is gone when the run is over.
        if (0..=more).any(|_| done.send(()).is_err()) {
            return;
        }
    }
}

/// The newest checkpoint, and not that of a given step, which may have been removed during an earlier push.
fn push_newest(work: &Work<'_>) -> Result<(Option<u64>, Pushed), Error> {
    // On the CPU: the memory of a device belongs to the training.
    let model = Model::open(work.run, false, &Device::Cpu)?;
    let spool = spool_of(&model, &work.publication, &mut |_| {})?;
    let step = model.facts.as_ref().map(|facts| facts.step);
    drop(model);
    Ok((step, spool.push(work.settings.clone())?))
}
