//! The diffusion process: images to noisy ones, the loss of a network's output with its gradient, its term of the variational
//! bound, a step of a sampler, and the sinusoids of time.
//!
//! A timestep is described by numbers ([`SampleConstants`], [`SamplerConstants`]), which the model crate computes from its
//! schedule; this module knows no schedule, kind of loss or sampler by name. With `s` the constants of a sample:
//!
//! ```text
//! x_t      = s.signal x_0 + s.noise eps
//! mse      = mean of (output - s.target_x_start x_0 - s.target_noise eps)^2
//! loss     = s.mse_weight mse + s.bound_weight bits                    bits: L_t per dimension, where s.bound is not 0
//! ```
//! On a GPU each is one launch that depends on no value from the host: the step's number and the constants are read from device
//! memory, so that a captured graph can be replayed with new ones. The noise is a function of its place
//! ([`Philox::fill_normal`]) and is made wherever it is needed, never stored: the launches move the images, and the network's
//! output with its gradient, once.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod likelihood;
pub mod reference;
mod sampler;

use candle_core::{DType, Device, Tensor};

pub use self::sampler::{SamplerConstants, SamplerState, SamplerStep};
use crate::check;
use crate::error::{KernelError, Result};
use crate::philox::Philox;

/// The constants of a sample's t for its noise and its loss: a row of [`NoisyImages::samples`].
///
/// The loss is `mse_weight * mse + bound_weight * bits`, where the bound's term in bits per dimension counts only if `bound` is
/// not zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampleConstants {
    /// Factor of `x_0` in `x_t`.
    pub signal: f64,
    /// Factor of the noise in `x_t`.
    pub noise: f64,
    /// Factor of `x_0` in what the network should predict.
    pub target_x_start: f64,
    /// Factor of the noise in what the network should predict.
    pub target_noise: f64,
    /// Weight of the mean squared error in the loss.
    pub mse_weight: f64,
    /// Weight of the sample's loss in what is minimised: its weight over the size of the whole batch.
    pub scale: f64,
    /// 0: the loss has no bound in it; 1: it has; 2: it has, and only the variance learns from it.
    pub bound: f64,
    /// Weight of the bound's term, per bit and dimension.
    pub bound_weight: f64,
    /// 1 where the bound's term is the decoder's, 0 where it is a divergence.
    pub decoder: f64,
    /// Factor of `x_t` in the `x_0` that a prediction stands for.
    pub x_start_x_t: f64,
    /// Factor of the prediction in that `x_0`.
    pub x_start_prediction: f64,
    /// Factor of `x_0` in the mean of the posterior.
    pub mean_coef1: f64,
    /// Factor of `x_t` in the mean of the posterior.
    pub mean_coef2: f64,
    /// Logarithm of the posterior's variance, clipped.
    pub posterior_log_variance: f64,
    /// The model's log variance at an output of -1.
    pub log_variance_lower: f64,
    /// How much larger the log variance is at an output of 1.
    pub log_variance_width: f64,
}

impl SampleConstants {
    /// Count of the numbers of a sample.
    pub const WORDS: usize = size_of::<Self>() / size_of::<f64>();

    /// The numbers in the order of the fields, as device memory holds them.
    pub fn words(&self) -> [f64; Self::WORDS] {
        [
            self.signal,
            self.noise,
            self.target_x_start,
            self.target_noise,
            self.mse_weight,
            self.scale,
            self.bound,
            self.bound_weight,
            self.decoder,
            self.x_start_x_t,
            self.x_start_prediction,
            self.mean_coef1,
            self.mean_coef2,
            self.posterior_log_variance,
            self.log_variance_lower,
            self.log_variance_width,
        ]
    }

    /// The inverse of [`words`](Self::words).
    fn from_words(words: [f64; Self::WORDS]) -> Self {
        let [signal, noise, target_x_start, target_noise, mse_weight, scale, bound, bound_weight, rest @ ..] = words;
        let [decoder, x_start_x_t, x_start_prediction, mean_coef1, mean_coef2, rest @ ..] = rest;
        let [posterior_log_variance, log_variance_lower, log_variance_width] = rest;
        Self {
            signal,
            noise,
            target_x_start,
            target_noise,
            mse_weight,
            scale,
            bound,
            bound_weight,
            decoder,
            x_start_x_t,
            x_start_prediction,
            mean_coef1,
            mean_coef2,
            posterior_log_variance,
            log_variance_lower,
            log_variance_width,
        }
    }

    /// The constants of several samples as [`NoisyImages::samples`].
    ///
    /// # Errors
    /// The device's memory is full.
    pub fn tensor(samples: &[Self], device: &Device) -> Result<Tensor> {
        let words: Vec<f64> = samples.iter().flat_map(Self::words).collect();
        Ok(Tensor::from_vec(words, (samples.len(), Self::WORDS), device)?)
    }
}

/// What noise is drawn for: `step`, and images from number `first` on.
pub fn place(step: u64, first: u64) -> [u32; 4] {
    [step as u32, (step >> 32) as u32, first as u32, (first >> 32) as u32]
}

/// A micro-batch of images and their noise, all on the device.
#[derive(Clone, Copy, Debug)]
pub struct NoisyImages<'a> {
    /// `[N, H, W, C]`: u8, which represents [-1, 1]; on a CPU also f32, used unchanged.
    pub images: &'a Tensor,
    /// [`SampleConstants::words`] of each, f64 `[N, SampleConstants::WORDS]`.
    pub samples: &'a Tensor,
    /// The noise added to them.
    pub noise: Noise<'a>,
}

/// Standard normals for images.
#[derive(Clone, Copy, Debug)]
pub enum Noise<'a> {
    /// Made wherever it is needed: element `i` of image `k` is that of `(step, first + first_position + k, i)`.
    Drawn {
        /// The stream.
        stream: Philox,
        /// [`place`] of the step and of the first image of all, u32 `[4]`.
        place: &'a Tensor,
        /// Number of the first image here, counted from that one.
        first_position: u64,
    },
    /// This tensor, f32 of the images' shape; only on a CPU.
    Given(&'a Tensor),
}

impl Noise<'_> {
    fn check(&self, op: &'static str, images: &Tensor) -> Result<()> {
        match self {
            Self::Drawn { place, .. } => check::shape(op, "place", place, &[4]),
            Self::Given(noise) => check::shape(op, "noise", noise, images.dims()),
        }
    }
}

impl NoisyImages<'_> {
    /// The number of images and of the values of each, if all shapes are right.
    fn check(&self, op: &'static str) -> Result<(usize, usize)> {
        let [n, height, width, channels] = check::dims(op, "images", self.images)?;
        check::shape(op, "samples", self.samples, &[n, SampleConstants::WORDS])?;
        self.noise.check(op, self.images)?;
        Ok((n, height * width * channels))
    }
}

/// The loss of a micro-batch, and its gradient.
#[derive(Clone, Debug)]
pub struct LossAndGrad {
    /// d/d model_output of the sum of `scale * loss` over the samples, times the loss scale where there is one; shaped like
    /// the output, in its number format.
    pub grad: Tensor,
    /// Of each sample: the loss, the mean squared error of the prediction, the bound's term in bits per dimension (0 where
    /// the loss has none). f64 `[N, 3]`.
    pub samples: Tensor,
}

/// `x_t = signal x_0 + noise eps` `[N, H, W, C]` in `dtype`, where `x_0` are the images in [-1, 1].
///
/// # Errors
/// A tensor's shape or type is not as [`NoisyImages`] says, the device does not have this operation, or its memory is full.
pub fn q_sample(images: &NoisyImages<'_>, dtype: DType) -> Result<Tensor> {
    const OP: &str = "diffusion_q_sample";
    images.check(OP)?;
    match images.images.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::q_sample(OP, images, dtype),
        Device::Cpu => cpu::q_sample(OP, images, dtype),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The loss of `model_output` `[N, H, W, C]`, or `[N, H, W, 2C]` where the network learns the variance, with its gradient.
/// `loss_scale`, an f64 on the device (or the first number of a larger tensor), multiplies only the gradient.
///
/// # Errors
/// As [`q_sample`], or the output's shape is wrong.
pub fn loss_and_grad(
    images: &NoisyImages<'_>,
    model_output: &Tensor,
    loss_scale: Option<&Tensor>,
) -> Result<LossAndGrad> {
    const OP: &str = "diffusion_loss";
    images.check(OP)?;
    match images.images.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::loss_and_grad(OP, images, model_output, loss_scale),
        Device::Cpu => cpu::loss_and_grad(OP, images, model_output, loss_scale),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// For each image, from `model_output` as in [`loss_and_grad`]: the bound's term in bits per dimension, then the mean squared
/// error of the predicted `x_0`. For both, `x_0` is clamped to [-1, 1], as is usual in evaluation but not in training. f64 `[N,
/// 2]`.
///
/// # Errors
/// As [`loss_and_grad`].
pub fn bound(images: &NoisyImages<'_>, model_output: &Tensor) -> Result<Tensor> {
    const OP: &str = "diffusion_bound";
    images.check(OP)?;
    match images.images.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::bound(OP, images, model_output),
        Device::Cpu => cpu::bound(OP, images, model_output),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// `[N, channels]` in `dtype` of `numbers` (f32, N): `sin(t f_i), cos(t f_i)` with `f_i = 10000^(-i / (half - freq_shift))`
/// and `half = channels / 2`, or the cosines first where `flip_sin_to_cos` says so.
///
/// In f32 throughout, as PyTorch computes it: `t f` reaches 1000, where f32 keeps four decimals of the angle, and a network
/// must see the same rounding in training and in diffusers.
///
/// # Errors
/// The number of channels is odd or 0, the tensor is no f32 row, the device does not have this operation, or its memory is
/// full.
pub fn sinusoids(
    numbers: &Tensor,
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    dtype: DType,
) -> Result<Tensor> {
    const OP: &str = "diffusion_sinusoids";
    let [_] = check::dims(OP, "numbers", numbers)?;
    if channels == 0 || !channels.is_multiple_of(2) {
        let (found, expected) = (vec![channels], vec![channels.next_multiple_of(2).max(2)]);
        return Err(KernelError::Shape { op: OP, tensor: "a row of the result", found, expected });
    }
    match numbers.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::sinusoids(OP, numbers, channels / 2, flip_sin_to_cos, freq_shift, dtype),
        Device::Cpu => Ok(cpu::sinusoids(OP, numbers, channels / 2, flip_sin_to_cos, freq_shift)?.to_dtype(dtype)?),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The images' channels, and whether the output has as many or twice as many.
fn output_channels(op: &'static str, images: &Tensor, output: &Tensor) -> Result<(usize, usize)> {
    let mut expected = images.dims().to_vec();
    let channels = expected.pop().unwrap_or_default();
    let halves = if output.dims().last() == Some(&(2 * channels)) { 2 } else { 1 };
    expected.push(halves * channels);
    check::shape(op, "model_output", output, &expected)?;
    Ok((channels, halves))
}
