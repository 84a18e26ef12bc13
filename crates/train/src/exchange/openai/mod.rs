//! Checkpoints of OpenAI's improved-diffusion and guided-diffusion (`model100000.pt`, `ema_0.9999_100000.pt`), as models in
//! diffusers' layout.
//!
//! Such a file holds weights alone. What they say of the network is taken from their shapes; the rest are the flags that the
//! model was trained with, with the defaults of their scripts. The network is diffusers' but for three things: queries, keys and
//! values lie together head by head, the number of heads may be the same at every width, and t may be scaled to 0..1000. The
//! first is a permutation of rows; for the others `[model]` has keys of its own.
//!
//! | module | what |
//! | --- | --- |
//! | `flags` | the flags of their scripts |
//! | `structure` | the network, from the shapes of its weights |
//! | `names` | which tensor is which, and the order of its rows |
//! | `pickle` | tensors out of a file of PyTorch's, without running anything |

mod flags;
mod modest;
mod names;
mod pickle;
mod structure;

use std::path::Path;
use std::str::FromStr;

use ddpm_model::diffusion::LossKind;
use ddpm_model::unet::UNet;

use self::flags::Flags;
use super::folder::{Folder, check_channels, check_limits, configuration};
use crate::error::Error;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nichol & Dhariwal 2021, github.com/openai/improved-diffusion.
    ImprovedDiffusion,
    /// Dhariwal & Nichol 2021, github.com/openai/guided-diffusion.
    GuidedDiffusion,
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "improved-diffusion" => Ok(Self::ImprovedDiffusion),
            "guided-diffusion" => Ok(Self::GuidedDiffusion),
            _ => Err("expected improved-diffusion or guided-diffusion".to_owned()),
        }
    }
}

/// A model of others than diffusers.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    /// Whose.
    pub origin: Origin,
    /// What it was trained with, as on their command line: `--image_size 64 --learn_sigma True`.
    pub flags: &'a str,
}

/// Why a part of the model cannot be read.
type Refusal = String;

const ADVICE: &str = "only the diffusion models of these two repositories are read, not their classifiers and upsamplers; flags \
                      that the file does not say are those of its training";

/// Reads the file, and checks all but the values of its weights.
///
/// # Errors
/// It is damaged, or holds what `[model]` cannot say; the message names the tensor or the flag.
pub(super) fn read(path: &Path, foreign: Foreign<'_>) -> Result<Folder, Error> {
    let flags = Flags::parse(foreign.origin, foreign.flags).map_err(|what| Error::Flags { what })?;
    let refused = |what: Refusal| Error::unreadable(path, what, ADVICE);
    let file = pickle::File::open(path)?;
    let network = structure::network(&file.shapes(), &flags).map_err(refused)?;
    let diffusion = flags.diffusion(network.learns_variance);
    check_limits(path, &network.config)?;
    check_channels(path, &network.config, path, &diffusion)?;
    if let Some(assumed) = flags.assumed() {
        tracing::info!("{}: the file does not say, so it is as in their scripts: {assumed}", path.display());
    }
    let unet = UNet::new(&network.config).map_err(|error| refused(error.to_string()))?;
    let tensors = names::converted(&unet, &network, &flags, &file, path)?;
    let mut config = configuration(network.config, diffusion, None);
    if flags.use_kl && network.learns_variance {
        config.loss.kind = LossKind::Vlb;
    }
    Ok(Folder { path: path.to_owned(), config, facts: None, weights: path.to_owned(), tensors })
}
