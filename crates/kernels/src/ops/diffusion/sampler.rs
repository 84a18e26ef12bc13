//! A sampler on a GPU: images on their way out of the noise, a step of all of them in one launch.
//!
//! Every sampler is linear in what a step knows, so the host says a step in a few numbers ([`SamplerConstants`]) and the
//! launch knows no sampler by name. It reads them, and whose noise it is to make, from device memory: a captured step can be
//! replayed as the next one.
//!
//! Moved per value: x_t and the predicted x_0, f32, read and written; the network's output read and its next input written,
//! in the format it computes in. That is 20 bytes beside a 16-bit network, against some MB that the network moves for it.

use candle_core::{DType, Device, Tensor};

use super::cuda::output_channels;
use crate::cuda::{Address, Gpu, empty, operand, optional};
use crate::error::Result;
use crate::ops::check;
use crate::philox::Philox;

/// What a step does to every image; all factors are of f64. With the prediction p, guided:
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
    /// Factor of the prediction in it.
    pub x_start_prediction: f64,
    /// 1 where it is clamped to [-1, 1].
    pub clip: f64,
    /// Factor of the predicted `x_0` in the mean of the next `x_t`.
    pub mean_x_start: f64,
    /// Factor of `x_t` in it.
    pub mean_x_t: f64,
    /// Factor of the prediction in it.
    pub mean_prediction: f64,
    /// Factor in it of the `x_0` predicted at the step before.
    pub mean_previous: f64,
    /// 1 where the step adds noise.
    pub noise: f64,
    /// Logarithm of the noise's variance, at an output of -1 where the network learns it.
    pub log_variance_lower: f64,
    /// How much larger it is at an output of 1.
    pub log_variance_width: f64,
}

impl SamplerConstants {
    /// Numbers of a step.
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
}

/// What a step is told, all in the GPU's memory but the key of the noise.
#[derive(Clone, Copy, Debug)]
pub struct SamplerStep<'a> {
    /// [`SamplerConstants::words`], f64 `[SamplerConstants::WORDS]`.
    pub constants: &'a Tensor,
    /// [`place`](super::place) of the noise it adds, u32 `[4]`.
    pub place: &'a Tensor,
    /// The stream of the noise: element `i` of image `k` is that of `(step, first + k, i)`.
    pub noise: Philox,
    /// The network's output, `[N, H, W, C]` or `[N, H, W, 2C]`, in its number format.
    pub output: &'a Tensor,
    /// Its output without the class, where that is to guide.
    pub unguided: Option<&'a Tensor>,
}

/// N images between noise and picture, in memory that keeps its place.
#[derive(Debug)]
pub struct SamplerState {
    /// f32: what a step loses is lost for all later ones.
    x_t: Tensor,
    x_start: Tensor,
    input: Tensor,
}

impl SamplerState {
    /// Room for images of this shape `[N, H, W, C]`, for a network that computes in `dtype`.
    ///
    /// # Errors
    /// The device is no GPU, its memory is full, or the network cannot compute so.
    pub fn new(shape: [usize; 4], dtype: DType, device: &Device) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let x_t = empty(&gpu, DType::F32, &shape)?;
        check::not_empty("sampler", "x_t", &x_t)?;
        let input = if dtype == DType::F32 { x_t.clone() } else { empty(&gpu, dtype, &shape)? };
        Ok(Self { x_start: empty(&gpu, DType::F32, &shape)?, x_t, input })
    }

    /// x_t, f32.
    pub fn x_t(&self) -> &Tensor {
        &self.x_t
    }

    /// x_t as the network is shown it, in the format it computes in.
    pub fn input(&self) -> &Tensor {
        &self.input
    }

    /// The x_0 that the last step predicted, f32; any numbers before the first.
    pub fn x_start(&self) -> &Tensor {
        &self.x_start
    }

    /// Queues the beginning: image `k` is the noise of step 0 and number `first + k`.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn begin(&self, noise: Philox, first: u64) -> Result<()> {
        self.queue_begin(Address::NONE, noise.key(), first)
    }

    /// Queues the beginning at `x_t`, f32, of the shape of these images.
    ///
    /// # Errors
    /// Another tensor, or the driver refuses.
    pub fn begin_at(&self, x_t: &Tensor) -> Result<()> {
        const OP: &str = "sampler_begin";
        check::shape(OP, "x_t", x_t, self.x_t.dims())?;
        self.queue_begin(operand(&*Gpu::of(self.x_t.device())?, OP, x_t, DType::F32)?, 0, 0)
    }

    fn queue_begin(&self, given: Address, key: u64, first: u64) -> Result<()> {
        const OP: &str = "sampler_begin";
        let gpu = Gpu::of(self.x_t.device())?;
        let (n, values) = self.sizes();
        gpu.float_kernel(OP, self.input.dtype())?
            .arg(given)
            .arg(key)
            .arg(first)
            .arg(operand(&gpu, OP, &self.x_t, DType::F32)?)
            .arg(self.separate_input(&gpu, OP)?)
            .arg(values)
            .arg(n)
            .over(n * values.div_ceil(4))
    }

    /// Queues a step: x_t becomes the next one.
    ///
    /// # Errors
    /// Tensors of other shapes or types than [`SamplerStep`] says, or the driver refuses.
    pub fn step(&self, step: &SamplerStep<'_>) -> Result<()> {
        const OP: &str = "sampler_step";
        let (n, values) = self.sizes();
        let dtype = self.input.dtype();
        check::shape(OP, "constants", step.constants, &[SamplerConstants::WORDS])?;
        check::shape(OP, "place", step.place, &[4])?;
        let (channels, halves) = output_channels(OP, &self.x_t, step.output)?;
        if let Some(unguided) = step.unguided {
            check::shape(OP, "unguided", unguided, step.output.dims())?;
        }
        let gpu = Gpu::of(self.x_t.device())?;
        gpu.float_kernel(OP, dtype)?
            .arg(operand(&gpu, OP, step.constants, DType::F64)?)
            .arg(operand(&gpu, OP, step.place, DType::U32)?)
            .arg(step.noise.key())
            .arg(operand(&gpu, OP, step.output, dtype)?)
            .arg(optional(&gpu, OP, step.unguided, dtype)?)
            .arg(channels)
            .arg(halves)
            .arg(operand(&gpu, OP, &self.x_t, DType::F32)?)
            .arg(operand(&gpu, OP, &self.x_start, DType::F32)?)
            .arg(self.separate_input(&gpu, OP)?)
            .arg(values)
            .arg(n)
            .over(n * values.div_ceil(4))
    }

    /// Images, and values of one.
    fn sizes(&self) -> (usize, usize) {
        let n = self.x_t.dims().first().copied().unwrap_or_default();
        (n, self.x_t.elem_count() / n.max(1))
    }

    /// The network's input, where it is not x_t itself.
    fn separate_input(&self, gpu: &Gpu, op: &'static str) -> Result<Address> {
        let dtype = self.input.dtype();
        if dtype == DType::F32 { Ok(Address::NONE) } else { operand(gpu, op, &self.input, dtype) }
    }
}
