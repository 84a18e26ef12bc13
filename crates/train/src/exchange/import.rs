//! `ddpm import`: a diffusers folder as the start of a run.
//!
//! It writes what a run would have saved before its first step: a checkpoint of step 0 with the weights, equal averages and
//! zero moments. Such a checkpoint belongs to no data yet, so its training data can still be chosen: see `training::state`.

use std::path::{Path, PathBuf};

use candle_core::Device;
use ddpm_run::RunDir;
use ddpm_run::checkpoint::{EpochPosition, Snapshot, State, save};
use serde_json::json;

use super::export::refuse_taken;
use super::{FACTS_FILE, Folder, Foreign, IMPORTED, Imported, locate, openai};
use crate::config::types::DataConfig;
use crate::config::{Resolved, TrainConfig, TrainPlan, config_hash};
use crate::error::Error;
use crate::weights::{CONFIG, untrained_files};

/// Makes the run directory `to` from `from`, a folder or a model on the hub, or a `foreign` file; returns the checkpoint and the
/// configuration.
///
/// # Errors
/// `from` is no model that this version can run, `to` is taken, or the hub cannot deliver it.
pub fn import(from: &Path, to: &Path, foreign: Option<Foreign<'_>>) -> Result<(PathBuf, TrainConfig), Error> {
    refuse_taken(to)?;
    let (folder, name) = match foreign {
        Some(foreign) => (openai::read(from, foreign)?, from.to_owned()),
        None => {
            let located = locate(from)?;
            (Folder::read(&located.path)?, located.name)
        }
    };
    let unet = folder.unet()?;
    let params = folder.params(&unet, &Device::Cpu)?;
    folder.process()?;
    refuse_untrainable(from, &folder.config)?;
    let config = configuration(folder.config, to);
    check(from, &config)?;
    let mut state = State::new(0, 0, EpochPosition { epoch: 0, images: 0 }, config_hash(&config), String::new());
    let imported = Imported { source: name.display().to_string(), facts: folder.facts };
    state.extra.insert(CONFIG.to_owned(), json!(config));
    state.extra.insert(IMPORTED.to_owned(), json!(imported));

    let files = untrained_files(&params, &config.train.ema_decays)?;
    let run_dir = RunDir::open(to)?;
    // The configuration is written last: without it a run whose weights are missing cannot be trained.
    let saved = save(&run_dir.paths().checkpoints(), &Snapshot { files, state })?;
    run_dir.write_config(&Resolved::from_config(&run_dir.paths().config(), config.clone()).to_toml())?;
    Ok((saved.path, config))
}

/// A network that can be computed but not trained on images is refused before anything is written.
fn refuse_untrainable(from: &Path, config: &TrainConfig) -> Result<(), Error> {
    if config.model.class_embed_type.is_some() && config.model.num_class_embeds.is_none() {
        let what = "class_embed_type is set but num_class_embeds = null: expected the number of classes";
        let advice = "write it into unet/config.json: training must know how many there are";
        return Err(Error::unreadable(from, what, advice));
    }
    Ok(())
}

/// Refuses settings of `ddpm.json` that no run can use.
fn check(from: &Path, config: &TrainConfig) -> Result<(), Error> {
    let mut config = config.clone();
    // The user sets it before training.
    config.data.source = "images".to_owned();
    TrainPlan::new(&Resolved::from_config(&from.join(FACTS_FILE), config))
        .map(|_| ())
        .map_err(|error| Error::ForeignConfig(Box::new(error)))
}

/// The configuration of a new run: other data, another name, and steps from 0. From someone else's run only the training's
/// settings are taken, and nothing that names a device, a place or an address.
fn configuration(theirs: TrainConfig, to: &Path) -> TrainConfig {
    let TrainConfig { data, model, diffusion, loss, train, .. } = theirs;
    let mut config = TrainConfig { model, diffusion, loss, train, ..TrainConfig::default() };
    config.data = DataConfig {
        image_size: data.image_size,
        channels: data.channels,
        crop: data.crop,
        fit: data.fit,
        upscale: data.upscale,
        background: data.background,
        flip: data.flip,
        num_classes: data.num_classes,
        ..DataConfig::default()
    };
    let name = to.file_name().map_or_else(|| "imported".into(), |name| name.to_string_lossy().into_owned());
    config.run.name = name;
    config.run.dir = to.display().to_string();
    config
}
