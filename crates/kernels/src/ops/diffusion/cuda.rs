//! The launches.

use candle_core::{DType, Tensor};

use super::{LossOnDevice, NoisyImages};
use crate::cuda::{Gpu, Launch, empty, operand, optional};
use crate::error::{KernelError, Result};

/// Threads of a block, each of which takes four neighbouring values at a time.
const THREADS: u32 = 256;
/// Blocks of an image at most: the last one adds up what they found, one after the other.
const MOST_BLOCKS: usize = 64;
/// Images of a launch.
const MOST_IMAGES: usize = 65_535;

/// The arguments every kernel of noisy images begins with.
fn with_images<'g>(
    gpu: &Gpu,
    op: &'static str,
    launch: Launch<'g>,
    images: &NoisyImages<'_>,
    values: usize,
) -> Result<Launch<'g>> {
    Ok(launch
        .arg(operand(gpu, op, images.images, DType::U8)?)
        .arg(operand(gpu, op, images.samples, DType::F64)?)
        .arg(images.noise.key())
        .arg(operand(gpu, op, images.place, DType::U32)?)
        .arg(images.first_position)
        .arg(values))
}

pub(super) fn q_sample(images: &NoisyImages<'_>, dtype: DType) -> Result<Tensor> {
    const OP: &str = "diffusion_q_sample";
    let (n, values) = images.check(OP)?;
    let gpu = Gpu::of(images.images.device())?;
    let x_t = empty(&gpu, dtype, images.images.dims())?;
    with_images(&gpu, OP, gpu.float_kernel(OP, dtype)?, images, values)?
        .arg(operand(&gpu, OP, &x_t, dtype)?)
        .arg(n)
        .over(n * values.div_ceil(4))?;
    Ok(x_t)
}

pub(super) fn loss_and_grad(
    images: &NoisyImages<'_>,
    model_output: &Tensor,
    loss_scale: Option<&Tensor>,
) -> Result<LossOnDevice> {
    const OP: &str = "diffusion_loss";
    let gpu = Gpu::of(images.images.device())?;
    let dtype = model_output.dtype();
    let judged = Judged::new(OP, images, model_output)?;
    let grad = empty(&gpu, dtype, model_output.dims())?;
    let samples = empty(&gpu, DType::F64, (judged.n, 3))?;
    let launch = judged
        .launch(&gpu, OP, images, model_output)?
        .arg(optional(&gpu, OP, loss_scale, DType::F64)?)
        .arg(operand(&gpu, OP, &grad, dtype)?);
    judged.run(&gpu, OP, launch, &samples)?;
    Ok(LossOnDevice { grad, samples })
}

pub(super) fn bound(images: &NoisyImages<'_>, model_output: &Tensor) -> Result<Tensor> {
    const OP: &str = "diffusion_bound";
    let gpu = Gpu::of(images.images.device())?;
    let judged = Judged::new(OP, images, model_output)?;
    let samples = empty(&gpu, DType::F64, (judged.n, 2))?;
    judged.run(&gpu, OP, judged.launch(&gpu, OP, images, model_output)?, &samples)?;
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
        if n > MOST_IMAGES {
            let (found, expected) = (vec![n], vec![MOST_IMAGES]);
            return Err(KernelError::Shape { op, tensor: "images", found, expected });
        }
        Ok(Self { n, values, channels, halves })
    }

    /// The arguments that every such kernel begins with.
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

    /// The arguments that every such kernel ends with: where blocks leave their sums, and where the results belong.
    fn run(&self, gpu: &Gpu, op: &'static str, launch: Launch<'_>, results: &Tensor) -> Result<()> {
        let blocks = self.values.div_ceil(4 * THREADS as usize).min(MOST_BLOCKS);
        launch
            .arg(gpu.workspace(self.n * blocks * 2 * size_of::<f64>())?)
            .arg(gpu.counters(self.n)?)
            .arg(operand(gpu, op, results, DType::F64)?)
            .blocks((blocks as u32, self.n as u32, 1), THREADS)
    }
}

/// The images' channels, and whether the output has as many or twice as many.
pub(super) fn output_channels(op: &'static str, images: &Tensor, output: &Tensor) -> Result<(u32, u32)> {
    let mut expected = images.dims().to_vec();
    let channels = expected.pop().unwrap_or_default();
    let halves = if output.dims().last() == Some(&(2 * channels)) { 2 } else { 1 };
    expected.push(halves * channels);
    if output.dims() != expected {
        return Err(KernelError::Shape { op, tensor: "model_output", found: output.dims().to_vec(), expected });
    }
    match u32::try_from(channels) {
        Ok(channels) => Ok((channels, halves as u32)),
        Err(_) => Err(KernelError::Shape { op, tensor: "images", found: images.dims().to_vec(), expected }),
    }
}

pub(super) fn sinusoids(numbers: &Tensor, half: usize, flip: bool, freq_shift: f64, dtype: DType) -> Result<Tensor> {
    const OP: &str = "diffusion_sinusoids";
    let gpu = Gpu::of(numbers.device())?;
    let n = numbers.elem_count();
    let y = empty(&gpu, dtype, (n, 2 * half))?;
    gpu.float_kernel(OP, dtype)?
        .arg(operand(&gpu, OP, numbers, DType::F32)?)
        .arg(operand(&gpu, OP, &y, dtype)?)
        .arg(n)
        .arg(half)
        .arg(u32::from(flip))
        .arg(-(10_000f64.ln()) as f32)
        .arg((half as f64 - freq_shift) as f32)
        .over(n * half)?;
    Ok(y)
}
