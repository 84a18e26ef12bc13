//! `ddpm import`: a diffusers folder as the start of a run.
//!
//! It writes what a run that has not made its first step would have saved: a checkpoint of step 0 with the weights, the
//! averages equal to them and the optimizer's moments zero. Such a checkpoint belongs to no data yet, so what it was
//! trained with may still be chosen: see `training::state`.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::json;

use super::export::refuse_taken;
use super::{Folder, IMPORTED, Imported, refuse_hub};
use crate::checkpoint::{EpochPosition, Snapshot, State, save};
use crate::config::{Resolved, TrainConfig, config_hash};
use crate::error::Failure;
use crate::run_dir::RunDir;
use crate::training::state::{CONFIG, untrained_files};

/// Makes the run directory `to` of the folder `from`; returns the checkpoint and the configuration.
///
/// # Errors
/// Exit code 6 if `from` is no model that this version can run, 2 if `to` is taken.
pub fn import(from: &Path, to: &Path) -> Result<(PathBuf, TrainConfig), Failure> {
    refuse_hub(from)?;
    refuse_taken(to)?;
    let folder = Folder::read(from)?;
    let unet = folder.unet()?;
    let params = folder.params(&unet, &Device::Cpu)?;
    folder.process()?;
    let config = configuration(folder.config, to);
    let mut state = State::new(0, 0, EpochPosition { epoch: 0, images: 0 }, config_hash(&config), String::new());
    let imported = Imported { source: from.display().to_string(), facts: folder.facts };
    state.extra.insert(CONFIG.to_owned(), json!(config));
    state.extra.insert(IMPORTED.to_owned(), json!(imported));

    let files = untrained_files(&params, &config.train.ema_decays)?;
    let run_dir = RunDir::open(to)?;
    run_dir.write_config(&Resolved::from_config(&run_dir.paths().config(), config.clone()).to_toml())?;
    let saved = save(&run_dir.paths().checkpoints(), &Snapshot { files, state })?;
    Ok((saved.path, config))
}

/// A run of its own: other data, another name, and counting from 0.
fn configuration(mut config: TrainConfig, to: &Path) -> TrainConfig {
    let name = to.file_name().map_or_else(|| "imported".into(), |name| name.to_string_lossy().into_owned());
    config.run.name = name;
    config.run.dir = to.display().to_string();
    config.data.source.clear();
    config.data.split.clear();
    config.data.format = Default::default();
    config
}
