//! `ddpm export`: a model as a folder that diffusers loads.
//!
//! The folder is written under a temporary name and renamed at the end: a folder of the final name is complete.

use std::fs;
use std::path::{Path, PathBuf};

use ddpm_model::diffusers::{in_keys_of_unet2d, pretty, scheduler_json, unet_json};
use ddpm_model::diffusion::{DiffusionConfig, PredictionType, SamplerConfig, SamplerKind, VarianceType};
use ddpm_model::unet::UNetConfig;
use ddpm_run::checkpoint::{TensorFile, tensors};
use ddpm_run::disk::{create_dir_all, move_dir, remove_any, sync_dir};
use ddpm_run::durable::{parent_of, replace_file};
use serde_json::json;

use super::card::{Card, card, sample_steps};
use super::{
    CARD_FILE, DIFFUSERS_VERSION, FACTS_FILE, Facts, INDEX_FILE, Measured, Model, SAMPLES_FILE, SCHEDULER_CONFIG,
    SCHEDULER_DIR, UNET_CONFIG, UNET_DIR, WEIGHTS_FILE,
};
use crate::drawing::{BATCH, Onlooker, Request, Start};
use crate::error::Error;
use crate::report::pictures::{Layout, encode, grid};
use crate::weights::named_tensors;

const SAMPLE_SEED: u64 = 0;

/// The options of an export.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions<'a> {
    /// Leave the variance head out.
    pub epsilon_only: bool,
    /// Images on the card; 0: none.
    pub samples: usize,
    /// Its future name on the hub, for the commands on the card.
    pub repo: Option<&'a str>,
    /// The licence that the card states.
    pub licence: Option<&'a str>,
    /// Its measured quality.
    pub measured: Option<&'a Measured>,
}

/// The result of an export.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Its files, relative to the folder.
    pub files: Vec<PathBuf>,
    /// The size of all files.
    pub bytes: u64,
}

/// Writes `model` into the new folder `to`; `progress` gets the number of drawn samples.
///
/// # Errors
/// `to` is taken or cannot be written, or the options do not fit the model.
pub fn export(
    model: &Model,
    to: &Path,
    options: ExportOptions<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<Exported, Error> {
    refuse_taken(to)?;
    let shape = Shape::of(model, options)?;
    let facts = model
        .facts
        .clone()
        .map(|facts| facts.with_run(&model.origin))
        .map(|facts| Facts { epsilon_only: facts.epsilon_only || shape.is_cut, ..facts });
    let weights = weights(model, &shape)?;
    let mut files = vec![
        (PathBuf::from(INDEX_FILE), index().into_bytes()),
        (Path::new(UNET_DIR).join(UNET_CONFIG), unet_json(&shape.unet).into_bytes()),
        (Path::new(UNET_DIR).join(WEIGHTS_FILE), weights),
        (Path::new(SCHEDULER_DIR).join(SCHEDULER_CONFIG), scheduler_json(&shape.diffusion).into_bytes()),
    ];
    if let Some(facts) = &facts {
        files.push((PathBuf::from(FACTS_FILE), pretty(&json!(facts)).into_bytes()));
    }
    let samples = options.samples;
    if samples > 0 {
        files.push((PathBuf::from(SAMPLES_FILE), draw(model, samples, progress)?));
    }
    let parameters = model.unet.layout().parameters() - shape.removed;
    let card = card(&Card {
        facts: facts.as_ref(),
        shape: (&shape.unet, &shape.diffusion),
        parameters,
        samples,
        repo: options.repo,
        licence: options.licence,
        measured: options.measured,
    });
    files.push((PathBuf::from(CARD_FILE), card.into_bytes()));
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    write_folder(to, &files)?;
    Ok(Exported { files: files.into_iter().map(|(path, _)| path).collect(), bytes })
}

/// Refuses a place that is taken.
///
/// # Errors
/// It is taken.
pub(crate) fn refuse_taken(to: &Path) -> Result<(), Error> {
    let is_empty = fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty || fs::symlink_metadata(to).is_err() {
        return Ok(());
    }
    let what = if to.is_dir() { "holds files already" } else { "is a file" };
    Err(Error::Taken { path: to.to_owned(), what })
}

/// The network and process as written into the folder.
struct Shape {
    unet: UNetConfig,
    diffusion: DiffusionConfig,
    /// The variance head is left out.
    is_cut: bool,
    /// Number of parameters that are left out with it.
    removed: usize,
}

impl Shape {
    fn of(model: &Model, options: ExportOptions<'_>) -> Result<Self, Error> {
        let mut diffusion = model.config.diffusion.clone();
        let mut unet = in_keys_of_unet2d(&model.config.model).map_err(|error| {
            let advice = "such a model can be trained, sampled and evaluated here, and not be handed to diffusers";
            Error::unreadable(&model.origin, error, advice)
        })?;
        if !options.epsilon_only {
            return Ok(Self { unet, diffusion, is_cut: false, removed: 0 });
        }
        let learned = diffusion.variance_type == VarianceType::LearnedRange;
        if !learned || diffusion.prediction_type != PredictionType::Epsilon {
            let variance = diffusion.variance_type.name();
            return Err(Error::NothingToCut { model: model.origin.clone(), variance });
        }
        let channels = model.unet.image_shape().in_channels;
        unet.out_channels = Some(channels);
        diffusion.variance_type = VarianceType::FixedSmall;
        // Rows of conv_out: 9 weights for each channel of the first level, and a bias.
        let row = 9 * unet.block_out_channels.first().copied().unwrap_or_default() + 1;
        Ok(Self { unet, diffusion, is_cut: true, removed: channels * row })
    }
}

/// The bytes of the weights' file.
fn weights(model: &Model, shape: &Shape) -> Result<Vec<u8>, Error> {
    let mut tensors = named_tensors(model.unet.layout(), &model.params.buffer().to_vec()?, "");
    if shape.is_cut {
        // The first C of 2C output channels are epsilon; PyTorch's layout has them first.
        for tensor in tensors.iter_mut().filter(|tensor| tensor.name.starts_with("conv_out.")) {
            tensor.shape[0] /= 2;
            tensor.data.truncate(tensor.data.len() / 2);
        }
    }
    let file = TensorFile { name: WEIGHTS_FILE.to_owned(), tensors };
    tensors::to_bytes(&file).map_err(Error::other)
}

fn index() -> String {
    pretty(&json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }))
}

/// A grid of samples as PNG: DDIM, so that the variance, and with it --epsilon-only, changes nothing.
fn draw(model: &Model, num: usize, progress: &mut dyn FnMut(usize)) -> Result<Vec<u8>, Error> {
    let sampler = SamplerConfig {
        sampler: SamplerKind::Ddim,
        steps: Some(sample_steps(model.process.schedule().len())),
        spacing: SamplerKind::Ddim.default_spacing(),
        ..SamplerConfig::default()
    };
    let request = Request {
        num,
        sampler: &sampler,
        start: Start::Seed(SAMPLE_SEED),
        classes: model.config.all_classes(),
        guidance: None,
        batch_size: BATCH,
    };
    let onlooker = &mut Onlooker { progress, proceed: &|| true, glimpse: &mut |_| Ok(()) };
    let images = model.painter().draw(&request, onlooker)?;
    let [_, height, width, _] = images.shape;
    Ok(encode(&grid(&images.pixels, images.shape, Layout::visible(height, width))?)?.bytes)
}

/// Writes all files beside `to`, then renames. What a killed export left there is replaced.
fn write_folder(to: &Path, files: &[(PathBuf, Vec<u8>)]) -> Result<(), Error> {
    let name = to.file_name().map_or_else(|| "export".into(), |name| name.to_string_lossy().into_owned());
    let parent = parent_of(to);
    let temporary = parent.join(format!(".tmp-{name}"));
    let write = || {
        remove_any(&temporary)?;
        for (path, bytes) in files {
            let path = temporary.join(path);
            create_dir_all(parent_of(&path))?;
            replace_file(&path, bytes)?;
        }
        move_dir(&temporary, to, |name| usize::from(name == INDEX_FILE))?;
        sync_dir(parent)
    };
    write().map_err(|error| {
        // The first error is the one to report; a leftover has a name that shows what it is.
        let _ = remove_any(&temporary);
        Error::Unwritable { path: to.to_owned(), cause: error }
    })
}
