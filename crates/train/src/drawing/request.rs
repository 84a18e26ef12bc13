//! What is drawn: a model, a request for images, and the hooks of the caller.

use candle_core::Tensor;
use ddpm_model::diffusion::{DiffusionProcess, SamplerConfig, Timestep};
use ddpm_model::params::Params;
use ddpm_model::unet::UNet;

use crate::error::Error;

/// Images computed at once by default: enough for every core, few enough for little memory.
pub const BATCH: usize = 16;

/// A model to draw from.
#[derive(Clone, Copy, Debug)]
pub struct Painter<'a> {
    /// The network.
    pub unet: &'a UNet,
    /// Its weights.
    pub params: &'a Params,
    /// The diffusion process.
    pub process: &'a DiffusionProcess,
}

/// A request for images.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// How many images.
    pub num: usize,
    /// The sampler's settings.
    pub sampler: &'a SamplerConfig,
    /// Where the images begin.
    pub start: Start,
    /// The classes, taken in turn; none for an unconditional model.
    pub classes: Option<Vec<u32>>,
    /// Classifier-free guidance.
    pub guidance: Option<Guidance>,
    /// Images computed at once.
    pub batch_size: usize,
}

/// The noise that images start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Image `k` from the `k`-th noise of this seed.
    Seed(u64),
    /// From the first noise of one seed to the first noise of another, in even steps along the sphere.
    Between(u64, u64),
}

/// Classifier-free guidance (Ho & Salimans 2022): `(1 + w) conditional - w unconditional`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// w.
    pub weight: f64,
    /// The class that stands for "none".
    pub none: u32,
}

/// Images as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Pixels, `[N, H, W, C]`.
    pub pixels: Vec<u8>,
    /// `[N, H, W, C]`.
    pub shape: [usize; 4],
    /// Number of images with a value that is not a number, which is drawn black.
    pub not_finite: usize,
}

/// The network's prediction for some of the images, during drawing.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse<'a> {
    /// The number of the first of these images.
    pub first: usize,
    /// The timestep.
    pub t: Timestep,
    /// The predicted x_0, `[n, H, W, C]`, on the device, so that only a caller that reads it waits for the GPU.
    pub x_start: &'a Tensor,
}

/// The caller's hooks while images are drawn.
pub struct Onlooker<'a> {
    /// Gets the number of finished images.
    pub progress: &'a mut dyn FnMut(usize),
    /// Called before every pass through the network: whether to go on. If not, drawing ends with [`Error::Cancelled`].
    pub proceed: &'a dyn Fn() -> bool,
    /// Gets the network's predictions.
    pub glimpse: &'a mut dyn FnMut(Glimpse<'_>) -> Result<(), Error>,
}
