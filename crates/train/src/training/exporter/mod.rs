//! What a run is doing, over HTTP (`log.metrics_addr`): `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts and stops
//! processes.
//!
//! A thread answers, from numbers that the run leaves behind: nothing that comes in over the network can make a step wait. The address
//! is this machine's own unless another one is named. One that cannot be taken is a warning and no end: a run is worth more than its
//! numbers.

mod http;
mod text;

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use ddpm_run::metrics::MetricRecord;
use ddpm_run::{Status, clock};

use super::watchdog::Watchdog;
use crate::config::{Warning, host_and_port};
use crate::sensors::Sensors;
use http::Answer;

const KEY: &str = "log.metrics_addr";
const HELP: &str = "name another port, or leave it out; a run is not ended by this";

/// What a run would warn of that began now: nothing can be served at `address`.
pub fn metrics_warning(address: &str) -> Option<Warning> {
    let error = if address.is_empty() { None } else { bind(address).err() };
    error.map(|error| Warning { key: KEY, message: format!("\"{address}\": no metrics are served: {error}; {HELP}") })
}

/// To be told what the run does; without an address it does nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Exporter(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    values: Mutex<Values>,
    watchdog: Watchdog,
}

/// The newest numbers.
#[derive(Clone, Debug, Default)]
struct Values {
    run: String,
    device: String,
    rollbacks: u64,
    /// None during the setup.
    status: Option<Status>,
    record: Option<MetricRecord>,
    saved: Option<Saved>,
    sensors: Option<Arc<Sensors>>,
}

/// The newest checkpoint.
#[derive(Clone, Copy, Debug)]
struct Saved {
    step: u64,
    took: Duration,
    /// Since 1970.
    at: Duration,
}

/// Ends the service when dropped.
#[derive(Debug)]
pub(super) struct Service {
    exporter: Exporter,
    /// Where it listens, and whether that is to end.
    listening: Option<(SocketAddr, Arc<AtomicBool>)>,
}

impl Service {
    /// Serves at `address` (`host:port`, or a port of this machine alone) the numbers of the run called `run`; empty: nowhere.
    pub(super) fn start(address: &str, run: &str, watchdog: Watchdog) -> Self {
        let nowhere = Self { exporter: Exporter::default(), listening: None };
        if address.is_empty() {
            return nowhere;
        }
        let values = Mutex::new(Values { run: run.to_owned(), ..Values::default() });
        let shared = Arc::new(Shared { values, watchdog });
        match listen(address, &shared) {
            Ok(listening) => {
                let (at, _) = listening;
                tracing::info!(%at, "metrics are served at http://{at}/metrics");
                Self { exporter: Exporter(Some(shared)), listening: Some(listening) }
            }
            Err(error) => {
                tracing::warn!(key = KEY, help = HELP, "{KEY} = \"{address}\": no metrics are served: {error}");
                nowhere
            }
        }
    }

    pub(super) fn exporter(&self) -> Exporter {
        self.exporter.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some((at, over)) = &self.listening {
            over.store(true, Ordering::Relaxed);
            // A connection of our own, so that the thread stops waiting for one. It is not waited for.
            let host = if at.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], at.port())) } else { *at };
            let _ = TcpStream::connect_timeout(&host, Duration::from_millis(200));
        }
    }
}

fn bind(address: &str) -> io::Result<TcpListener> {
    let place = host_and_port(address).ok_or_else(|| io::Error::other("this is no address"))?;
    let places: Vec<SocketAddr> = place.to_socket_addrs()?.collect();
    TcpListener::bind(&places[..])
}

fn listen(address: &str, shared: &Arc<Shared>) -> io::Result<(SocketAddr, Arc<AtomicBool>)> {
    let listener = bind(address)?;
    let (at, over) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
    let (shared, ends) = (Arc::clone(shared), Arc::clone(&over));
    let answer = move |path: &str| shared.answer(path);
    thread::Builder::new().name("metrics".into()).spawn(move || http::serve(&listener, &ends, answer))?;
    Ok((at, over))
}

impl Exporter {
    /// A try begins.
    pub(super) fn begins(&self, device: &str, rollbacks: u64, sensors: Option<Arc<Sensors>>) {
        self.change(|values| {
            device.clone_into(&mut values.device);
            values.rollbacks = rollbacks;
            values.sensors = sensors;
        });
    }

    /// What the run does now.
    pub(super) fn status(&self, status: &Status) {
        self.change(|values| values.status = Some(status.clone()));
    }

    /// A step was logged.
    pub(super) fn logged(&self, record: &MetricRecord) {
        self.change(|values| values.record = Some(record.clone()));
    }

    /// A checkpoint was written.
    pub(super) fn saved(&self, step: u64, took: Duration) {
        self.change(|values| values.saved = Some(Saved { step, took, at: clock::since_epoch() }));
    }

    fn change(&self, change: impl FnOnce(&mut Values)) {
        if let Some(shared) = &self.0 {
            change(&mut shared.values());
        }
    }
}

impl Shared {
    fn values(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, path: &str) -> Answer {
        let values = self.values().clone();
        let (stalled, setting_up) = (self.watchdog.is_stalled(), values.status.is_none());
        match path {
            "/metrics" => Answer::ok(text::METRICS, text::of(&values, stalled)),
            "/healthz" => Answer::ok(text::PLAIN, "ok\n".to_owned()),
            "/readyz" if stalled => Answer::unavailable("no progress\n"),
            "/readyz" if setting_up => Answer::unavailable("setting up\n"),
            "/readyz" => Answer::ok(text::PLAIN, "ok\n".to_owned()),
            _ => Answer::not_found(),
        }
    }
}

#[cfg(test)]
mod tests;
