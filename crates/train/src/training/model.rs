//! A trained model, read back from a run directory, a checkpoint, a diffusers folder or the hub.

use std::path::{Path, PathBuf};

use candle_core::Device;
use ddpm_model::diffusion::{DiffusionProcess, VarianceType};
use ddpm_model::params::Params;
use ddpm_model::unet::UNet;

use super::arithmetic::set_arithmetic;
use super::pictures::Painter;
use super::state::{checkpoint_config, read_params};
use crate::config::TrainConfig;
use crate::error::{ExitCode, Failure};
use crate::exchange::{Facts, Folder, Located, MODELS, locate};
use ddpm_run::RunPaths;
use ddpm_run::checkpoint::{Checkpoint, MANIFEST_FILE, MODEL_FILE, Skipped, ema_file, newest_good};

/// Everything needed to run a model.
#[derive(Debug)]
pub struct Model {
    /// The network.
    pub unet: UNet,
    /// Its weights: the first moving average, or the raw ones.
    pub params: Params,
    /// The diffusion process.
    pub process: DiffusionProcess,
    /// The configuration it was trained under.
    pub config: TrainConfig,
    /// The checkpoint, the diffusers folder or the commit on the hub it came from.
    pub origin: PathBuf,
    /// What is known of its training.
    pub facts: Option<Facts>,
    /// Checkpoints that were newer but damaged, and why.
    pub skipped: Vec<String>,
}

impl Model {
    /// Reads the newest good checkpoint of a run directory, a checkpoint, a diffusers folder, or a model of the hub, of
    /// whose fetching `tell` is told; `raw` takes the weights of the last step, where there is a choice.
    ///
    /// # Errors
    /// Exit code 6 if there is none, or it cannot be read; 7 if the hub does not give it.
    pub fn open(named: &Path, raw: bool, device: &Device, tell: &dyn Fn(&str)) -> Result<Self, Failure> {
        let Located { path, name } = locate(named, tell)?;
        let path = path.as_path();
        if is_diffusers_folder(path) {
            let model = Self::from_folder(Folder::read(path)?, device)?;
            return Ok(Self { origin: name, ..model });
        }
        let (checkpoint, skipped) = find_checkpoint(path)?;
        let config = checkpoint_config(&checkpoint)?;
        let unet = UNet::new(&config.model)?;
        let file = match config.train.ema_decays.first() {
            Some(&decay) if !raw => ema_file(decay),
            _ => MODEL_FILE.to_owned(),
        };
        let weights = match config.train.ema_decays.first() {
            Some(decay) if !raw => format!("the moving average of decay {decay}"),
            _ => "those of the last step".to_owned(),
        };
        Ok(Self {
            params: read_params(&checkpoint, &file, &unet, device)?
                .computing_in(set_arithmetic(&config.train, device)?)?,
            facts: Facts::of_checkpoint(&checkpoint, &config, weights),
            process: DiffusionProcess::new(&config.diffusion)?,
            unet,
            config,
            origin: checkpoint.path,
            skipped,
        })
    }

    fn from_folder(folder: Folder, device: &Device) -> Result<Self, Failure> {
        let unet = folder.unet()?;
        let params = folder.params(&unet, device)?;
        let process = folder.process()?;
        let Folder { path: origin, config, facts, .. } = folder;
        Ok(Self { unet, params, process, config, origin, facts, skipped: Vec::new() })
    }
}

/// Whether `path` is a model in diffusers' layout and none of ours.
pub fn is_diffusers_folder(path: &Path) -> bool {
    Folder::is_one(path) && !RunPaths::new(path).checkpoints().is_dir() && !path.join(MANIFEST_FILE).is_file()
}

/// Classes of the data; none for an unconditional model.
pub fn data_classes(config: &TrainConfig) -> Option<usize> {
    Some(config.model_classes()).filter(|&classes| classes > 0)
}

/// The classes pictures are drawn of: all that the data has, in turn; none for an unconditional model.
pub fn all_classes(config: &TrainConfig) -> Option<Vec<u32>> {
    data_classes(config).map(|classes| (0..classes as u32).collect())
}

impl Model {
    /// To draw from it.
    pub fn painter(&self) -> Painter<'_> {
        Painter { unet: &self.unet, params: &self.params, process: &self.process }
    }

    /// Gives a model that does not learn its variance another one.
    ///
    /// # Errors
    /// Exit code 2 if it does learn it.
    pub fn with_variance(mut self, variance: Option<VarianceType>) -> Result<Self, Failure> {
        if let Some(variance) = variance {
            self.process = self.process.with_fixed_variance(variance)?;
        }
        Ok(self)
    }
}

fn find_checkpoint(path: &Path) -> Result<(Checkpoint, Vec<String>), Failure> {
    let checkpoints = RunPaths::new(path).checkpoints();
    if !checkpoints.is_dir() {
        if !path.is_dir() {
            let message = format!("{}: no such directory", path.display());
            return Err(Failure::new(ExitCode::Checkpoint, message).hint(MODELS));
        }
        return Ok((Checkpoint::open(path)?, Vec::new()));
    }
    let (newest, skipped) = newest_good(&checkpoints)?;
    let skipped: Vec<String> = skipped.iter().map(Skipped::to_string).collect();
    match newest {
        Some(checkpoint) => Ok((checkpoint, skipped)),
        None => {
            let message = format!("{} holds no checkpoint that verifies", checkpoints.display());
            let failure = Failure::new(ExitCode::Checkpoint, message)
                .hint("`ddpm train` writes one every checkpoint.every steps and at the end");
            Err(Failure { causes: skipped, ..failure })
        }
    }
}
