//! Models to and from diffusers: a folder that `DDPMPipeline.from_pretrained` loads, and the way back.
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
//! | `folder` | a folder, read and checked |
//! | `facts` | what is known of a model's training |
//! | `export`, `card` | the folder, written |
//! | `measured` | what a card tells of a model's quality |
//! | `import` | the folder as the start of a run |

mod card;
mod config;
mod export;
mod facts;
mod folder;
mod import;
mod measured;

use std::path::{Path, PathBuf};

pub use ddpm_model::diffusers::DIFFUSERS_VERSION;
pub use export::{ExportOptions, Exported, export};
pub(crate) use facts::IMPORTED;
pub use facts::{Facts, Imported};
pub use folder::Folder;
pub use import::import;
pub use measured::Measured;

use crate::error::{ExitCode, Failure};
use crate::hub::SCHEME;
#[cfg(feature = "hub")]
use crate::hub::Settings;

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

/// Whatever a folder is read from: in its sub-folders, or side by side as in the first published models.
#[cfg(feature = "hub")]
pub(crate) const MODEL_FILES: [&str; 8] = [
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
pub(crate) const PICKLES: [&str; 3] = ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"];

/// What a model may be, for messages.
pub const MODELS: &str = "name a run directory (runs/NAME), a checkpoint (runs/NAME/checkpoints/step-...), \
                          a diffusers folder or hf://owner/name";

/// A model's place on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it is read from.
    pub path: PathBuf,
    /// What it is called: the same, or its name on the hub with the commit.
    pub name: PathBuf,
}

/// The place of what a user named; a model of the hub is fetched, and `tell` is told so.
///
/// # Errors
/// Exit code 2 for `hf://...` that is no name, or in a program without the hub; 7 if the hub does not give it.
pub fn locate(named: &Path, tell: &dyn Fn(&str)) -> Result<Located, Failure> {
    match named.to_str().filter(|text| text.starts_with(SCHEME)) {
        Some(text) => locate_on_hub(text, tell),
        None => Ok(Located { path: named.to_owned(), name: named.to_owned() }),
    }
}

#[cfg(feature = "hub")]
fn locate_on_hub(text: &str, tell: &dyn Fn(&str)) -> Result<Located, Failure> {
    let model = text.parse().map_err(|expected: String| {
        Failure::new(ExitCode::Usage, format!("{text}: {expected}"))
            .hint("write hf://owner/name, or hf://owner/name@revision")
    })?;
    let pulled = crate::hub::pull(&model, Settings::from_environment()?, tell)?;
    Ok(Located { path: pulled.folder, name: pulled.name.into() })
}

#[cfg(not(feature = "hub"))]
fn locate_on_hub(text: &str, _: &dyn Fn(&str)) -> Result<Located, Failure> {
    let name = text.trim_start_matches(SCHEME);
    Err(Failure::new(ExitCode::Usage, format!("{text}: this program was built without the feature `hub`"))
        .hint(format!("download it (`hf download {name} --local-dir DIR`) and name the folder")))
}

fn unreadable(message: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Checkpoint, message)
}

#[cfg(all(test, not(feature = "hub")))]
mod tests {
    use super::*;

    #[test]
    fn without_the_hub_its_models_are_refused_with_another_way() {
        let failure = locate(Path::new("hf://me/clothes"), &|_| {}).expect_err("there is no hub");
        let text = failure.to_string();
        assert!(text.contains("without the feature `hub`") && text.contains("hf download me/clothes"), "{text}");
    }
}
