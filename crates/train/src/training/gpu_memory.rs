//! The GPU memory of a training step, estimated without a GPU; and what to do when it does not fit.
//!
//! The parts that last are counted: weights in f32 and again in 16 bits, gradient, both moments, averages. Activations come
//! from [`Sketch::peak_bytes`]. The memory that the driver and the libraries keep for themselves (the context, kernels; some
//! 500 MiB) is not included, and neither is it in the measured peak.

use ddpm_model::ModelError;
use ddpm_model::tape::Sketch;
use ddpm_model::unet::UNet;
use ddpm_run::memory::format_bytes;
use serde::Serialize;

use crate::config::types::{Precision, TrainConfig};

/// The batch that the step reads, and those that wait (`IN_FLIGHT` in `ddpm-kernels`).
const BATCHES: usize = 1 + 4;
/// Scratch space of cuBLASLt, and of most of cuDNN's engines; an engine that is faster with more may take more.
const SCRATCH_BYTES: u64 = 32 << 20;

/// A step's memory on a GPU, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuNeeds {
    /// The format the network computes in, named as `train.precision` is.
    pub precision: Precision,
    /// Images computed at once.
    pub images: usize,
    /// Whether activations are recomputed in the backward pass (gradient checkpointing).
    pub gradient_checkpointing: bool,
    /// Weights, their 16-bit copy, both moments and the averages.
    pub parameters_bytes: u64,
    /// The gradient.
    pub gradients_bytes: u64,
    /// Activations, and their gradients in the backward pass.
    pub activations_bytes: u64,
    /// Batches of images, scratch space, and buffers of partial sums.
    pub workspace_bytes: u64,
    /// The total.
    pub total_bytes: u64,
}

/// Estimates the memory of a configuration's steps.
#[derive(Debug)]
pub struct GpuEstimate<'a> {
    config: &'a TrainConfig,
    /// Length of a flat buffer.
    len: u64,
    sketch: Sketch,
}

impl<'a> GpuEstimate<'a> {
    /// Computes the network's shapes.
    ///
    /// # Errors
    /// The network's settings are invalid.
    pub fn new(config: &'a TrainConfig) -> Result<Self, ModelError> {
        let unet = UNet::new(&config.model)?;
        Ok(Self { config, len: unet.layout().len() as u64, sketch: unet.sketch(true)? })
    }

    /// The memory of a step as configured, with `images` at once.
    pub fn of(&self, images: usize) -> GpuNeeds {
        self.needs(self.config.train.precision, images, self.config.train.gradient_checkpointing)
    }

    /// The same with gradient checkpointing.
    pub fn checkpointed(&self, images: usize) -> GpuNeeds {
        self.needs(self.config.train.precision, images, true)
    }

    /// The memory of a step in f32, as on a CPU.
    pub(crate) fn in_f32(&self, images: usize) -> GpuNeeds {
        self.needs(Precision::F32, images, self.config.train.gradient_checkpointing)
    }

    fn needs(&self, precision: Precision, images: usize, gradient_checkpointing: bool) -> GpuNeeds {
        let TrainConfig { data, train, .. } = self.config;
        let f32s = size_of::<f32>() as u64;
        let (size, copy) = if precision == Precision::F32 { (f32s, 0) } else { (f32s / 2, f32s / 2) };
        let parameters_bytes = self.len * (f32s * (3 + train.ema_decays.len() as u64) + copy);
        // 16-bit gradients of weights have a place of their own.
        let gradients_bytes = self.len * (f32s + copy);
        let activations_bytes = self.sketch.peak_bytes(images, size as usize, gradient_checkpointing);
        let batches = BATCHES * train.batch_size * data.image_size.pixels() * data.channels;
        let workspace_bytes = SCRATCH_BYTES + self.sketch.sums_bytes(images) + batches as u64;
        let total_bytes = parameters_bytes + gradients_bytes + activations_bytes + workspace_bytes;
        GpuNeeds {
            precision,
            images,
            gradient_checkpointing,
            parameters_bytes,
            gradients_bytes,
            activations_bytes,
            workspace_bytes,
            total_bytes,
        }
    }

    /// The largest power of two of images at once that stays within `bytes`.
    pub(crate) fn images_within(&self, bytes: u64) -> Option<usize> {
        let fits = |images: &usize| self.of(*images).total_bytes <= bytes;
        let powers =
            (0..usize::BITS).map(|power| 1 << power).take_while(|&images| images <= self.config.train.batch_size);
        powers.take_while(fits).last()
    }

    /// Advice on how a step with `images` at once fits into `bytes`: fewer images, or else less memory for each.
    pub fn advice(&self, images: usize, bytes: u64) -> String {
        if let Some(fewer) = self.images_within(bytes).filter(|&fewer| fewer < images) {
            return format!(
                "set train.micro_batch = {fewer}, which changes no update, or 0 to have the largest number found that fits"
            );
        }
        let train = &self.config.train;
        let checkpointing = (Precision::F32, true, "train.gradient_checkpointing = true");
        let half = (Precision::Bf16, false, "train.precision = \"bf16\"");
        let both = (Precision::Bf16, true, "train.precision = \"bf16\" and train.gradient_checkpointing = true");
        let ways: &[_] = match (train.precision, train.gradient_checkpointing) {
            (Precision::F32, false) => &[checkpointing, half, both],
            (Precision::F32, true) => &[both],
            (_, false) => &[(train.precision, true, checkpointing.2)],
            (_, true) => &[],
        };
        let way = ways.iter().find(|(precision, on, _)| self.needs(*precision, 1, *on).total_bytes <= bytes);
        let narrower = "model.block_out_channels narrower or data.image_size smaller";
        match way {
            Some((_, _, way)) => format!("with train.micro_batch = 0, set {way}; or make {narrower}"),
            None => format!("make {narrower}, or take a GPU with more memory"),
        }
    }
}

impl GpuNeeds {
    /// The total and its parts as text.
    pub fn describe(&self) -> String {
        let [total, lasting, activations, rest] = [
            self.total_bytes,
            self.parameters_bytes + self.gradients_bytes,
            self.activations_bytes,
            self.workspace_bytes,
        ]
        .map(format_bytes);
        let Self { precision, images, .. } = self;
        let images = if *images == 1 { "1 image".to_owned() } else { format!("{images} images at once") };
        let again = if self.gradient_checkpointing { ", blocks computed again" } else { "" };
        format!(
            "{total} in {precision}: {lasting} for parameters, gradient and optimizer, {activations} for {images}{again}, \
             {rest} of scratch space"
        )
    }
}
