//! A trainer to and from a checkpoint.
//!
//! Weights, averages and moments travel as named tensors in PyTorch's layout; the rest is a few numbers. The resolved
//! configuration is in the state too, so that a checkpoint alone is a model, and a refused resume can say what changed.

use candle_core::Device;
use ddpm_model::diffusion::{DiffusionError, LossHistory};
use ddpm_model::optim::{Average, Optimizer};
use ddpm_model::params::{ParamLayout, Params};
use ddpm_model::unet::UNet;
use ddpm_model::unet::naming::FileTensor;
use serde_json::Value;

use super::step::{Trainer, adamw_config};
use super::window::Window;
use crate::config::{TrainConfig, TrainPlan, diff};
use crate::error::{ExitCode, Failure};
use crate::exchange::{IMPORTED, Imported};
use ddpm_run::checkpoint::{
    Checkpoint, EpochPosition, MODEL_FILE, NamedTensor, OPTIMIZER_FILE, Snapshot, State, TIMESTEP_SAMPLER_FILE,
    TensorFile, ema_file,
};

/// The field of the state that holds the configuration.
pub(crate) const CONFIG: &str = "config";
const WINDOW: &str = "metrics_window";
#[cfg(feature = "cuda")]
const LOSS_SCALE: &str = "loss_scale";
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];
const LOSSES: &str = "losses";
const COUNTS: &str = "counts";

/// What a snapshot says about the run besides the trainer's own state.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    /// The plan.
    pub plan: &'a TrainPlan,
    /// Fingerprint of the data.
    pub data_fingerprint: &'a str,
    /// Number of images in the data.
    pub data_len: usize,
    /// Means since the last logged step.
    pub window: &'a Window,
}

impl Trainer {
    /// A copy of everything, for a checkpoint.
    pub fn snapshot(&self, position: &Position<'_>) -> Result<Snapshot, Failure> {
        let layout = self.unet.layout();
        let mut files = vec![weights_file(MODEL_FILE.to_owned(), &self.params)?];
        for average in self.optimizer.averages() {
            files.push(weights_file(ema_file(average.decay), &average.params)?);
        }
        let mut tensors = Vec::new();
        for (name, moment) in MOMENTS.iter().zip(self.optimizer.moments()) {
            tensors.extend(named_tensors(layout, &moment.to_vec()?, &format!("{name}.")));
        }
        files.push(TensorFile { name: OPTIMIZER_FILE.to_owned(), tensors });
        files.extend(self.timestep_sampler.history().map(history_file));
        #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "only a GPU has more to say"))]
        let mut state = self.state(position);
        #[cfg(feature = "cuda")]
        state.extra.extend(self.loss_scale()?.map(|scale| (LOSS_SCALE.to_owned(), scale)));
        Ok(Snapshot { files, state })
    }

    fn state(&self, position: &Position<'_>) -> State {
        let step = self.steps_taken();
        let images = position.plan.images(step);
        let epoch = EpochPosition::after(images, position.data_len as u64);
        let (hash, fingerprint) = (position.plan.config_hash().to_owned(), position.data_fingerprint.to_owned());
        let mut state = State::new(step, images, epoch, hash, fingerprint);
        let json = |value: serde_json::Result<Value>| value.unwrap_or(Value::Null);
        state.extra.insert(CONFIG.to_owned(), json(serde_json::to_value(position.plan.config())));
        state.extra.insert(WINDOW.to_owned(), json(serde_json::to_value(position.window)));
        if let Some(imported) = &self.imported {
            state.extra.insert(IMPORTED.to_owned(), json(serde_json::to_value(imported)));
        }
        state
    }

    /// The trainer that `checkpoint` was made of, and the means it had begun.
    ///
    /// # Errors
    /// Exit code 2 if the configuration or the data is another, 6 if the tensors do not fit the model.
    pub fn restore(
        plan: &TrainPlan,
        device: &Device,
        checkpoint: &Checkpoint,
        data_fingerprint: &str,
    ) -> Result<(Self, Window), Failure> {
        refuse_another_run(plan, checkpoint, data_fingerprint)?;
        let unet = UNet::new(&plan.config().model)?;
        if is_untrained(checkpoint) {
            return Ok((Self::from_import(plan, device, checkpoint, unet)?, Window::default()));
        }
        let layout = unet.layout().clone();
        let params = read_params(checkpoint, MODEL_FILE, &unet, device)?;
        let averages = plan
            .config()
            .train
            .ema_decays
            .iter()
            .map(|&decay| Ok(Average { decay, params: read_params(checkpoint, &ema_file(decay), &unet, device)? }))
            .collect::<Result<Vec<_>, Failure>>()?;
        let moments = checkpoint.tensors(OPTIMIZER_FILE)?;
        let [exp_avg, exp_avg_sq] = MOMENTS.map(|name| {
            flat_from_tensors(&layout, &moments, &format!("{name}."))
                .map_err(|error| does_not_fit(checkpoint, OPTIMIZER_FILE, &error))
        });
        let step = checkpoint.state.step;
        let optimizer = Optimizer::restore(adamw_config(plan), &params, exp_avg?, exp_avg_sq?, averages, step)?;
        let window = match checkpoint.state.extra.get(WINDOW) {
            Some(value) => {
                serde_json::from_value(value.clone()).map_err(|error| does_not_fit(checkpoint, "state.json", &error))?
            }
            None => Window::default(),
        };
        let mut trainer = Self::from_parts(plan, device, unet, &params, optimizer)?;
        trainer.imported = Imported::of(checkpoint);
        #[cfg(feature = "cuda")]
        if let Some(value) = checkpoint.state.extra.get(LOSS_SCALE)
            && !trainer.restore_loss_scale(value)?
        {
            return Err(unreadable(checkpoint, LOSS_SCALE));
        }
        if trainer.timestep_sampler.history().is_some() {
            let file = TIMESTEP_SAMPLER_FILE;
            read_history(checkpoint.tensors(file)?)
                .and_then(|history| trainer.timestep_sampler.restore(history))
                .map_err(|error| does_not_fit(checkpoint, file, &error))?;
        }
        Ok((trainer, window))
    }

    /// The start of a run from imported weights: everything but them is as at the start of any run, so the optimizer and
    /// the averages may be other ones than the import wrote down.
    fn from_import(plan: &TrainPlan, device: &Device, checkpoint: &Checkpoint, unet: UNet) -> Result<Self, Failure> {
        let params = read_params(checkpoint, MODEL_FILE, &unet, device)?;
        let optimizer = Optimizer::new(adamw_config(plan), &params)?;
        let mut trainer = Self::from_parts(plan, device, unet, &params, optimizer)?;
        trainer.imported = Imported::of(checkpoint);
        Ok(trainer)
    }
}

/// Whether a checkpoint is an import that no step has changed. Its configuration and data are still to be chosen.
fn is_untrained(checkpoint: &Checkpoint) -> bool {
    checkpoint.state.step == 0 && Imported::of(checkpoint).is_some()
}

/// The files of a checkpoint of imported weights: averages equal to them, moments of zero.
pub(crate) fn untrained_files(params: &Params, ema_decays: &[f64]) -> Result<Vec<TensorFile>, Failure> {
    let mut files = vec![weights_file(MODEL_FILE.to_owned(), params)?];
    for &decay in ema_decays {
        files.push(weights_file(ema_file(decay), params)?);
    }
    let zeros = vec![0.0; params.layout().len()];
    let moments = MOMENTS.iter().flat_map(|name| named_tensors(params.layout(), &zeros, &format!("{name}.")));
    files.push(TensorFile { name: OPTIMIZER_FILE.to_owned(), tensors: moments.collect() });
    Ok(files)
}

/// The configuration a checkpoint was made under.
///
/// # Errors
/// Exit code 6 if it holds none that this version understands.
pub fn checkpoint_config(checkpoint: &Checkpoint) -> Result<TrainConfig, Failure> {
    let value = checkpoint.state.extra.get(CONFIG).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| does_not_fit(checkpoint, "state.json (config)", &error))
}

/// The weights in one of a checkpoint's files.
///
/// # Errors
/// Exit code 6 if the file is not there or does not fit the network.
pub fn read_params(checkpoint: &Checkpoint, file: &str, unet: &UNet, device: &Device) -> Result<Params, Failure> {
    let tensors = checkpoint.tensors(file)?;
    let flat =
        flat_from_tensors(unet.layout(), &tensors, "").map_err(|error| does_not_fit(checkpoint, file, &error))?;
    Ok(Params::from_vec(unet.layout(), flat, device)?)
}

fn refuse_another_run(plan: &TrainPlan, checkpoint: &Checkpoint, data_fingerprint: &str) -> Result<(), Failure> {
    let place = checkpoint.path.display();
    let state = &checkpoint.state;
    let untrained = is_untrained(checkpoint);
    let mut changes = Vec::new();
    if state.config_hash != plan.config_hash() {
        // None if only the program has changed: keys that it did not know then have their defaults.
        changes = diff(&checkpoint_config(checkpoint)?, plan.config());
        changes.retain(|change| !untrained || describes_weights(&change.key));
    }
    if !changes.is_empty() {
        let lines: Vec<String> = changes
            .iter()
            .map(|change| format!("{}: {} in the checkpoint, {} now", change.key, change.old, change.new))
            .collect();
        let message = format!("{} cannot go on from {place}: the configuration has changed", plan.path().display());
        let failure = Failure::new(ExitCode::Usage, message)
            .hint("undo the change to go on, or start another run with --run-dir DIR (or --set run.name=NAME)");
        return Err(Failure { causes: lines, ..failure });
    }
    if !untrained && state.data_fingerprint != data_fingerprint {
        let source = &plan.config().data.source;
        let message = format!("cannot go on from {place}: data.source = {source} holds other images than then");
        return Err(Failure::new(ExitCode::Usage, message)
            .hint("bring the old data back to go on, or start another run with --run-dir DIR"));
    }
    Ok(())
}

/// Whether another value of a key would make the weights mean something else. Dropout is training alone.
fn describes_weights(key: &str) -> bool {
    (key.starts_with("model.") || key.starts_with("diffusion.")) && key != "model.dropout"
}

fn does_not_fit(checkpoint: &Checkpoint, file: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let message = format!("{} does not fit this model", checkpoint.path.join(file).display());
    Failure::caused_by(ExitCode::Checkpoint, message, error)
        .hint("the checkpoint belongs to another model: point to its own run, or start a new one with --run-dir DIR")
}

#[cfg(feature = "cuda")]
fn unreadable(checkpoint: &Checkpoint, field: &str) -> Failure {
    let error = <serde_json::Error as serde::de::Error>::custom("not a loss scale");
    does_not_fit(checkpoint, &format!("state.json ({field})"), &error)
}

fn weights_file(name: String, params: &Params) -> Result<TensorFile, Failure> {
    Ok(TensorFile { name, tensors: named_tensors(params.layout(), &params.buffer().to_vec()?, "") })
}

fn history_file(history: &LossHistory) -> TensorFile {
    let (losses, shape) = history.losses();
    let tensor = |name: &str, shape: &[usize], data| NamedTensor { name: name.to_owned(), shape: shape.to_vec(), data };
    let tensors = vec![tensor(LOSSES, &shape, losses.to_vec()), tensor(COUNTS, &shape[..1], history.counts())];
    TensorFile { name: TIMESTEP_SAMPLER_FILE.to_owned(), tensors }
}

/// A tensor that is missing reads as an empty one, which the history refuses.
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

/// All parameters of `flat` as a file holds them.
pub(crate) fn named_tensors(layout: &ParamLayout, flat: &[f32], prefix: &str) -> Vec<NamedTensor> {
    layout
        .specs()
        .iter()
        .flat_map(|spec| spec.to_file(flat))
        .map(|FileTensor { key, shape, data }| NamedTensor { name: format!("{prefix}{key}"), shape, data })
        .collect()
}

/// The flat buffer of the tensors of a file.
pub(crate) fn flat_from_tensors(
    layout: &ParamLayout,
    tensors: &[NamedTensor],
    prefix: &str,
) -> Result<Vec<f32>, ddpm_model::ModelError> {
    let by_name: std::collections::HashMap<&str, &NamedTensor> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut flat = vec![0.0; layout.len()];
    for spec in layout.specs() {
        spec.from_file(&mut flat, |key| {
            let tensor = by_name.get(format!("{prefix}{key}").as_str())?;
            Some(FileTensor { key: key.to_owned(), shape: tensor.shape.clone(), data: tensor.data.clone() })
        })?;
    }
    Ok(flat)
}
