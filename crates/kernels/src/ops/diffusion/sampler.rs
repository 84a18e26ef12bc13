//! A step of a sampler, for all images of a batch at once.
//!
//! Every sampler is linear in its inputs, so a step is a few numbers ([`SamplerConstants`]), and this module knows no sampler
//! by name. A step is computed in f64 and rounded once, because its rounding error passes through the network at every later
//! step. On a GPU it is one launch, which reads those numbers, and the step and images to make noise for, from device memory: a
//! captured step can be replayed as the next one.
//!
//! A GPU moves for each value: x_t and the predicted x_0, f32, read and written; the network's output, read; its next input,
//! written, both in the network's format. With a 16-bit network that is 20 bytes, against some MB that the network moves.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{DType, Device, Tensor};

use super::{Noise, output_channels};
use crate::check;
use crate::error::{KernelError, Result};
use crate::philox::Philox;

/// The constants of a step, for every image; all factors are f64. With the prediction p, guided:
///
/// ```text
/// x_0      = x_start_x_t x_t + x_start_prediction p                                 clamped to [-1, 1] where clip is not 0
/// x_{t-1}  = mean_x_start x_0 + mean_x_t x_t + mean_prediction p + mean_previous (x_0 of the step before)
///            + exp(log_variance / 2) z                                              where noise is not 0
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplerConstants {
    /// w of classifier-free guidance, where there is a second, unguided output: `(1 + w) p - w p_unguided`.
    pub guidance: f64,
    /// Factor of `x_t` in the predicted `x_0`.
    pub x_start_x_t: f64,
    /// Factor of the prediction in that `x_0`.
    pub x_start_prediction: f64,
    /// 1 where it is clamped to [-1, 1].
    pub clip: f64,
    /// Factor of the predicted `x_0` in the mean of the next `x_t`.
    pub mean_x_start: f64,
    /// Factor of `x_t` in that mean.
    pub mean_x_t: f64,
    /// Factor of the prediction in that mean.
    pub mean_prediction: f64,
    /// Factor in that mean of the `x_0` predicted at the step before.
    pub mean_previous: f64,
    /// 1 where the step adds noise.
    pub noise: f64,
    /// Logarithm of the noise's variance, at an output of -1 where the network learns it.
    pub log_variance_lower: f64,
    /// How much larger the log variance is at an output of 1.
    pub log_variance_width: f64,
}

impl SamplerConstants {
    /// Count of the numbers of a step.
    pub const WORDS: usize = size_of::<Self>() / size_of::<f64>();

    /// The numbers in the order of the fields, as device memory holds them.
    pub fn words(&self) -> [f64; Self::WORDS] {
        [
            self.guidance,
            self.x_start_x_t,
            self.x_start_prediction,
            self.clip,
            self.mean_x_start,
            self.mean_x_t,
            self.mean_prediction,
            self.mean_previous,
            self.noise,
            self.log_variance_lower,
            self.log_variance_width,
        ]
    }

    /// The inverse of [`words`](Self::words).
    fn from_words(words: [f64; Self::WORDS]) -> Self {
        let [guidance, x_start_x_t, x_start_prediction, clip, rest @ ..] = words;
        let [mean_x_start, mean_x_t, mean_prediction, mean_previous, rest @ ..] = rest;
        let [noise, log_variance_lower, log_variance_width] = rest;
        Self {
            guidance,
            x_start_x_t,
            x_start_prediction,
            clip,
            mean_x_start,
            mean_x_t,
            mean_prediction,
            mean_previous,
            noise,
            log_variance_lower,
            log_variance_width,
        }
    }
}

/// The inputs of a step, on the device.
#[derive(Clone, Copy, Debug)]
pub struct SamplerStep<'a> {
    /// [`SamplerConstants::words`], f64 `[SamplerConstants::WORDS]`.
    pub constants: &'a Tensor,
    /// The noise that it adds, if the constants say so.
    pub noise: Noise<'a>,
    /// The network's output, `[N, H, W, C]` or `[N, H, W, 2C]`, in its number format.
    pub output: &'a Tensor,
    /// Its output without the class, for guidance.
    pub unguided: Option<&'a Tensor>,
}

/// N images between noise and picture, at fixed addresses.
#[derive(Debug)]
pub struct SamplerState {
    x_t: Tensor,
    x_start: Tensor,
    input: Tensor,
}

impl SamplerState {
    /// Memory for images of this shape `[N, H, W, C]`, for a network that computes in `dtype`.
    ///
    /// # Errors
    /// The device does not have this operation, its memory is full, or a network cannot use this format there.
    pub fn new(shape: [usize; 4], dtype: DType, device: &Device) -> Result<Self> {
        const OP: &str = "sampler";
        let state = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::new(&shape, dtype, device)?,
            Device::Cpu if dtype == DType::F32 => {
                let [x_t, x_start] = [Tensor::zeros(&shape, dtype, device)?, Tensor::zeros(&shape, dtype, device)?];
                Self { input: x_t.clone(), x_t, x_start }
            }
            Device::Cpu => return Err(KernelError::Layout { op: OP, dtype, shape: shape.to_vec() }),
            other => return Err(KernelError::Device { op: OP, device: other.location() }),
        };
        check::not_empty(OP, "x_t", &state.x_t)?;
        Ok(state)
    }

    /// x_t, f32.
    pub fn x_t(&self) -> &Tensor {
        &self.x_t
    }

    /// x_t as the network's input, in the network's format.
    pub fn input(&self) -> &Tensor {
        &self.input
    }

    /// The x_0 that the last step predicted, f32; any numbers before the first.
    pub fn x_start(&self) -> &Tensor {
        &self.x_start
    }

    /// Starts from noise: image `k` is the noise of step 0 and number `first + k`.
    ///
    /// # Errors
    /// The driver fails.
    pub fn begin(&self, noise: Philox, first: u64) -> Result<()> {
        match self.x_t.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::begin(self, None, noise.key(), first),
            _ => cpu::begin(&self.x_t, noise, first),
        }
    }

    /// Starts from `x_t`, f32, of the shape of these images.
    ///
    /// # Errors
    /// The tensor does not fit, or the driver fails.
    pub fn begin_at(&self, x_t: &Tensor) -> Result<()> {
        const OP: &str = "sampler_begin";
        check::shape(OP, "x_t", x_t, self.x_t.dims())?;
        match self.x_t.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::begin(self, Some(x_t), 0, 0),
            _ => cpu::begin_at(OP, &self.x_t, x_t),
        }
    }

    /// Computes the next x_t.
    ///
    /// # Errors
    /// A tensor's shape or type is not as [`SamplerStep`] says, or the driver fails.
    pub fn step(&self, step: &SamplerStep<'_>) -> Result<()> {
        const OP: &str = "sampler_step";
        check::shape(OP, "constants", step.constants, &[SamplerConstants::WORDS])?;
        step.noise.check(OP, &self.x_t)?;
        let (channels, halves) = output_channels(OP, &self.x_t, step.output)?;
        if let Some(unguided) = step.unguided {
            check::shape(OP, "unguided", unguided, step.output.dims())?;
        }
        match self.x_t.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::step(OP, self, step, (channels, halves)),
            _ => cpu::step(OP, [&self.x_t, &self.x_start], step, (channels, halves)),
        }
    }
}
