//! A trainer to and from a checkpoint.
//!
//! Weights, averages and moments are named tensors in PyTorch's layout; the rest is a few numbers. The state also holds the
//! resolved configuration, so that a checkpoint alone is a model, and a refused resume can say what changed.

use std::sync::Arc;

use candle_core::Device;
use ddpm_kernels::buffer::{Copied, FlatBuffer};
use ddpm_model::diffusion::{DiffusionError, LossHistory};
use ddpm_model::optim::{Average, Optimizer};
use ddpm_model::params::ParamLayout;
use ddpm_model::unet::UNet;
use ddpm_run::checkpoint::{
    Checkpoint, EpochPosition, MODEL_FILE, NamedTensor, OPTIMIZER_FILE, Snapshot, State, TIMESTEP_SAMPLER_FILE,
    TensorFile, ema_file,
};
use serde_json::Value;

use super::accept::{is_untrained, origin_entry, shuffle_entry};
use super::means::Means;
use super::trainer::Trainer;
use crate::config::{TrainConfig, TrainPlan};
use crate::error::Error;
use crate::exchange::{IMPORTED, Imported};
use crate::known_data::{DATA, KnownData};
use crate::weights::{CONFIG, MOMENTS, checkpoint_config, does_not_fit, flat_from_tensors, named_tensors, read_params};

const MEANS: &str = "metrics_window";
const STEP_STATE: &str = "step_state";
/// The same in checkpoints of version 0.1.0, where only f16 has it.
const LOSS_SCALE: &str = "loss_scale";
/// How often the run has gone back after a divergence, if it has.
const ROLLBACKS: &str = "rollbacks";
const LOSSES: &str = "losses";
const COUNTS: &str = "counts";

/// What a snapshot records about the run beside the trainer's own state.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    /// The plan.
    pub plan: &'a TrainPlan,
    /// The data.
    pub data: &'a KnownData,
    /// Means since the last logged step.
    pub means: &'a Means,
    /// How often the run has gone back after a divergence.
    pub rollbacks: u64,
}

/// What a checkpoint is made of, as the trainer's flat buffers held it; copies of what is on a GPU are still there.
#[derive(Debug)]
pub struct FlatCopy {
    layout: Arc<ParamLayout>,
    /// Weights and averages, by file.
    weights: Vec<(String, Copied)>,
    moments: [Copied; 2],
    history: Option<TensorFile>,
    state: State,
}

impl FlatCopy {
    /// The same on the host, in the order and with the names of the files; may be done beside the training.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn into_snapshot(self) -> Result<Snapshot, Error> {
        let Self { layout, weights, moments, history, state } = self;
        // One after the other: each flat copy is freed as soon as it is in order.
        let in_order = |flat: Copied, prefix: &str| Ok::<_, Error>(named_tensors(&layout, &flat.into_vec()?, prefix));
        let mut files = Vec::new();
        for (name, flat) in weights {
            files.push(TensorFile { name, tensors: in_order(flat, "")? });
        }
        let mut tensors = Vec::new();
        for (name, flat) in MOMENTS.iter().zip(moments) {
            tensors.extend(in_order(flat, &format!("{name}."))?);
        }
        files.push(TensorFile { name: OPTIMIZER_FILE.to_owned(), tensors });
        files.extend(history);
        Ok(Snapshot { files, state })
    }
}

impl Trainer {
    /// A copy of everything, for a checkpoint: all that training must wait for.
    pub fn copy(&self, position: &Position<'_>) -> Result<FlatCopy, Error> {
        let optimizer = &self.learner.optimizer;
        let mut weights = vec![(MODEL_FILE.to_owned(), self.learner.params.buffer().copied()?)];
        for average in optimizer.averages() {
            weights.push((ema_file(average.decay), average.params.buffer().copied()?));
        }
        let [exp_avg, exp_avg_sq] = optimizer.moments().map(FlatBuffer::copied);
        let mut state = self.state(position);
        state.extra.insert(STEP_STATE.to_owned(), self.step_state()?);
        let history = self.timestep_sampler.history().map(history_file);
        Ok(FlatCopy { layout: self.unet().layout().clone(), weights, moments: [exp_avg?, exp_avg_sq?], history, state })
    }

    fn state(&self, position: &Position<'_>) -> State {
        let step = self.steps_taken();
        let images = position.plan.images(step);
        let epoch = EpochPosition::after(images, position.data.images as u64);
        let (hash, fingerprint) = (position.plan.config_hash().to_owned(), position.data.fingerprint.clone());
        let mut state = State::new(step, images, epoch, hash, fingerprint);
        let json = |value: serde_json::Result<Value>| value.unwrap_or(Value::Null);
        state.extra.insert(CONFIG.to_owned(), json(serde_json::to_value(position.plan.config())));
        state.extra.insert(MEANS.to_owned(), json(serde_json::to_value(position.means)));
        state.extra.insert(DATA.to_owned(), json(serde_json::to_value(position.data)));
        state.extra.extend(origin_entry(position.plan.origin()));
        state.extra.extend(shuffle_entry(position.plan.shuffle().for_source(position.data.is_far)));
        if position.rollbacks > 0 {
            state.extra.insert(ROLLBACKS.to_owned(), position.rollbacks.into());
        }
        if let Some(imported) = &self.imported {
            state.extra.insert(IMPORTED.to_owned(), json(serde_json::to_value(imported)));
        }
        state
    }

    /// The trainer that `checkpoint` was made from, and the means since its last logged step. `plan` may go on from it
    /// ([`accept`](super::accept)). What the plan has and the checkpoint lacks begins here: a new average at the one with the
    /// nearest decay, the loss scale and the history of losses as in a new run.
    ///
    /// # Errors
    /// The tensors do not fit the model.
    pub fn restore(plan: &TrainPlan, device: &Device, checkpoint: &Checkpoint) -> Result<(Self, Means), Error> {
        let unet = UNet::new(&plan.config().model)?;
        if is_untrained(checkpoint) {
            return Ok((Self::from_import(plan, device, checkpoint, unet)?, Means::default()));
        }
        let layout = unet.layout().clone();
        let params = read_params(checkpoint, MODEL_FILE, &unet, device)?;
        let before = checkpoint_config(checkpoint)?;
        let average = |&decay: &f64| {
            let file = average_file(&before, decay);
            Ok(Average { decay, params: read_params(checkpoint, &file, &unet, device)? })
        };
        let averages = plan.config().train.ema_decays.iter().map(average).collect::<Result<Vec<_>, Error>>()?;
        let moments = checkpoint.tensors(OPTIMIZER_FILE)?;
        let [exp_avg, exp_avg_sq] = MOMENTS.map(|name| {
            flat_from_tensors(&layout, &moments, &format!("{name}."))
                .map_err(|error| does_not_fit(checkpoint, OPTIMIZER_FILE, error))
        });
        let step = checkpoint.state.step;
        let optimizer =
            Optimizer::restore(plan.config().train.adamw(), &params, exp_avg?, exp_avg_sq?, averages, step)?;
        let means = match checkpoint.state.extra.get(MEANS) {
            Some(value) => {
                serde_json::from_value(value.clone()).map_err(|error| does_not_fit(checkpoint, "state.json", error))?
            }
            None => Means::default(),
        };
        let mut trainer = Self::from_parts(plan, device, unet, &params, optimizer)?;
        trainer.imported = Imported::of(checkpoint);
        let extra = &checkpoint.state.extra;
        if let Some(value) = extra.get(STEP_STATE).or_else(|| extra.get(LOSS_SCALE))
            && !trainer.restore_step_state(value)?
        {
            return Err(unreadable(checkpoint, STEP_STATE));
        }
        let learned_before = before.loss.timestep_sampler == plan.config().loss.timestep_sampler;
        if trainer.timestep_sampler.history().is_some() && learned_before {
            let file = TIMESTEP_SAMPLER_FILE;
            read_history(checkpoint.tensors(file)?)
                .and_then(|history| trainer.timestep_sampler.restore(history))
                .map_err(|error| does_not_fit(checkpoint, file, error))?;
        }
        Ok((trainer, means))
    }

    /// The start of a run from imported weights. Everything else is as at the start of any run, so the optimizer's settings and
    /// the averages may differ from those that the import recorded.
    fn from_import(plan: &TrainPlan, device: &Device, checkpoint: &Checkpoint, unet: UNet) -> Result<Self, Error> {
        let params = read_params(checkpoint, MODEL_FILE, &unet, device)?;
        let optimizer = Optimizer::new(plan.config().train.adamw(), &params)?;
        let mut trainer = Self::from_parts(plan, device, unet, &params, optimizer)?;
        trainer.imported = Imported::of(checkpoint);
        Ok(trainer)
    }
}

/// How often the run of a checkpoint had gone back after a divergence.
pub(super) fn rollbacks_before(checkpoint: &Checkpoint) -> u64 {
    checkpoint.state.extra.get(ROLLBACKS).and_then(Value::as_u64).unwrap_or(0)
}

fn unreadable(checkpoint: &Checkpoint, field: &str) -> Error {
    let error = <serde_json::Error as serde::de::Error>::custom("not the state of a step");
    does_not_fit(checkpoint, &format!("state.json ({field})"), error)
}

/// The file of the average with this decay, or with the nearest one that there was before; the weights where there was none.
fn average_file(before: &TrainConfig, decay: f64) -> String {
    let distance = |there: &&f64| (*there - decay).abs();
    let nearest = before.train.ema_decays.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.map_or_else(|| MODEL_FILE.to_owned(), |&decay| ema_file(decay))
}

fn history_file(history: &LossHistory) -> TensorFile {
    let (losses, shape) = history.losses();
    let tensor = |name: &str, shape: &[usize], data| NamedTensor { name: name.to_owned(), shape: shape.to_vec(), data };
    let tensors = vec![tensor(LOSSES, &shape, losses.to_vec()), tensor(COUNTS, &shape[..1], history.counts())];
    TensorFile { name: TIMESTEP_SAMPLER_FILE.to_owned(), tensors }
}

/// A missing tensor reads as an empty one, which the history refuses.
fn read_history(tensors: Vec<NamedTensor>) -> Result<LossHistory, DiffusionError> {
    let [mut losses, mut counts] = [Vec::new(), Vec::new()];
    for tensor in tensors {
        match tensor.name.as_str() {
            LOSSES => losses = tensor.data,
            COUNTS => counts = tensor.data,
            _ => {}
        }
    }
    LossHistory::from_parts(losses, &counts)
}
