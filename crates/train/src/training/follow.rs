//! The run of a rank that is not the first: it learns what rank 0 learns, and writes nothing.

use std::time::Instant;

use ddpm_data::Loader;

use super::cpu_memory::require_room;
use super::loop_of_steps::train_until;
use super::options::{RunOptions, Summary};
use super::ranks::{Ranks, Start};
use super::setup::{loader_config, open_data};
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
    require_room(plan.config(), plan.at_once(), &device)?;
    let source = open_data(plan, &options.requests)?;
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
        let stopped = match train_until(end, &mut trainer, &mut loader, &stop, &mut ()) {
            Err(error @ Error::Diverged { .. }) => {
                diverged = Some(error);
                continue;
            }
            ended => ended?,
        };
        ranks.leave();
        let step = trainer.steps_taken();
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
