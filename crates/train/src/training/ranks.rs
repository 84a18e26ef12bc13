//! What the ranks of a training tell each other beside gradients: who they are, where they begin, and when to stop.
//!
//! Only rank 0 knows the run directory. Where it begins or goes on, it sends the others all that a step depends on; they need no file
//! but the data, and a run goes on with any number of ranks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ddpm_collective::{Collective, Patience, Solo, Tcp};
pub use ddpm_collective::{CollectiveError, Launch};
use ddpm_data::{Origin, Shuffle, Source, with_classes};
use ddpm_model::diffusion::LossHistory;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::setup::RunSetup;
use super::stop::StopReason;
use super::trainer::Trainer;
use crate::config::TrainPlan;
use crate::error::Error;

/// The ranks of a training.
pub(super) type Ranks = Arc<dyn Collective>;

/// How long all ranks may take to come: the last of many machines may still be starting.
const RENDEZVOUS: Duration = Duration::from_secs(300);
/// How long a rank that lives may keep the others waiting: rank 0 may draw a large picture.
const CALL: Duration = Duration::from_secs(1800);

/// Meets the other ranks, if there are any; returns this one's part of the plan.
///
/// # Errors
/// Several ranks cannot train so, or they do not meet.
pub(super) fn meet(
    plan: &TrainPlan,
    launch: Option<&Launch>,
    stop: &Arc<AtomicBool>,
) -> Result<(TrainPlan, Ranks), Error> {
    let Some(launch) = launch else { return Ok((plan.clone(), Arc::new(Solo))) };
    let plan = plan.shared_among(launch.rank, launch.world)?;
    let silence = Duration::from_secs(plan.config().run.rank_timeout);
    let patience = Patience { silence, call: CALL, rendezvous: RENDEZVOUS };
    let tcp = Tcp::connect(launch, &agreement(&plan), env!("CARGO_PKG_VERSION"), patience, stop)?;
    Ok((plan, Arc::new(tcp)))
}

/// A hash of what all ranks must have in common: what decides a step, and which calls they make.
fn agreement(plan: &TrainPlan) -> String {
    let config = plan.config();
    let common = json!([plan.config_hash(), config.train, config.log.every, config.log.params_hash]);
    blake3::hash(common.to_string().as_bytes()).to_hex().to_string()
}

/// Why all stop, if one of the ranks has a reason.
///
/// # Errors
/// A rank is lost.
pub(super) fn agree(ranks: &dyn Collective, own: Option<StopReason>) -> Result<Option<StopReason>, Error> {
    const REASONS: [Option<StopReason>; 3] = [None, Some(StopReason::Signal), Some(StopReason::TimeLimit)];
    let code = REASONS.iter().position(|reason| *reason == own).unwrap_or_default() as u8;
    let all = ranks.gather(&[code])?;
    Ok(all.iter().filter_map(|code| REASONS.get(usize::from(*code.first()?)).copied().flatten()).next())
}

/// Where rank 0 begins, for the others; the buffers follow it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// The last step of this process.
    pub(super) end: u64,
    step: u64,
    origin: Origin,
    shuffle: Shuffle,
    step_state: Value,
    /// The losses of every t, and how many there are, where draws depend on them.
    history: Option<(Vec<f32>, Vec<f32>)>,
    class_names: Option<Vec<String>>,
    images: usize,
    fingerprint: String,
}

impl Start {
    /// Sends where `trainer` begins to the other ranks, with which it learns from now on.
    ///
    /// # Errors
    /// A rank is lost.
    pub(super) fn lead(ranks: &Ranks, trainer: &mut Trainer, setup: &RunSetup<'_>, end: u64) -> Result<(), Error> {
        if ranks.world() == 1 {
            return Ok(());
        }
        trainer.join(ranks);
        let history = trainer.timestep_sampler.history();
        let start = Self {
            end,
            step: trainer.steps_taken(),
            origin: setup.plan.origin(),
            shuffle: setup.plan.shuffle().for_source(setup.source.is_far()),
            step_state: trainer.step_state()?,
            history: history.map(|history| (history.losses().0.to_vec(), history.counts())),
            class_names: setup.source.class_names().map(<[String]>::to_vec),
            images: setup.source.len(),
            fingerprint: setup.data.fingerprint.clone(),
        };
        let bytes = serde_json::to_vec(&start).map_err(Error::caused("the start cannot be sent to other ranks"))?;
        ranks.gather(&bytes)?;
        trainer.share_buffers()
    }

    /// Where rank 0 begins.
    ///
    /// # Errors
    /// A rank is lost.
    pub(super) fn follow(ranks: &Ranks) -> Result<Self, Error> {
        let all = ranks.gather(&[])?;
        let bytes = all.into_iter().next().unwrap_or_default();
        serde_json::from_slice(&bytes).map_err(Error::caused("the start that rank 0 sends cannot be read"))
    }

    /// The plan of a rank that begins here.
    pub(super) fn plan(&self, plan: &TrainPlan) -> TrainPlan {
        plan.starting_at(self.origin).shuffled(self.shuffle)
    }

    /// The same images as rank 0's, with the same labels.
    ///
    /// # Errors
    /// They are others.
    pub(super) fn source(&self, ranks: &Ranks, source: &Arc<dyn Source>) -> Result<Arc<dyn Source>, Error> {
        let source = match &self.class_names {
            Some(names) => with_classes(Arc::clone(source), names)?,
            None => Arc::clone(source),
        };
        if (source.len(), source.fingerprint()) != (self.images, self.fingerprint.as_str()) {
            return Err(Error::OtherImages { rank: ranks.rank(), found: source.len(), expected: self.images });
        }
        Ok(source)
    }

    /// Brings a new trainer to where rank 0 is.
    ///
    /// # Errors
    /// A rank is lost, or rank 0 sends what cannot be.
    pub(super) fn bring(self, ranks: &Ranks, trainer: &mut Trainer) -> Result<(), Error> {
        trainer.join(ranks);
        trainer.go_on_after(self.step);
        if !trainer.restore_step_state(&self.step_state)? {
            return Err(Error::other("the state of a step that rank 0 sends cannot be"));
        }
        if let Some((losses, counts)) = self.history {
            trainer.timestep_sampler.restore(LossHistory::from_parts(losses, &counts)?)?;
        }
        trainer.share_buffers()
    }
}
