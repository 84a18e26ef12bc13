//! Requests that are made again: with growing pauses, up to a deadline, and never once the run is to stop.
//!
//! `object_store` can repeat requests too, but not one whose body breaks off, and it does not know a stop. So it is told to try
//! once, and all repetition is here. Its errors are texts with whole addresses in them; what a person gets is the innermost
//! cause alone, in which no query is left.

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use object_store::Error as ObjectError;
use tokio::runtime::Runtime;

use crate::error::{Refusal, shown};
use crate::store::StoreError;

/// The pause after the first failure; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a store that has never answered is tried: an address with a mistake in it must not take minutes.
const FIRST_CONTACT: Duration = Duration::from_secs(20);
/// How often a thread that waits looks up whether it still should.
pub(super) const LOOK_UP: Duration = Duration::from_millis(50);
/// Where clouds tell their machines who they are. A failure there means that no credentials were found elsewhere.
const METADATA: [&str; 3] = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another attempt may succeed.
    Passing(String),
    Refused(Refusal),
    /// The object is another one: what has changed.
    Changed(String),
}

/// How long a store is waited for.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Duration,
    stop: Option<Arc<AtomicBool>>,
    /// Whether it has answered once.
    reached: AtomicBool,
    /// Whether a failure that is tried again has been said since the last success.
    said: AtomicBool,
}

impl Patience {
    pub(super) fn new(deadline: Duration, stop: Option<Arc<AtomicBool>>) -> Self {
        Self { deadline, stop, reached: AtomicBool::new(false), said: AtomicBool::new(false) }
    }

    /// Runs a future to its end, or to that of the run.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T, StoreError> {
        runtime()?.block_on(async {
            tokio::select! {
                done = future => Ok(done),
                () = self.stopped() => Err(StoreError::Stopped),
            }
        })
    }

    /// Whether the run is to stop.
    pub(super) fn is_over(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    async fn stopped(&self) {
        while !self.is_over() {
            tokio::time::sleep(LOOK_UP).await;
        }
    }

    /// Attempts something until it succeeds, fails for good, or the time is over.
    pub(super) async fn patiently<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        place: &Path,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        let reached = self.reached.load(Ordering::Relaxed);
        let deadline = if reached { self.deadline } else { self.deadline.min(FIRST_CONTACT) };
        let (started, mut pause, mut tries) = (Instant::now(), FIRST_PAUSE, 0);
        let mut last = "no answer".to_owned();
        loop {
            tries += 1;
            let left = deadline.saturating_sub(started.elapsed());
            match tokio::time::timeout(left, attempt()).await {
                Ok(Ok(done)) => {
                    self.reached.store(true, Ordering::Relaxed);
                    self.said.store(false, Ordering::Relaxed);
                    return Ok(done);
                }
                Ok(Err(Fault::Changed(what))) => return Err(StoreError::Changed { place: place.into(), what }),
                Ok(Err(Fault::Refused(refusal @ Refusal::NoCredentials))) if reached => last = refusal.to_string(),
                Ok(Err(Fault::Refused(refusal))) => return Err(StoreError::Refused { place: place.into(), refusal }),
                Ok(Err(Fault::Passing(reason))) => last = reason,
                Err(_) => {}
            }
            if started.elapsed() + pause >= deadline {
                let (s, seconds) = (if tries == 1 { "y" } else { "ies" }, started.elapsed().as_secs_f64());
                let reason = format!("{tries} tr{s} in {seconds:.0} s, the last: {last}");
                return Err(StoreError::Unavailable { place: place.into(), reason });
            }
            if !self.said.swap(true, Ordering::Relaxed) {
                let (place, seconds) = (shown(&place.to_string_lossy()).into_owned(), deadline.as_secs_f64());
                tracing::warn!("{place}: {last}; it is tried again for up to {seconds:.0} s");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// All requests of the process: connections are shared, and a thread that waits for one is none of these.
fn runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("store").enable_all().build().map_err(|error| error.to_string())
    });
    made.as_ref().map_err(|reason| StoreError::Unavailable { place: PathBuf::from("network"), reason: reason.clone() })
}

impl From<ObjectError> for Fault {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::NotFound { .. } => Self::Refused(Refusal::Missing),
            _ if METADATA.iter().any(|host| error.to_string().contains(host)) => Self::Refused(Refusal::NoCredentials),
            ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. } => {
                Self::Refused(Refusal::Forbidden(reason(&error)))
            }
            ObjectError::NotSupported { .. } => Self::Refused(Refusal::NoRanges),
            error => {
                let reason = reason(&error);
                match status(&reason) {
                    // Some requests, such as those for a listing, come with the status alone.
                    Some(404) => return Self::Refused(Refusal::Missing),
                    Some(401 | 403) => return Self::Refused(Refusal::Forbidden(reason)),
                    Some(408 | 425 | 429) | None => {}
                    Some(400..500) => return Self::Refused(Refusal::Other(reason)),
                    Some(_) => {}
                }
                if reason.contains("non-partial response") {
                    return Self::Refused(Refusal::NoRanges);
                }
                if reason.contains("LOCATION") {
                    return Self::Refused(Refusal::Region);
                }
                Self::Passing(reason)
            }
        }
    }
}

/// How a failure that carries a status begins, in `object_store`'s words.
const STATUS: &str = "Server returned non-2xx status code: ";

/// The innermost cause; or the status, where a server gave one, with the code that S3 and its like have for it.
fn reason(error: &ObjectError) -> String {
    let mut text = error.to_string();
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        let found = next.to_string();
        if let Some(status) = found.strip_prefix(STATUS) {
            let (status, body) = status.split_once(':').unwrap_or((status, ""));
            let code = body.split_once("<Code>").and_then(|(_, rest)| Some(rest.split_once("</Code>")?.0));
            let code = code.filter(|code| code.len() < 60 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            return code.map_or(status.to_owned(), |code| format!("{status}, {code}"));
        }
        if !found.is_empty() {
            text = found;
        }
        cause = next;
    }
    without_queries(&text)
}

/// The status that such a reason begins with.
fn status(reason: &str) -> Option<u16> {
    reason.get(..3)?.parse().ok().filter(|_| reason.get(3..4).is_none_or(|next| next == " "))
}

/// A text in which every address ends before its query.
fn without_queries(text: &str) -> String {
    let word = |word: &str| match word.split_once('?') {
        Some((before, _)) if before.contains("://") => before.to_owned(),
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
