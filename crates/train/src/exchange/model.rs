//! A trained model, read back from a run directory, a checkpoint, a diffusers folder or the hub.

use std::path::{Path, PathBuf};

use candle_core::Device;
use ddpm_model::diffusion::{DiffusionProcess, VarianceType};
use ddpm_model::params::Params;
use ddpm_model::unet::UNet;
use ddpm_run::RunPaths;
use ddpm_run::checkpoint::{Checkpoint, MANIFEST_FILE, MODEL_FILE, Skipped, ema_file, newest_good};

use super::{Facts, Folder, Located, locate};
use crate::config::TrainConfig;
use crate::config::set_arithmetic;
use crate::drawing::Painter;
use crate::error::Error;
use crate::weights::{checkpoint_config, read_params};

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
    /// The known facts about its training.
    pub facts: Option<Facts>,
}

impl Model {
    /// Reads the newest good checkpoint of a run directory, a checkpoint, a diffusers folder, or a model of the
    /// hub; warns of newer checkpoints that are damaged. `raw` takes the weights of the last step, where there is a choice.
    ///
    /// # Errors
    /// There is none, it cannot be read, or the hub cannot deliver it.
    pub fn open(named: &Path, raw: bool, device: &Device) -> Result<Self, Error> {
        let Located { path, name } = locate(named)?;
        let path = path.as_path();
        if is_diffusers_folder(path) {
            let model = Self::from_folder(Folder::read(path)?, device)?;
            return Ok(Self { origin: name, ..model });
        }
        let checkpoint = find_checkpoint(path)?;
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
        })
    }

    fn from_folder(folder: Folder, device: &Device) -> Result<Self, Error> {
        let unet = folder.unet()?;
        let params = folder.params(&unet, device)?;
        let process = folder.process()?;
        let Folder { path: origin, config, facts, .. } = folder;
        Ok(Self { unet, params, process, config, origin, facts })
    }
}

/// Whether `path` is a model in diffusers' layout and not one of our checkpoints.
pub fn is_diffusers_folder(path: &Path) -> bool {
    Folder::is_one(path) && !RunPaths::new(path).checkpoints().is_dir() && !path.join(MANIFEST_FILE).is_file()
}

impl Model {
    /// A hash of its weights.
    ///
    /// # Errors
    /// The GPU does not answer.
    pub fn weights_hash(&self) -> Result<blake3::Hash, Error> {
        let mut hasher = blake3::Hasher::new();
        for value in self.params.buffer().to_vec()? {
            hasher.update(&value.to_le_bytes());
        }
        Ok(hasher.finalize())
    }

    /// A painter for this model.
    pub fn painter(&self) -> Painter<'_> {
        Painter { unet: &self.unet, params: &self.params, process: &self.process }
    }

    /// The names of its classes in the order of their labels, where they are known.
    pub fn class_names(&self) -> Option<&[String]> {
        self.config.data_classes().and(self.facts.as_ref()?.classes.as_deref())
    }

    /// Changes the variance of a model that does not learn it.
    ///
    /// # Errors
    /// The model learns its variance.
    pub fn with_variance(mut self, variance: Option<VarianceType>) -> Result<Self, Error> {
        if let Some(variance) = variance {
            self.process = self.process.with_fixed_variance(variance)?;
        }
        Ok(self)
    }
}

fn find_checkpoint(path: &Path) -> Result<Checkpoint, Error> {
    let checkpoints = RunPaths::new(path).checkpoints();
    if !checkpoints.is_dir() {
        if !path.is_dir() {
            return Err(Error::NotAModel { path: path.to_owned(), what: "no such directory".to_owned() });
        }
        return Ok(Checkpoint::open(path)?);
    }
    let (newest, skipped) = newest_good(&checkpoints)?;
    let skipped: Vec<String> = skipped.iter().map(Skipped::to_string).collect();
    match newest {
        Some(checkpoint) => {
            skipped.iter().for_each(|skipped| tracing::warn!("{skipped}"));
            Ok(checkpoint)
        }
        None => Err(Error::NoCheckpoint { dir: checkpoints, skipped }),
    }
}
