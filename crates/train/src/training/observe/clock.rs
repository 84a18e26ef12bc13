//! Time, waiting and loading since the last logged step; and the warning of a run whose steps starve.

use std::time::{Duration, Instant};

use ddpm_data::Flow;
use ddpm_run::memory;
use ddpm_run::metrics::{Loading, Timing};

use crate::sensors::Sensors;

/// Steps that wait for images for a larger share of their time starve: a third more would be done without.
const STARVING: f64 = 0.25;
/// So long they have waited since they began to starve before it is said: a disk may be slow for a moment.
const LONG: Duration = Duration::from_secs(1);

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
    /// Waited since the steps began to starve.
    starved: Duration,
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
            starved: Duration::ZERO,
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
        let starves = !self.is_first && timing.data_wait >= STARVING;
        let starved = if starves { self.starved + self.data_wait } else { Duration::ZERO };
        let warned = self.warned || (starved >= LONG && warn_of_starving(timing));
        *self = Self { then: self.now, now: self.now, is_first: false, starved, warned, ..Self::start(images) };
    }
}

/// Warns that the steps starve, if it is known what for; whether it is.
fn warn_of_starving(timing: &Timing) -> bool {
    let Some((what, loading)) = timing.waits_for().zip(timing.loading) else { return false };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a run has been warned after periods of these waits, in milliseconds, and shares.
    fn warned(periods: &[(u64, f64)]) -> bool {
        let mut clock = Clock::start(0);
        for &(wait, data_wait) in periods {
            let loading = Some(Loading { queue: 0, file_bytes_per_s: 1.0, decoded_per_s: 1.0, reading: 0.9 });
            let timing = Timing { images_per_s: 1.0, data_wait, memory_bytes: None, loading, gpus: Vec::new() };
            clock.waited(Duration::from_millis(wait), Flow::default());
            clock.logged(0, &timing);
        }
        clock.warned
    }

    #[test]
    fn a_run_is_warned_when_its_steps_starve_for_long_and_neither_of_its_first_batch_nor_of_a_moment() {
        assert!(warned(&[(0, 0.0), (600, 0.5), (600, 0.5)]));
        assert!(!warned(&[(5000, 0.9)]), "the first period");
        assert!(!warned(&[(0, 0.0), (600, 0.5)]), "a moment");
        assert!(!warned(&[(0, 0.0), (600, 0.5), (100, 0.1), (600, 0.5)]), "it was over in between");
    }
}
