//! Models to and from diffusers: writes and reads a folder that `DDPMPipeline.from_pretrained` loads.
//!
//! ```text
//! DIR/
//!   model_index.json                              which classes load the parts
//!   unet/config.json                              UNet2DModel, every key of it
//!   unet/diffusion_pytorch_model.safetensors      f32 weights, metadata {"format": "pt"}
//!   scheduler/scheduler_config.json               DDPMScheduler
//!   ddpm.json                                     what is known of the training; diffusers does not look at it
//!   README.md, samples.png                        the model card
//! ```
//! The layout is what `DiffusionPipeline.save_pretrained` of diffusers [`DIFFUSERS_VERSION`] writes; the first published
//! models (`google/ddpm-*`) have the files of `unet/` and `scheduler/` beside `model_index.json`, which is read too.
//! Everything written is a function of the model and of [`Facts`], which travel with it: so export, import and export
//! again give identical bytes.
//!
//! | module | what |
//! | --- | --- |
//! | `config` | `[model]` and `[diffusion]` of diffusers' JSON, which the model's crate reads and writes |
//! | `folder`, `weights` | a folder, read and checked |
//! | `facts` | the known facts about a model's training |
//! | `export`, `card` | the folder, written |
//! | `measured` | a model's quality, for its card |
//! | `model` | a trained model, read from a run, a checkpoint, a folder or the hub |
//! | `openai` | checkpoints of improved-diffusion and guided-diffusion, read as such a folder |
//! | `import` | the folder as the start of a run |

mod card;
mod config;
mod export;
mod facts;
mod folder;
mod import;
mod json;
mod measured;
mod model;
mod openai;
mod weights;

use std::path::{Path, PathBuf};

use ddpm_hub::{HubError, SCHEME, Settings};
pub use ddpm_model::diffusers::DIFFUSERS_VERSION;
pub(crate) use export::refuse_taken;
pub use export::{ExportOptions, Exported, export};
pub use facts::{Facts, Imported};
pub(crate) use facts::{IMPORTED, class_names};
pub use folder::Folder;
pub use import::import;
pub use measured::Measured;
pub use model::{Model, is_diffusers_folder};
pub use openai::{Foreign, Origin};

use crate::error::Error;

/// Images on a card where no number is given.
pub const CARD_SAMPLES: usize = 16;

const INDEX_FILE: &str = "model_index.json";
const UNET_DIR: &str = "unet";
const UNET_CONFIG: &str = "config.json";
const WEIGHTS_FILE: &str = "diffusion_pytorch_model.safetensors";
const SCHEDULER_DIR: &str = "scheduler";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";
const FACTS_FILE: &str = "ddpm.json";
const CARD_FILE: &str = "README.md";
const SAMPLES_FILE: &str = "samples.png";

/// The files of a model: in sub-folders, or side by side as in the first published models.
const MODEL_FILES: [&str; 8] = [
    INDEX_FILE,
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    FACTS_FILE,
    UNET_CONFIG,
    WEIGHTS_FILE,
    SCHEDULER_CONFIG,
];

/// The formats that run code when read.
const PICKLES: [&str; 3] = ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"];

/// A model's place on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it is read from.
    pub path: PathBuf,
    /// Its name: the same path, or its name on the hub with the commit.
    pub name: PathBuf,
}

/// The place of the model that a user named; a model on the hub is fetched.
///
/// # Errors
/// `hf://...` is no valid name, this program has no hub support, or the hub cannot deliver the model.
pub fn locate(named: &Path) -> Result<Located, Error> {
    match named.to_str().filter(|text| text.starts_with(SCHEME)) {
        Some(text) => locate_on_hub(text),
        None => Ok(Located { path: named.to_owned(), name: named.to_owned() }),
    }
}

fn locate_on_hub(text: &str) -> Result<Located, Error> {
    if !cfg!(feature = "hub") {
        return Err(Error::WithoutHub { name: text.to_owned() });
    }
    let model = text.parse().map_err(|expected| Error::HubName { name: text.to_owned(), expected })?;
    let pulled = ddpm_hub::pull(&model, &MODEL_FILES, Settings::from_environment()?).map_err(|error| match error {
        HubError::NoWeights { model, files } => {
            Error::NoWeights { model, pickle: files.into_iter().find(|path| is_pickle(path)) }
        }
        other => other.into(),
    })?;
    Ok(Located { path: pulled.folder, name: pulled.name.into() })
}

fn is_pickle(path: &str) -> bool {
    PICKLES.contains(&path.rsplit('/').next().unwrap_or_default())
}

#[cfg(all(test, not(feature = "hub")))]
mod tests {
    use super::*;

    #[test]
    fn without_the_hub_its_models_are_refused() {
        let error = locate(Path::new("hf://me/clothes")).expect_err("there is no hub");
        assert!(error.to_string().contains("without the feature `hub`"), "{error}");
    }
}
