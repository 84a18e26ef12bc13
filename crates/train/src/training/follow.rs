//! The run of a rank that is not the first: it learns what rank 0 learns, and writes nothing.

use std::sync::Arc;
use std::time::Instant;

use ddpm_data::Loader;

use super::cpu_memory::require_room;
use super::loop_of_steps::train_until;
use super::options::{RunOptions, Summary};
use super::ranks::{Ranks, Start};
use super::setup::loader_config;
use super::stop::StopWatch;
use super::trainer::Trainer;
use crate::config::TrainPlan;
use crate::error::Error;

/// Trains until rank 0 is done, from wherever it begins, as often as it goes back.
///
/// # Errors
/// Its own, or that a rank is lost.
pub(super) fn follow(plan: &TrainPlan, options: &RunOptions, ranks: &Ranks) -> Result<Summary, Error> {
    let started = Instant::now();
    let stop = StopWatch::new(started, options.max_hours, options.requests.clone());
    let device = plan.device().open()?;
    require_room(plan.config(), plan.micro_batch().map_or(plan.share().count(), usize::from), &device)?;
    let mut open_options = plan.open_options();
    open_options.stores.stop = Some(Arc::clone(&options.requests.stop));
    let source = ddpm_data::open(&plan.config().data.source, &open_options)?;
    let mut diverged = None;
    loop {
        let start = match Start::follow(ranks) {
            // Rank 0 does not go back: it has told why it ended, and this rank knows that itself.
            Err(told) => return Err(diverged.unwrap_or(told)),
            Ok(start) => start,
        };
        let (end, plan) = (start.end, start.plan(plan));
        let source = start.source(ranks, &source)?;
        let mut trainer = Trainer::new(&plan, &device)?;
        start.bring(ranks, &mut trainer)?;
        trainer.poison(options.poisoned.iter().copied());
        let mut loader = Loader::start(source, loader_config(&plan), trainer.steps_taken())?;
        let step = match train_until(end, &mut trainer, &mut loader, &stop, &mut ()) {
            Ok(stopped) => Ok((stopped, trainer.steps_taken())),
            Err(error @ Error::Diverged { .. }) => {
                diverged = Some(error);
                continue;
            }
            Err(error) => Err(error),
        };
        let (stopped, step) = step?;
        ranks.leave();
        return Ok(Summary {
            run_dir: plan.run_dir(),
            step,
            images: plan.images(step),
            elapsed: started.elapsed(),
            stopped,
            checkpoint: None,
            samples: None,
        });
    }
}
