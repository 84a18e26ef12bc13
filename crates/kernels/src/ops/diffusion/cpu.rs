//! The process on a CPU: one task for each image. A task makes its noise again wherever it is needed, as a GPU does. x_t is
//! f32, with every product and sum rounded; losses and bounds are f64, summed in the order of the values, so that neither
//! threads nor micro-batches change a bit.

use std::borrow::Cow;
use std::f64::consts::LN_2;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::likelihood::{Nats, negative_log_likelihood, normal_kl};
use super::{LossAndGrad, Noise, NoisyImages, SampleConstants, output_channels};
use crate::buffer::{CpuSlice, cpu_slice, cpu_tensor, unwritten};
use crate::error::{KernelError, Result};
use crate::philox::Philox;

/// A micro-batch, read from its tensors.
struct Batch<'a> {
    samples: Vec<SampleConstants>,
    pixels: Pixels<'a>,
    noise: Source<'a>,
    /// Of an image.
    values: usize,
}

enum Pixels<'a> {
    Bytes(Vec<u8>),
    Numbers(&'a [f32]),
}

pub(super) enum Source<'a> {
    Drawn { stream: Philox, step: u64, first: u64 },
    Given(&'a [f32]),
}

/// An image and its noise.
struct Sample<'b> {
    constants: &'b SampleConstants,
    x_start: Cow<'b, [f32]>,
    noise: Cow<'b, [f32]>,
}

/// The storage that a batch borrows: its images and its noise, if they are f32.
fn borrowed<'a>(op: &'static str, images: &NoisyImages<'a>) -> Result<[Option<CpuSlice<'a>>; 2]> {
    let pixels = if images.images.dtype() == DType::U8 { None } else { Some(cpu_slice(op, images.images)?) };
    Ok([pixels, given(op, &images.noise)?])
}

/// The noise, if it is given.
pub(super) fn given<'a>(op: &'static str, noise: &Noise<'a>) -> Result<Option<CpuSlice<'a>>> {
    if let Noise::Given(noise) = noise { Ok(Some(cpu_slice(op, noise)?)) } else { Ok(None) }
}

/// The step and the number of the first image that [`place`](super::place) says.
fn read_place(place: &Tensor) -> Result<(u64, u64)> {
    let words = place.to_vec1::<u32>()?;
    let number = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    Ok((number(0), number(2)))
}

impl<'a> Batch<'a> {
    fn new(images: &NoisyImages<'_>, [pixels, noise]: &'a [Option<CpuSlice<'_>>; 2]) -> Result<Self> {
        let samples = images.samples.to_vec2::<f64>()?;
        let samples = samples.into_iter().filter_map(|words| words.try_into().ok()).map(SampleConstants::from_words);
        let pixels = match pixels {
            Some(numbers) => Pixels::Numbers(numbers),
            None => Pixels::Bytes(images.images.flatten_all()?.to_vec1()?),
        };
        let noise = Source::new(&images.noise, noise.as_deref())?;
        let values = images.images.elem_count() / images.images.dim(0)?;
        Ok(Self { samples: samples.collect(), pixels, noise, values })
    }

    fn sample(&self, image: usize) -> Sample<'_> {
        let range = image * self.values..(image + 1) * self.values;
        let x_start = match &self.pixels {
            Pixels::Bytes(bytes) => bytes[range.clone()].iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect(),
            Pixels::Numbers(numbers) => Cow::Borrowed(&numbers[range]),
        };
        Sample { constants: &self.samples[image], x_start, noise: self.noise.of(image, self.values) }
    }
}

impl<'a> Source<'a> {
    /// `given` are the values of the noise, if it is given.
    pub(super) fn new(noise: &Noise<'_>, given: Option<&'a [f32]>) -> Result<Self> {
        Ok(match *noise {
            Noise::Drawn { stream, place, first_position } => {
                let (step, first) = read_place(place)?;
                Self::Drawn { stream, step, first: first + first_position }
            }
            Noise::Given(_) => Self::Given(given.unwrap_or_default()),
        })
    }

    /// The noise of an image of so many values.
    pub(super) fn of(&self, image: usize, values: usize) -> Cow<'a, [f32]> {
        match self {
            Self::Drawn { stream, step, first } => {
                let mut normals = vec![0.0; values];
                stream.fill_normal(*step, first + image as u64, &mut normals);
                Cow::Owned(normals)
            }
            Self::Given(noise) => Cow::Borrowed(&noise[image * values..(image + 1) * values]),
        }
    }
}

impl Sample<'_> {
    fn x_t(&self, i: usize) -> f32 {
        self.x_start[i] * self.constants.signal as f32 + self.noise[i] * self.constants.noise as f32
    }

    /// The loss, the mean squared error and the bits of this image; its gradient, `loss_scale` times, is added to `grad`.
    fn loss(&self, output: &[f32], channels: usize, loss_scale: f64, grad: &mut [f32]) -> [f64; 3] {
        let s = self.constants;
        let (values, scale) = (self.x_start.len() as f64, s.scale * loss_scale);
        let (of_error, per_value) = (2.0 * (scale * s.mse_weight) / values, 1.0 / (values * LN_2));
        let of_nats = scale * s.bound_weight * per_value;
        let out_channels = channels * (output.len() / self.x_start.len());
        let pixels = output.chunks_exact(out_channels).zip(grad.chunks_exact_mut(out_channels));
        let (mut squares, mut nats) = (0.0, 0.0);
        for (pixel, (output, grad)) in pixels.enumerate() {
            for c in 0..channels {
                let at = pixel * channels + c;
                let [x_start, noise, prediction] = [self.x_start[at], self.noise[at], output[c]].map(f64::from);
                let error = prediction - (s.target_x_start * x_start + s.target_noise * noise);
                squares += error * error;
                grad[c] += (of_error * error) as f32;
                if s.bound == 0.0 {
                    continue;
                }
                let predicted = s.predicted_x_start(f64::from(self.x_t(at)), prediction);
                let term = s.term(x_start, f64::from(self.x_t(at)), predicted, variance_value(output, channels, c));
                nats += term.value;
                if s.bound == 1.0 {
                    grad[c] += (of_nats * (term.d_mean * (s.mean_coef1 * s.x_start_prediction))) as f32;
                }
                if let Some(grad) = grad.get_mut(channels + c) {
                    *grad += (of_nats * (term.d_log_variance * 0.5 * s.log_variance_width)) as f32;
                }
            }
        }
        let (mse, bits) = (squares / values, nats * per_value);
        let of_bound = if s.bound == 0.0 { 0.0 } else { s.bound_weight * bits };
        [s.mse_weight * mse + of_bound, mse, bits]
    }

    /// The bound's term in bits per dimension, and the mean squared error of the predicted x_0, which is clamped in both.
    fn bound(&self, output: &[f32], channels: usize) -> [f64; 2] {
        let s = self.constants;
        let (mut nats, mut squares) = (0.0, 0.0);
        let pixels = output.chunks_exact(channels * (output.len() / self.x_start.len()));
        for (pixel, output) in pixels.enumerate() {
            for c in 0..channels {
                let at = pixel * channels + c;
                let [x_start, x_t, prediction] = [self.x_start[at], self.x_t(at), output[c]].map(f64::from);
                let predicted = s.predicted_x_start(x_t, prediction).clamp(-1.0, 1.0);
                nats += s.term(x_start, x_t, predicted, variance_value(output, channels, c)).value;
                squares += (predicted - x_start).powi(2);
            }
        }
        let values = self.x_start.len() as f64;
        [nats / (values * LN_2), squares / values]
    }
}

/// The variance of channel `c` from a pixel's output; without a second half of channels, the lower bound.
fn variance_value(output: &[f32], channels: usize, c: usize) -> f64 {
    f64::from(output.get(channels + c).copied().unwrap_or(-1.0))
}

impl SampleConstants {
    fn predicted_x_start(&self, x_t: f64, prediction: f64) -> f64 {
        self.x_start_x_t * x_t + self.x_start_prediction * prediction
    }

    /// One element's term of the bound for a predicted x_0, with its derivatives by the mean and the log variance.
    fn term(&self, x_start: f64, x_t: f64, predicted: f64, variance_value: f64) -> Nats {
        let log_variance = self.log_variance_lower + 0.5 * (variance_value + 1.0) * self.log_variance_width;
        if self.decoder != 0.0 {
            return negative_log_likelihood(x_start, self.mean_coef1 * predicted + self.mean_coef2 * x_t, log_variance);
        }
        // Both means contain the same x_t, so only the two x_0 differ.
        normal_kl(self.mean_coef1 * (predicted - x_start), self.posterior_log_variance, log_variance)
    }
}

pub(super) fn q_sample(op: &'static str, images: &NoisyImages<'_>, dtype: DType) -> Result<Tensor> {
    if dtype != DType::F32 {
        return Err(KernelError::Layout { op, dtype, shape: images.images.dims().to_vec() });
    }
    let borrowed = borrowed(op, images)?;
    let batch = Batch::new(images, &borrowed)?;
    let mut x_t = unwritten(images.images.elem_count());
    x_t.par_chunks_mut(batch.values).enumerate().for_each(|(image, x_t)| {
        let sample = batch.sample(image);
        x_t.iter_mut().enumerate().for_each(|(i, x_t)| *x_t = sample.x_t(i));
    });
    cpu_tensor(x_t, images.images.dims())
}

pub(super) fn loss_and_grad(
    op: &'static str,
    images: &NoisyImages<'_>,
    model_output: &Tensor,
    loss_scale: Option<&Tensor>,
) -> Result<LossAndGrad> {
    let (channels, halves) = output_channels(op, images.images, model_output)?;
    let loss_scale = loss_scale.map(|scale| scale.flatten_all()?.get(0)?.to_scalar::<f64>()).transpose()?;
    let borrowed = borrowed(op, images)?;
    let (batch, output) = (Batch::new(images, &borrowed)?, cpu_slice(op, model_output)?);
    let of_image = batch.values * halves;
    let mut grad = vec![0f32; output.len()];
    let losses = grad.par_chunks_mut(of_image).zip(output.par_chunks(of_image)).enumerate();
    let losses: Vec<[f64; 3]> = losses
        .map(|(image, (grad, output))| batch.sample(image).loss(output, channels, loss_scale.unwrap_or(1.0), grad))
        .collect();
    Ok(LossAndGrad { grad: cpu_tensor(grad, model_output.dims())?, samples: rows(&losses)? })
}

pub(super) fn bound(op: &'static str, images: &NoisyImages<'_>, model_output: &Tensor) -> Result<Tensor> {
    let (channels, halves) = output_channels(op, images.images, model_output)?;
    let borrowed = borrowed(op, images)?;
    let (batch, output) = (Batch::new(images, &borrowed)?, cpu_slice(op, model_output)?);
    let terms = output.par_chunks(batch.values * halves).enumerate();
    let terms: Vec<[f64; 2]> = terms.map(|(image, output)| batch.sample(image).bound(output, channels)).collect();
    rows(&terms)
}

/// Numbers of each image, `[N, K]`.
fn rows<const K: usize>(rows: &[[f64; K]]) -> Result<Tensor> {
    Ok(Tensor::from_slice(rows.as_flattened(), (rows.len(), K), &Device::Cpu)?)
}

pub(super) fn sinusoids(
    op: &'static str,
    numbers: &Tensor,
    half: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
) -> Result<Tensor> {
    let numbers = cpu_slice(op, numbers)?;
    let ln = -(10_000f64.ln()) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| (ln * i as f32 / (half as f64 - freq_shift) as f32).exp()).collect();
    let mut data = Vec::with_capacity(numbers.len() * 2 * half);
    for t in &*numbers {
        let sines = frequencies.iter().map(|f| (t * f).sin());
        let cosines = frequencies.iter().map(|f| (t * f).cos());
        if flip_sin_to_cos {
            data.extend(cosines.chain(sines));
        } else {
            data.extend(sines.chain(cosines));
        }
    }
    cpu_tensor(data, (numbers.len(), 2 * half))
}
