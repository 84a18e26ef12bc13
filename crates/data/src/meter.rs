//! Where the time of the loader's threads goes: reading, decoding, fitting; so that a slow disk can be told from slow decoding.
//!
//! Each thread has a [`Gauge`] of its own and writes a few numbers when it goes on to the next stage, some 0.1 us an image. A stage
//! that still lasts counts up to now: a read that hangs is seen while it hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a thread does with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waits for its bytes; where they lie in a compressed table, unpacks them.
    Read,
    /// Makes pixels of them.
    Decode,
    /// Cuts and resizes.
    Fit,
}

const STAGES: usize = 3;
/// Bits of [`Gauge::now`] that say which stage it is; 0 for none.
const BITS: u32 = 2;

/// The work of one thread.
#[derive(Debug)]
pub(crate) struct Gauge {
    begun: Instant,
    /// Nanoseconds of each stage, as far as it has ended.
    done: [AtomicU64; STAGES],
    /// When the stage that lasts began, in nanoseconds since `begun`, and which it is.
    now: AtomicU64,
    images: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Gauge {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            done: Default::default(),
            now: AtomicU64::new(0),
            images: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }
}

impl Gauge {
    /// This stage begins, and the one before ends; `None` for a thread that has nothing to do.
    pub(crate) fn enter(&self, stage: Option<Stage>) {
        let (time, code) = (self.nanoseconds(), stage.map_or(0, |stage| stage as u64 + 1));
        let before = self.now.swap(time << BITS | code, Ordering::Relaxed);
        if let Some(done) = self.done.get(stage_of(before)) {
            done.fetch_add(time.saturating_sub(before >> BITS), Ordering::Relaxed);
        }
    }

    /// An image of so many encoded bytes has become pixels.
    pub(crate) fn decoded(&self, bytes: usize) {
        self.images.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn nanoseconds(&self) -> u64 {
        // 2^62 of them are 146 years.
        self.begun.elapsed().as_nanos() as u64
    }

    /// Adds what was done so far.
    pub(crate) fn add_to(&self, flow: &mut Flow) {
        let now = self.now.load(Ordering::Relaxed);
        for (stage, (total, done)) in flow.times.iter_mut().zip(&self.done).enumerate() {
            let lasting = if stage == stage_of(now) { self.nanoseconds().saturating_sub(now >> BITS) } else { 0 };
            *total += Duration::from_nanos(done.load(Ordering::Relaxed) + lasting);
        }
        flow.images += self.images.load(Ordering::Relaxed);
        flow.bytes += self.bytes.load(Ordering::Relaxed);
    }
}

/// The stage's place in an array; none of them where there is no stage.
fn stage_of(now: u64) -> usize {
    ((now & ((1 << BITS) - 1)) as usize).wrapping_sub(1)
}

/// What the threads of a [`Loader`](crate::Loader) have done, all together, since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Of each [`Stage`].
    pub(crate) times: [Duration; STAGES],
    /// Images that became pixels.
    pub images: u64,
    /// Of their files.
    pub bytes: u64,
    /// Finished batches that wait for the training step now.
    pub queue: usize,
}

impl Flow {
    /// What has been done since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let time = |stage: usize| self.times[stage].saturating_sub(before.times[stage]);
        Self {
            times: std::array::from_fn(time),
            images: self.images.saturating_sub(before.images),
            bytes: self.bytes.saturating_sub(before.bytes),
            queue: self.queue,
        }
    }

    /// Share of the threads' work, 0 to 1, that was waiting for bytes; `None` before there was any.
    pub fn reading(&self) -> Option<f64> {
        self.share(Stage::Read)
    }

    /// Likewise, decoding.
    pub fn decoding(&self) -> Option<f64> {
        self.share(Stage::Decode)
    }

    /// Likewise, cutting and resizing.
    pub fn fitting(&self) -> Option<f64> {
        self.share(Stage::Fit)
    }

    fn share(&self, stage: Stage) -> Option<f64> {
        let all: Duration = self.times.iter().sum();
        (!all.is_zero()).then(|| self.times[stage as usize].as_secs_f64() / all.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(gauge: &Gauge) -> Flow {
        let mut flow = Flow::default();
        gauge.add_to(&mut flow);
        flow
    }

    #[test]
    fn a_stage_that_lasts_is_counted_and_one_that_ended_does_not_grow() {
        let gauge = Gauge::default();
        assert_eq!(flow(&gauge).reading(), None);
        gauge.enter(Some(Stage::Read));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(flow(&gauge).reading(), Some(1.0), "nothing has ended yet");
        gauge.enter(Some(Stage::Decode));
        let read = flow(&gauge).times[0];
        assert!(read >= Duration::from_millis(5));
        gauge.decoded(70);
        gauge.enter(Some(Stage::Fit));
        gauge.enter(None);
        let end = flow(&gauge);
        assert_eq!((end.times[0], end.images, end.bytes), (read, 1, 70));
        assert_eq!(flow(&gauge), end, "a thread without work does not count");
        let shares = [end.reading(), end.decoding(), end.fitting()].map(Option::unwrap_or_default);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
        assert_eq!(end.since(&end).reading(), None);
    }
}
