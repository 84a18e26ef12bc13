//! A trainer to and from a checkpoint.
//!
//! Weights, averages and moments are named tensors in PyTorch's layout; the rest is a few numbers. The state also holds the
//! resolved configuration, so that a checkpoint alone is a model, and a refused resume can say what changed.

use candle_core::Device;
use ddpm_model::diffusion::{DiffusionError, LossHistory};
use ddpm_model::optim::{Average, Optimizer};
use ddpm_model::unet::UNet;
use ddpm_run::checkpoint::{
    Checkpoint, EpochPosition, MODEL_FILE, NamedTensor, OPTIMIZER_FILE, Snapshot, State, TIMESTEP_SAMPLER_FILE,
    TensorFile, ema_file,
};
use serde_json::Value;

use super::means::Means;
use super::trainer::{Trainer, adamw_config};
use crate::config::{TrainPlan, diff};
use crate::error::Error;
use crate::exchange::{IMPORTED, Imported};
use crate::known_data::{DATA, KnownData};
use crate::weights::{
    CONFIG, MOMENTS, checkpoint_config, does_not_fit, flat_from_tensors, named_tensors, read_params, weights_file,
};

const MEANS: &str = "metrics_window";
const LOSS_SCALE: &str = "loss_scale";
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
}

impl Trainer {
    /// A copy of everything, for a checkpoint.
    pub fn snapshot(&self, position: &Position<'_>) -> Result<Snapshot, Error> {
        let (layout, optimizer) = (self.unet().layout(), &self.learner.optimizer);
        let mut files = vec![weights_file(MODEL_FILE.to_owned(), &self.learner.params)?];
        for average in optimizer.averages() {
            files.push(weights_file(ema_file(average.decay), &average.params)?);
        }
        let mut tensors = Vec::new();
        for (name, moment) in MOMENTS.iter().zip(optimizer.moments()) {
            tensors.extend(named_tensors(layout, &moment.to_vec()?, &format!("{name}.")));
        }
        files.push(TensorFile { name: OPTIMIZER_FILE.to_owned(), tensors });
        files.extend(self.timestep_sampler.history().map(history_file));
        let mut state = self.state(position);
        state.extra.extend(self.loss_scale()?.map(|scale| (LOSS_SCALE.to_owned(), scale)));
        Ok(Snapshot { files, state })
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
        if let Some(imported) = &self.imported {
            state.extra.insert(IMPORTED.to_owned(), json(serde_json::to_value(imported)));
        }
        state
    }

    /// The trainer that `checkpoint` was made from, and the means since its last logged step. `data` is the data that there is
    /// now; with `accept_data` it may be other data than the checkpoint's.
    ///
    /// # Errors
    /// The configuration or the data differs, or the tensors do not fit the model.
    pub fn restore(
        plan: &TrainPlan,
        device: &Device,
        checkpoint: &Checkpoint,
        data: &KnownData,
        accept_data: bool,
    ) -> Result<(Self, Means), Error> {
        refuse_another_run(plan, checkpoint)?;
        if !accept_data && has_other_data(checkpoint, data) {
            return Err(other_data(plan, checkpoint, data));
        }
        let unet = UNet::new(&plan.config().model)?;
        if is_untrained(checkpoint) {
            return Ok((Self::from_import(plan, device, checkpoint, unet)?, Means::default()));
        }
        let layout = unet.layout().clone();
        let params = read_params(checkpoint, MODEL_FILE, &unet, device)?;
        let averages = plan
            .config()
            .train
            .ema_decays
            .iter()
            .map(|&decay| Ok(Average { decay, params: read_params(checkpoint, &ema_file(decay), &unet, device)? }))
            .collect::<Result<Vec<_>, Error>>()?;
        let moments = checkpoint.tensors(OPTIMIZER_FILE)?;
        let [exp_avg, exp_avg_sq] = MOMENTS.map(|name| {
            flat_from_tensors(&layout, &moments, &format!("{name}."))
                .map_err(|error| does_not_fit(checkpoint, OPTIMIZER_FILE, error))
        });
        let step = checkpoint.state.step;
        let optimizer = Optimizer::restore(adamw_config(plan), &params, exp_avg?, exp_avg_sq?, averages, step)?;
        let means = match checkpoint.state.extra.get(MEANS) {
            Some(value) => {
                serde_json::from_value(value.clone()).map_err(|error| does_not_fit(checkpoint, "state.json", error))?
            }
            None => Means::default(),
        };
        let mut trainer = Self::from_parts(plan, device, unet, &params, optimizer)?;
        trainer.imported = Imported::of(checkpoint);
        if let Some(value) = checkpoint.state.extra.get(LOSS_SCALE)
            && !trainer.restore_loss_scale(value)?
        {
            return Err(unreadable(checkpoint, LOSS_SCALE));
        }
        if trainer.timestep_sampler.history().is_some() {
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
        let optimizer = Optimizer::new(adamw_config(plan), &params)?;
        let mut trainer = Self::from_parts(plan, device, unet, &params, optimizer)?;
        trainer.imported = Imported::of(checkpoint);
        Ok(trainer)
    }
}

/// Whether a checkpoint is an import that no step has changed. Its configuration and data can still be chosen.
pub(super) fn is_untrained(checkpoint: &Checkpoint) -> bool {
    checkpoint.state.step == 0 && Imported::of(checkpoint).is_some()
}

/// Whether `data` is other data than that of `checkpoint`. An import has none yet.
pub(super) fn has_other_data(checkpoint: &Checkpoint, data: &KnownData) -> bool {
    !is_untrained(checkpoint) && checkpoint.state.data_fingerprint != data.fingerprint
}

fn other_data(plan: &TrainPlan, checkpoint: &Checkpoint, data: &KnownData) -> Error {
    Error::OtherData {
        checkpoint: checkpoint.path.clone(),
        source_now: plan.config().data.source.clone(),
        then: KnownData::of_checkpoint(checkpoint).map(|then| then.images),
        now: data.images,
    }
}

fn refuse_another_run(plan: &TrainPlan, checkpoint: &Checkpoint) -> Result<(), Error> {
    let state = &checkpoint.state;
    let untrained = is_untrained(checkpoint);
    let mut changes = Vec::new();
    if state.config_hash != plan.config_hash() {
        // No key differs if only the program has changed: keys that the older version did not know have their defaults.
        changes = diff(&checkpoint_config(checkpoint)?, plan.config());
        changes.retain(|change| !untrained || describes_weights(&change.key));
    }
    if !changes.is_empty() {
        let (config, checkpoint) = (plan.path().to_owned(), checkpoint.path.clone());
        return Err(Error::Changed { config, checkpoint, changes });
    }
    Ok(())
}

/// Whether another value of a key would change what the weights mean. Dropout affects only training.
fn describes_weights(key: &str) -> bool {
    (key.starts_with("model.") || key.starts_with("diffusion.")) && key != "model.dropout"
}

fn unreadable(checkpoint: &Checkpoint, field: &str) -> Error {
    let error = <serde_json::Error as serde::de::Error>::custom("not a loss scale");
    does_not_fit(checkpoint, &format!("state.json ({field})"), error)
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
