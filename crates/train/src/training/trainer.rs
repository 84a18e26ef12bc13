//! A training between its steps: the inputs of the next step, and the outcomes of those before.
//!
//! The step itself (`step`) runs on the device, now or later (`engine`). Before it, this module draws timesteps and labels;
//! after it, it reads the losses. Only full memory or a failure makes it wait for a GPU.

mod parts;
mod replica;
mod suspect;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use ddpm_data::Batch;
use ddpm_kernels::ops::diffusion::{SampleConstants, place};
use ddpm_kernels::optim::StepState;
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DiffusionProcess, DrawnTimesteps, Loss, TimestepSampler};
use ddpm_model::optim::{LrConfig, Optimizer};
use ddpm_model::params::Params;
use ddpm_model::unet::UNet;

use self::parts::{any_inputs, learner, require_room};
use self::suspect::Suspect;
pub use self::suspect::{Diagnosis, LayerGradient};
use super::outcome::{Phases, SampleLosses, StepOutcome};
use super::room::Room;
use super::step::{Learner, RESULTS, StepInputs};
use crate::config::{Cadence, TrainPlan};
use crate::engine::{Engine, Results, Slots, profiled};
use crate::error::Error;
use crate::exchange::Imported;

/// The numbers of a step's result tensors.
const LOSSES: usize = 0;
const STATE: usize = 1;

/// Everything a training reads and changes.
#[derive(Debug)]
pub struct Trainer {
    pub(super) learner: Learner,
    pub(super) process: Arc<DiffusionProcess>,
    pub(super) timestep_sampler: TimestepSampler,
    loss: Loss,
    lr: LrConfig,
    label_dropout: Option<LabelDropout>,
    engine: Engine,
    slots: Slots<StepInputs>,
    results: Results,
    room: Room,
    /// Steps whose results have not been read, oldest first.
    pending: VecDeque<Pending>,
    /// When the last step was computed or queued.
    last: Instant,
    /// Outcomes that were not yet returned.
    finished: VecDeque<StepOutcome>,
    /// The step that ended the training.
    suspect: Option<Suspect>,
    /// See [`Trainer::poison`].
    poisoned: HashSet<u64>,
    /// When the weights are hashed, and the newest hash with its step.
    hashed: Cadence,
    params_hash: Option<(u64, String)>,
    /// What the run was imported from; every checkpoint records it.
    pub(super) imported: Option<Imported>,
}

/// Replaces labels by the class "none", for classifier-free guidance.
#[derive(Clone, Copy, Debug)]
struct LabelDropout {
    probability: f64,
    none: u32,
}

/// A step that was computed or queued.
#[derive(Debug)]
struct Pending {
    /// From 1.
    number: u64,
    /// Its inputs on the host, and which images they are.
    inputs: StepInputs,
    ids: Vec<u64>,
    drawn: DrawnTimesteps,
    lr: f64,
    phases: Phases,
}

impl Trainer {
    /// A new model for `plan` on `device`.
    ///
    /// # Errors
    /// A setting is invalid, or the device cannot be used.
    pub fn new(plan: &TrainPlan, device: &Device) -> Result<Self, Error> {
        let unet = UNet::new(&plan.config().model)?;
        require_room(unet.layout().len(), plan.config().train.ema_decays.len(), device)?;
        let params = Params::initialise(unet.layout(), plan.config().run.seed, device)?;
        let optimizer = Optimizer::new(plan.config().train.adamw(), &params)?;
        Self::from_parts(plan, device, unet, &params, optimizer)
    }

    /// A trainer around weights and an optimizer that exist.
    pub(super) fn from_parts(
        plan: &TrainPlan,
        device: &Device,
        unet: UNet,
        params: &Params,
        optimizer: Optimizer,
    ) -> Result<Self, Error> {
        let config = plan.config();
        let process = Arc::new(DiffusionProcess::new(&config.diffusion)?);
        let timesteps = config.diffusion.num_train_timesteps;
        let label_dropout = plan
            .classes()
            .filter(|_| config.loss.label_dropout > 0.0)
            .map(|classes| LabelDropout { probability: config.loss.label_dropout, none: classes as u32 - 1 });
        let learner = learner(plan, device, unet, params, optimizer)?;
        let engine = Engine::new(device)?;
        let slots = engine.slots(&any_inputs(plan, &learner)?)?;
        let results = engine.results(vec![learner.losses.clone(), learner.judged.state_tensor().clone()])?;
        Ok(Self {
            learner,
            process,
            timestep_sampler: TimestepSampler::new(&config.loss, config.run.seed, timesteps)?,
            loss: Loss::new(&config.loss, &config.diffusion)?,
            lr: LrConfig {
                lr: config.train.lr,
                schedule: config.train.lr_schedule,
                warmup_steps: config.train.warmup_steps,
                total_steps: config.train.steps,
            },
            label_dropout,
            engine,
            slots,
            results,
            room: Room::new(plan),
            pending: VecDeque::new(),
            last: Instant::now(),
            finished: VecDeque::new(),
            suspect: None,
            poisoned: HashSet::new(),
            hashed: if config.log.params_hash { plan.log_cadence() } else { Cadence::NEVER },
            params_hash: None,
            imported: None,
        })
    }

    /// Steps done.
    pub fn steps_taken(&self) -> u64 {
        self.learner.optimizer.steps_taken()
    }

    /// The diffusion process.
    pub fn process(&self) -> &DiffusionProcess {
        &self.process
    }

    /// The network.
    pub fn unet(&self) -> &UNet {
        &self.learner.unet
    }

    /// The format that the network computes in.
    pub fn dtype(&self) -> DType {
        self.learner.params.dtype()
    }

    /// The weights to draw pictures with: the first moving average, or the raw weights if there is none; in the network's
    /// number format.
    ///
    /// # Errors
    /// The device fails.
    pub fn sampling_params(&self) -> Result<Params, ModelError> {
        match self.learner.optimizer.averages().first() {
            Some(average) => average.params.computing_in(self.dtype()),
            None => Ok(self.learner.params.clone()),
        }
    }

    /// Makes one step with `batch`; on a GPU the step is only queued. See [`outcomes`](Self::outcomes).
    ///
    /// # Errors
    /// The loss or the gradient is not finite; the weights are then those before the step.
    pub fn step(&mut self, mut batch: Batch) -> Result<(), Error> {
        // A sampler that learns from the losses needs those of the step before.
        let learns = self.timestep_sampler.history().is_some();
        self.read(if learns { 0 } else { self.engine.most_pending().saturating_sub(1) })?;
        let lr = self.lr.at(self.steps_taken());
        let ids = std::mem::take(&mut batch.ids);
        let (inputs, drawn) = self.inputs(batch, &ids, lr)?;
        let number = self.steps_taken();
        let sent = self.slots.send(inputs.clone()).map_err(Error::from);
        if let Err(error) = sent.and_then(|inputs| self.room.step(&mut self.engine, &mut self.learner, &inputs)) {
            self.learner.optimizer.uncount_from(number);
            return Err(self.learner.ranks.failure().map_or(error, Error::from));
        }
        self.results.ask()?;
        // Where phases are not timed, the time since the step before at least says how long a step takes.
        let unseen = Phases { forward: self.last.elapsed(), ..Phases::default() };
        self.last = Instant::now();
        let phases = self.engine.phases().unwrap_or(unseen);
        self.pending.push_back(Pending { number, inputs, ids, drawn, lr, phases });
        self.read(self.engine.most_pending())
    }

    /// The outcomes of the steps since the last call, oldest first; with `all`, also of those that a GPU is still computing.
    ///
    /// # Errors
    /// As [`step`](Self::step), detected only now.
    pub fn outcomes(&mut self, all: bool) -> Result<Vec<StepOutcome>, Error> {
        if all {
            self.read(0)?;
        }
        Ok(self.finished.drain(..).collect())
    }

    /// Makes one step with `batch` and times its phases. A GPU otherwise replays a step as a whole; here it runs operation by
    /// operation, the host waits for the times, and with `show` a profiler sees the step. If the host is slower than the GPU,
    /// the phases are longer than in a replayed step.
    pub(crate) fn time_step(&mut self, batch: Batch, show: bool) -> Result<Phases, Error> {
        self.read(0)?;
        // A recording keeps its memory, and there may not be enough left for a step beside it.
        self.give_back_memory()?;
        self.engine.time_next_run();
        let device = self.learner.params.buffer().device().clone();
        if show {
            profiled(&device, || self.step(batch))?;
        } else {
            self.step(batch)?;
        }
        self.read(0)?;
        Ok(self.finished.back().map(|outcome| outcome.phases).unwrap_or_default())
    }

    /// Frees the memory of a GPU's recorded step; the next step is recorded again. Returns whether there was any.
    ///
    /// # Errors
    /// A step queued before has failed.
    pub(crate) fn give_back_memory(&mut self) -> Result<bool, Error> {
        Ok(self.engine.give_back_memory()?)
    }

    /// Images computed at once: as configured, or as many as fit.
    pub fn images_at_once(&self) -> usize {
        self.learner.micro_batch
    }

    /// For tests of what follows a divergence: the loss of the images with these numbers in the source is NaN from now on.
    pub fn poison(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.poisoned.extend(ids);
    }

    /// Messages for the user since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.room.notices)
    }

    /// The inputs of the next step, made from `batch`, and the timesteps drawn for it; counts that step.
    fn inputs(&mut self, batch: Batch, ids: &[u64], lr: f64) -> Result<(StepInputs, DrawnTimesteps), Error> {
        let (step, share, host) = (self.steps_taken(), self.learner.share, Device::Cpu);
        let shape = batch.shape;
        let labels = self.labels(step, batch.labels);
        // For the whole global batch, for its losses come from all ranks.
        let mut drawn = self.timestep_sampler.draw(step, 0, share.of());
        // Of which a measurement has fewer images.
        let own = share.first()..share.first() + shape[0].min(share.count());
        for (_, weight) in ids.iter().zip(&mut drawn.weights[own.clone()]).filter(|(id, _)| self.poisoned.contains(id))
        {
            *weight = f32::NAN;
        }
        let (own, weights) = (&drawn.timesteps[own.clone()], &drawn.weights[own]);
        let samples = self.loss.constants(&self.process, own, weights, share.of())?;
        let timesteps: Vec<f32> = own.iter().map(|t| t.index() as f32).collect();
        let inputs = || -> Result<_, ModelError> {
            Ok(StepInputs {
                images: Tensor::from_vec(batch.images, &shape, &host)?,
                samples: SampleConstants::tensor(&samples, &host)?,
                condition: self.learner.unet.condition(&timesteps, labels.as_deref(), &host)?,
                place: Tensor::new(&place(step, share.first() as u64), &host)?,
                settings: Tensor::new(self.learner.optimizer.count_step(lr).words(), &host)?,
            })
        };
        Ok((inputs()?, drawn))
    }

    /// The labels, some of them dropped where the model learns guidance.
    fn labels(&self, step: u64, labels: Option<Vec<u32>>) -> Option<Vec<u32>> {
        let mut labels = labels?;
        if let Some(dropout) = self.label_dropout {
            let philox = Philox::new(self.learner.seed, Purpose::LabelDropout);
            for (position, label) in (self.learner.share.first()..).zip(&mut labels) {
                if philox.uniform(step, position as u64) < dropout.probability {
                    *label = dropout.none;
                }
            }
        }
        Some(labels)
    }

    /// Waits for and reads the results of the oldest steps until `most` are left. Losses come back only here, those of all ranks.
    fn read(&mut self, most: usize) -> Result<(), Error> {
        while self.results.pending() > most {
            let Some(results) = self.results.read()? else { break };
            let Some(step) = self.pending.pop_front() else { break };
            let outcome = self.outcome(step, &results)?;
            self.timestep_sampler.observe(&outcome.timesteps, &outcome.unweighted);
            self.finished.push_back(outcome);
        }
        Ok(())
    }

    /// The outcome of a step.
    fn outcome(&mut self, step: Pending, results: &[Vec<f64>]) -> Result<StepOutcome, Error> {
        let Pending { number, inputs, ids, drawn, lr, phases } = step;
        let (losses, state) = (&results[LOSSES], StepState::from_numbers(&results[STATE])?);
        let n = drawn.timesteps.len();
        let column = |at: usize| losses.iter().skip(at).step_by(RESULTS).take(n).copied();
        let vlb = self.loss.has_bound().then(|| column(2).collect());
        let losses = SampleLosses { per_sample: column(0).collect(), mse: column(1).collect(), vlb };
        let mut outcome = StepOutcome::new(number, lr, state, n);
        outcome.take_in(drawn, losses, self.process.schedule().len());
        outcome.phases = phases;
        let Some(step) = state.diverged else { return Ok(outcome) };
        // Neither this step nor any queued after it has changed anything.
        self.learner.optimizer.uncount_from(step);
        let what = match outcome.state.bad_steps {
            0 | 1 => outcome.complaint(),
            bad => format!("{}, and {bad} steps in a row were bad", outcome.complaint()),
        };
        self.suspect = Some(Suspect { inputs, ids, outcome });
        Err(Error::Diverged { step, what, report: None })
    }
}

#[cfg(test)]
pub(super) mod tests;
