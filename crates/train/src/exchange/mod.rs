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
//! | `config` | `[model]` and `[diffusion]` to and from diffusers' JSON |
//! | `folder` | a folder, read and checked |
//! | `facts` | what is known of a model's training |
//! | `export`, `card` | the folder, written |
//! | `import` | the folder as the start of a run |

mod card;
mod config;
mod export;
mod facts;
mod folder;
mod import;

use std::path::Path;

pub use export::{ExportOptions, Exported, export};
pub(crate) use facts::IMPORTED;
pub use facts::{Facts, Imported};
pub use folder::Folder;
pub use import::import;

use crate::error::{ExitCode, Failure};

/// The version whose format is written, and with which `scripts/check-diffusers` compares.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

const INDEX_FILE: &str = "model_index.json";
const UNET_DIR: &str = "unet";
const UNET_CONFIG: &str = "config.json";
const WEIGHTS_FILE: &str = "diffusion_pytorch_model.safetensors";
const SCHEDULER_DIR: &str = "scheduler";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";
const FACTS_FILE: &str = "ddpm.json";
const CARD_FILE: &str = "README.md";
const SAMPLES_FILE: &str = "samples.png";

/// What a model may be, for messages.
pub const MODELS: &str =
    "name a run directory (runs/NAME), a checkpoint (runs/NAME/checkpoints/step-...) or a diffusers folder";

/// Models of the hub are not fetched yet; the name must not be taken for a path.
///
/// # Errors
/// Exit code 2 for `hf://...`.
pub fn refuse_hub(path: &Path) -> Result<(), Failure> {
    let Some(name) = path.to_str().and_then(|text| text.strip_prefix("hf://")) else { return Ok(()) };
    let message = format!("hf://{name}: models of the Hugging Face hub are not fetched by this version");
    Err(Failure::new(ExitCode::Usage, message)
        .hint(format!("download it (`hf download {name} --local-dir DIR`) and name the folder")))
}

fn unreadable(message: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Checkpoint, message)
}
