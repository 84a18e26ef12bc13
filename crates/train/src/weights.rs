//! Weights and the configuration they belong to, in the files of a checkpoint.

use std::collections::HashMap;

use candle_core::Device;
use ddpm_model::ModelError;
use ddpm_model::params::{ParamLayout, Params};
use ddpm_model::unet::UNet;
use ddpm_model::unet::naming::FileTensor;
use ddpm_run::checkpoint::{Checkpoint, MODEL_FILE, NamedTensor, OPTIMIZER_FILE, TensorFile, ema_file};
use serde_json::Value;

use crate::config::TrainConfig;
use crate::error::{Cause, Error};

/// The field of the state that holds the configuration.
pub(crate) const CONFIG: &str = "config";
/// The optimizer's moments, as their file names them.
pub(crate) const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// The files of a checkpoint of imported weights: averages equal to them, moments of zero.
pub(crate) fn untrained_files(params: &Params, ema_decays: &[f64]) -> Result<Vec<TensorFile>, Error> {
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
/// It holds no configuration that this version understands.
pub(crate) fn checkpoint_config(checkpoint: &Checkpoint) -> Result<TrainConfig, Error> {
    let value = checkpoint.state.extra.get(CONFIG).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| does_not_fit(checkpoint, "state.json (config)", error))
}

/// The weights in one of a checkpoint's files.
///
/// # Errors
/// The file is not there or does not fit the network.
pub(crate) fn read_params(checkpoint: &Checkpoint, file: &str, unet: &UNet, device: &Device) -> Result<Params, Error> {
    let tensors = checkpoint.tensors(file)?;
    let flat = flat_from_tensors(unet.layout(), &tensors, "").map_err(|error| does_not_fit(checkpoint, file, error))?;
    Ok(Params::from_vec(unet.layout(), flat, device)?)
}

/// The error of a checkpoint's file that does not fit the network.
pub(crate) fn does_not_fit(checkpoint: &Checkpoint, file: &str, cause: impl Into<Cause>) -> Error {
    Error::DoesNotFit { file: checkpoint.path.join(file), cause: cause.into() }
}

/// The file `name` of some weights.
pub(crate) fn weights_file(name: String, params: &Params) -> Result<TensorFile, Error> {
    Ok(TensorFile { name, tensors: named_tensors(params.layout(), &params.buffer().to_vec()?, "") })
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
) -> Result<Vec<f32>, ModelError> {
    let by_name: HashMap<&str, &NamedTensor> = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut flat = vec![0.0; layout.len()];
    for spec in layout.specs() {
        spec.from_file(&mut flat, |key| {
            let tensor = by_name.get(format!("{prefix}{key}").as_str())?;
            Some(FileTensor { key: key.to_owned(), shape: tensor.shape.clone(), data: tensor.data.clone() })
        })?;
    }
    Ok(flat)
}
