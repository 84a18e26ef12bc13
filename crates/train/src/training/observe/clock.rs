//! Time, waiting and loading since the last logged step; and the warning of a run whose steps starve.

use std::time::{Duration, Instant};

use ddpm_data::Flow;
use ddpm_run::memory;
use ddpm_run::metrics::{Loading, Timing};

use crate::sensors::Sensors;

/// Steps that wait for images for a larger share of their time starve: a third more would be done without.
const STARVING: f64 = 0.25;

/// See the module.
pub(super) struct Clock {
    since: Instant,
    first_image: u64,
    data_wait: Duration,
    /// What the loader had done at the last logged step, and has done by now.
    then: Flow,
    now: Flow,
    /// The first time holds what happens only once: the first batch, the first step.
    is_first: bool,
    warned: bool,
}

impl Clock {
    pub(super) fn start(images: u64) -> Self {
        Self {
            since: Instant::now(),
            first_image: images,
            data_wait: Duration::ZERO,
            then: Flow::default(),
            now: Flow::default(),
            is_first: true,
            warned: false,
        }
    }

    /// A step has waited; what the loader has done so far.
    pub(super) fn waited(&mut self, wait: Duration, flow: Flow) {
        self.data_wait += wait;
        self.now = flow;
    }

    pub(super) fn timing(&self, images: u64, sensors: Option<&Sensors>) -> Timing {
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        let flow = self.now.since(&self.then);
        Timing {
            images_per_s: (images - self.first_image) as f64 / elapsed,
            data_wait: self.data_wait.as_secs_f64() / elapsed,
            memory_bytes: memory::resident(),
            loading: flow.reading().map(|reading| Loading {
                queue: flow.queue,
                file_bytes_per_s: flow.bytes as f64 / elapsed,
                decoded_per_s: flow.images as f64 / elapsed,
                reading,
            }),
            gpus: sensors.map(Sensors::read).unwrap_or_default().into_iter().map(|(_, state)| state).collect(),
        }
    }

    /// A step was logged with this timing: the next time begins.
    pub(super) fn logged(&mut self, images: u64, timing: &Timing) {
        let warned = self.warned || (!self.is_first && warn_of_starving(timing));
        *self = Self { then: self.now, now: self.now, is_first: false, warned, ..Self::start(images) };
    }
}

/// Warns where the steps starve; whether they do.
fn warn_of_starving(timing: &Timing) -> bool {
    let Some((what, loading)) = timing.waits_for().zip(timing.loading).filter(|_| timing.data_wait >= STARVING) else {
        return false;
    };
    let (wait, reading) = (100.0 * timing.data_wait, 100.0 * loading.reading);
    let megabytes = loading.file_bytes_per_s / 1e6;
    let (hint, data_wait) = (format!("starved-{what}"), timing.data_wait);
    tracing::warn!(
        data_wait,
        hint,
        "steps wait for images {wait:.0}% of the time, waiting for {what}: {reading:.0}% of the loader's work is reading \
         ({megabytes:.1} MB/s)"
    );
    true
}
