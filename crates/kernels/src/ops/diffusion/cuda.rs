//! The launches.

use candle_core::{DType, Tensor};

use super::{LossAndGrad, Noise, NoisyImages, output_channels};
use crate::cuda::{Gpu, Launch, empty, operand, optional};
use crate::error::{KernelError, Result};

/// Threads of a block, each of which takes four neighbouring values at a time.
const THREADS: u32 = 256;
/// The most blocks of an image: the last one adds up their sums, one after another.
const MOST_BLOCKS: usize = 64;
/// Images of a launch.
const MOST_IMAGES: usize = 65_535;

/// The first arguments of every kernel of noisy images.
fn with_images<'g>(
    gpu: &Gpu,
    op: &'static str,
    launch: Launch<'g>,
    images: &NoisyImages<'_>,
    values: usize,
) -> Result<Launch<'g>> {
    let Noise::Drawn { stream, place, first_position } = images.noise else {
        return Err(KernelError::Device { op, device: images.images.device().location() });
    };
    Ok(launch
        .arg(operand(gpu, op, images.images, DType::U8)?)
        .arg(operand(gpu, op, images.samples, DType::F64)?)
        .arg(stream.key())
        .arg(operand(gpu, op, place, DType::U32)?)
        .arg(first_position)
        .arg(values))
}

pub(super) fn q_sample(op: &'static str, images: &NoisyImages<'_>, dtype: DType) -> Result<Tensor> {
    let (n, values) = images.check(op)?;
    let gpu = Gpu::of(images.images.device())?;
    let x_t = empty(&gpu, dtype, images.images.dims())?;
    with_images(&gpu, op, gpu.float_kernel(op, dtype)?, images, values)?
        .arg(operand(&gpu, op, &x_t, dtype)?)
        .arg(n)
        .over(n * values.div_ceil(4))?;
    Ok(x_t)
}

pub(super) fn loss_and_grad(
    op: &'static str,
    images: &NoisyImages<'_>,
    model_output: &Tensor,
    loss_scale: Option<&Tensor>,
) -> Result<LossAndGrad> {
    let gpu = Gpu::of(images.images.device())?;
    let dtype = model_output.dtype();
    let judged = Judged::new(op, images, model_output)?;
    let grad = empty(&gpu, dtype, model_output.dims())?;
    let samples = empty(&gpu, DType::F64, (judged.n, 3))?;
    let launch = judged
        .launch(&gpu, op, images, model_output)?
        .arg(optional(&gpu, op, loss_scale, DType::F64)?)
        .arg(operand(&gpu, op, &grad, dtype)?);
    judged.run(&gpu, op, launch, &samples)?;
    Ok(LossAndGrad { grad, samples })
}

pub(super) fn bound(op: &'static str, images: &NoisyImages<'_>, model_output: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(images.images.device())?;
    let judged = Judged::new(op, images, model_output)?;
    let samples = empty(&gpu, DType::F64, (judged.n, 2))?;
    judged.run(&gpu, op, judged.launch(&gpu, op, images, model_output)?, &samples)?;
    Ok(samples)
}

/// Sizes of a launch that judges a network's output, image by image.
struct Judged {
    n: usize,
    values: usize,
    channels: u32,
    halves: u32,
}

impl Judged {
    fn new(op: &'static str, images: &NoisyImages<'_>, model_output: &Tensor) -> Result<Self> {
        let (n, values) = images.check(op)?;
        let (channels, halves) = output_channels(op, images.images, model_output)?;
        let channels = in_32_bits(op, images.images, channels)?;
        if n > MOST_IMAGES {
            let (found, expected) = (vec![n], vec![MOST_IMAGES]);
            return Err(KernelError::Shape { op, tensor: "images", found, expected });
        }
        Ok(Self { n, values, channels, halves: halves as u32 })
    }

    /// The first arguments of every such kernel.
    fn launch<'g>(
        &self,
        gpu: &'g Gpu,
        op: &'static str,
        images: &NoisyImages<'_>,
        model_output: &Tensor,
    ) -> Result<Launch<'g>> {
        let dtype = model_output.dtype();
        let launch = with_images(gpu, op, gpu.float_kernel(op, dtype)?, images, self.values)?;
        Ok(launch.arg(operand(gpu, op, model_output, dtype)?).arg(self.channels).arg(self.halves))
    }

    /// The last arguments of every such kernel: the addresses of the blocks' sums and of the results.
    fn run(&self, gpu: &Gpu, op: &'static str, launch: Launch<'_>, results: &Tensor) -> Result<()> {
        let blocks = self.values.div_ceil(4 * THREADS as usize).min(MOST_BLOCKS);
        launch
            .arg(gpu.workspace(self.n * blocks * 2 * size_of::<f64>())?)
            .arg(gpu.counters(self.n)?)
            .arg(operand(gpu, op, results, DType::F64)?)
            .blocks((blocks as u32, self.n as u32, 1), THREADS)
    }
}

/// A number of channels as the kernels take it.
pub(super) fn in_32_bits(op: &'static str, images: &Tensor, channels: usize) -> Result<u32> {
    u32::try_from(channels).map_err(|_| {
        let (found, expected) = (images.dims().to_vec(), vec![u32::MAX as usize]);
        KernelError::Shape { op, tensor: "images", found, expected }
    })
}

pub(super) fn sinusoids(
    op: &'static str,
    numbers: &Tensor,
    half: usize,
    flip: bool,
    freq_shift: f64,
    dtype: DType,
) -> Result<Tensor> {
    let gpu = Gpu::of(numbers.device())?;
    let n = numbers.elem_count();
    let y = empty(&gpu, dtype, (n, 2 * half))?;
    gpu.float_kernel(op, dtype)?
        .arg(operand(&gpu, op, numbers, DType::F32)?)
        .arg(operand(&gpu, op, &y, dtype)?)
        .arg(n)
        .arg(half)
        .arg(u32::from(flip))
        .arg(-(10_000f64.ln()) as f32)
        .arg((half as f64 - freq_shift) as f32)
        .over(n * half)?;
    Ok(y)
}
