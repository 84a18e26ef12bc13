//! The loops: one task for each image.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::cpu::{Source, given};
use super::{SamplerConstants, SamplerStep};
use crate::buffer::{FlatBuffer, cpu_slice};
use crate::error::Result;
use crate::philox::Philox;

/// Values of an image.
fn values_of(images: &Tensor) -> usize {
    images.elem_count() / images.dims().first().copied().unwrap_or_default().max(1)
}

pub(super) fn begin(x_t: &Tensor, noise: Philox, first: u64) -> Result<()> {
    FlatBuffer::sharing(x_t)?.with_mut(|all| {
        all.par_chunks_mut(values_of(x_t)).enumerate().for_each(|(image, x_t)| {
            noise.fill_normal(0, first + image as u64, x_t);
        });
    })
}

pub(super) fn begin_at(op: &'static str, x_t: &Tensor, given: &Tensor) -> Result<()> {
    let given = cpu_slice(op, given)?;
    FlatBuffer::sharing(x_t)?.with_mut(|x_t| x_t.copy_from_slice(&given))
}

/// The step for the images `[x_t, x_start]`, whose output has `halves` times as many channels.
pub(super) fn step(
    op: &'static str,
    [x_t, x_start]: [&Tensor; 2],
    step: &SamplerStep<'_>,
    (channels, halves): (usize, usize),
) -> Result<()> {
    let words = step.constants.to_vec1::<f64>()?.try_into().unwrap_or([0.0; SamplerConstants::WORDS]);
    let constants = SamplerConstants::from_words(words);
    let given = given(op, &step.noise)?;
    let noise = Source::new(&step.noise, given.as_deref())?;
    let output = cpu_slice(op, step.output)?;
    let unguided = step.unguided.map(|unguided| cpu_slice(op, unguided)).transpose()?;
    let (output, unguided): (&[f32], Option<&[f32]>) = (&output, unguided.as_deref());
    let values = values_of(x_t);
    let all = |x_t: &mut [f32], x_start: &mut [f32]| {
        let images = x_t.par_chunks_mut(values).zip(x_start.par_chunks_mut(values)).enumerate();
        images.for_each(|(image, (x_t, x_start))| {
            let noise = (constants.noise != 0.0).then(|| noise.of(image, values));
            let of_output = |i: usize| image * values * halves + i / channels * channels * halves + i % channels;
            for i in 0..values {
                let at = of_output(i);
                let mut prediction = f64::from(output[at]);
                if let Some(unguided) = unguided {
                    let w = constants.guidance;
                    prediction = (1.0 + w) * prediction - w * f64::from(unguided[at]);
                }
                let variance_value = if halves == 1 { -1.0 } else { f64::from(output[at + channels]) };
                x_t[i] = constants.next(
                    prediction,
                    variance_value,
                    x_t[i],
                    noise.as_ref().map_or(0.0, |noise| noise[i]),
                    &mut x_start[i],
                );
            }
        });
    };
    FlatBuffer::sharing(x_t)?.with_mut(|x_t| FlatBuffer::sharing(x_start)?.with_mut(|x_start| all(x_t, x_start)))?
}

impl SamplerConstants {
    /// The step of one value. A factor of zero skips its operand, which may be infinite or not exist yet.
    fn next(&self, prediction: f64, variance_value: f64, x_t: f32, noise: f32, x_start: &mut f32) -> f32 {
        let x_t = f64::from(x_t);
        let unclamped = self.x_start_x_t * x_t + self.x_start_prediction * prediction;
        let x_0 = if self.clip == 0.0 { unclamped } else { unclamped.clamp(-1.0, 1.0) };
        let mut next = self.mean_x_start * x_0 + self.mean_x_t * x_t;
        if self.mean_prediction != 0.0 {
            next += self.mean_prediction * prediction;
        }
        if self.mean_previous != 0.0 {
            next += self.mean_previous * f64::from(*x_start);
        }
        *x_start = x_0 as f32;
        if self.noise != 0.0 {
            let log_variance = self.log_variance_lower + 0.5 * (variance_value + 1.0) * self.log_variance_width;
            next += (0.5 * log_variance).exp() * f64::from(noise);
        }
        next as f32
    }
}
