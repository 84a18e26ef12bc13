//! The loop: batch after batch, step after step, until the end or a reason to stop.
//!
//! What happens beside the steps is [`Observe`]'s: metrics, checkpoints, pictures. Of several ranks one has observers; the others
//! have none, and learn the same.

use std::time::{Duration, Instant};

use ddpm_data::{Flow, Loader, Unreadable};

use super::ranks::agree;
use super::stop::{StopReason, StopWatch};
use super::trainer::Trainer;
use super::watchdog::Activity;
use crate::error::Error;

/// What the loop tells of its course.
pub(super) trait Observe {
    /// How long one more step and what follows the last one may take.
    fn time_to_stop(&self) -> Duration;

    /// The loop begins to do this.
    fn begins(&mut self, activity: Activity);

    /// The loop has waited for a batch; what the loader has done so far.
    fn waited(&mut self, wait: Duration, flow: Flow);

    /// Images that step `step` needed could not be read, and others took their place.
    fn met(&mut self, step: u64, unreadable: Vec<Unreadable>);

    /// A step is done, or, on a GPU, queued.
    ///
    /// # Errors
    /// A step has failed.
    fn after_step(&mut self, trainer: &mut Trainer) -> Result<(), Error>;
}

/// Nobody observes.
impl Observe for () {
    fn time_to_stop(&self) -> Duration {
        Duration::ZERO
    }

    fn begins(&mut self, _: Activity) {}

    fn waited(&mut self, _: Duration, _: Flow) {}

    fn met(&mut self, _: u64, _: Vec<Unreadable>) {}

    fn after_step(&mut self, trainer: &mut Trainer) -> Result<(), Error> {
        trainer.outcomes(false).map(drop)
    }
}

/// Makes the steps up to `end`; returns why it stopped before, if it did.
///
/// # Errors
/// The data or a step fails, or training diverges.
pub(super) fn train_until(
    end: u64,
    trainer: &mut Trainer,
    loader: &mut Loader,
    stop: &StopWatch,
    observers: &mut impl Observe,
) -> Result<Option<StopReason>, Error> {
    while trainer.steps_taken() < end {
        let alone = trainer.ranks().world() == 1;
        if let Some(reason) = stop.reason(observers.time_to_stop()).filter(|_| alone) {
            return Ok(Some(reason));
        }
        let number = trainer.steps_taken() + 1;
        let step = tracing::trace_span!("step", step = number).entered();
        observers.begins(Activity::Data);
        let waiting = Instant::now();
        let next = tracing::trace_span!("data").in_scope(|| loader.next_unless(&|| stop.is_over()));
        observers.met(number, loader.take_warnings());
        loader.take_notices().iter().for_each(|notice| tracing::warn!("data.source: {notice}"));
        let next = next?;
        // Not before the images are there: a rank that is told to stop while it waits for them must make no other call than those that
        // have theirs.
        if !alone && let Some(reason) = agree(trainer.ranks(), stop.reason(observers.time_to_stop()))? {
            return Ok(Some(reason));
        }
        let Some(batch) = next else { continue };
        observers.waited(waiting.elapsed(), loader.flow());
        observers.begins(Activity::Step);
        trainer.step(batch)?;
        trainer.compare_replicas()?;
        step.exit();
        observers.after_step(trainer)?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::super::setup::loader_config;
    use super::super::stop::Requests;
    use super::super::trainer::tests::plan;
    use super::*;

    /// Counts what it is told.
    #[derive(Default)]
    struct Counter {
        steps: usize,
        waits: usize,
    }

    impl Observe for Counter {
        fn time_to_stop(&self) -> Duration {
            Duration::ZERO
        }

        fn begins(&mut self, _: Activity) {}

        fn waited(&mut self, _: Duration, _: Flow) {
            self.waits += 1;
        }

        fn met(&mut self, _: u64, unreadable: Vec<Unreadable>) {
            assert_eq!(unreadable, []);
        }

        fn after_step(&mut self, trainer: &mut Trainer) -> Result<(), Error> {
            self.steps += trainer.outcomes(true)?.len();
            Ok(())
        }
    }

    /// The weights after four steps.
    fn learn(observers: &mut impl Observe) -> Vec<f32> {
        let plan = plan(4);
        let mut trainer = Trainer::new(&plan, &Device::Cpu).unwrap();
        let source = ddpm_data::open(&plan.config().data.source, &plan.open_options()).unwrap();
        let mut loader = Loader::start(source, loader_config(&plan), 0).unwrap();
        let stop = StopWatch::new(Instant::now(), None, Requests::default());
        assert_eq!(train_until(4, &mut trainer, &mut loader, &stop, observers).unwrap(), None);
        trainer.sampling_params().unwrap().buffer().to_vec().unwrap()
    }

    #[test]
    fn a_rank_without_observers_learns_what_one_with_them_learns() {
        let mut counter = Counter::default();
        assert_eq!(learn(&mut counter), learn(&mut ()));
        assert_eq!((counter.steps, counter.waits), (4, 4));
    }
}
