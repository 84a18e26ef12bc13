//! The bodies for a CPU: passes over chunks in parallel.

use rayon::prelude::*;

use super::{AdamWBuffers, Factors};
use crate::buffer::FlatBuffer;
use crate::error::Result;
use crate::ops::CHUNK;
use crate::vectorized;

pub(super) fn adamw_step(factors: Factors, buffers: &AdamWBuffers<'_>) -> Result<()> {
    let gradients = buffers.gradients.cpu()?;
    buffers.parameters.with_mut(|p| {
        buffers.exp_avg.with_mut(|m| {
            buffers.exp_avg_sq.with_mut(|v| {
                p.par_chunks_mut(CHUNK)
                    .zip(gradients.par_chunks(CHUNK))
                    .zip(m.par_chunks_mut(CHUNK))
                    .zip(v.par_chunks_mut(CHUNK))
                    .for_each(|(((p, g), m), v)| update(factors, p, g, m, v));
            })
        })
    })???;
    let parameters = buffers.parameters.cpu()?;
    for (average, decay) in buffers.averages {
        let rest = (1.0 - decay) as f32;
        average.with_mut(|ema| {
            ema.par_chunks_mut(CHUNK).zip(parameters.par_chunks(CHUNK)).for_each(|(ema, p)| move_towards(ema, p, rest));
        })?;
    }
    Ok(())
}

vectorized! {
    fn update<I>(f: Factors, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * f.gradient_scale;
            *m = I::mul_add(f.beta1, *m, f.rest1 * g);
            *v = I::mul_add(f.beta2, *v, f.rest2 * g * g);
            let root = I::mul_add(v.sqrt(), f.root_correction, f.eps);
            *p = I::mul_add(*p, f.keep, -f.step_size * *m / root);
        }
    }
}

vectorized! {
    /// `ema += rest (p - ema)`.
    fn move_towards<I>(ema: &mut [f32], p: &[f32], rest: f32) {
        for (ema, p) in ema.iter_mut().zip(p) {
            *ema = I::mul_add(rest, p - *ema, *ema);
        }
    }
}

pub(super) fn norm(buffer: &FlatBuffer) -> Result<f64> {
    let data = buffer.cpu()?;
    let partials: Vec<f64> = data.par_chunks(CHUNK).map(sum_of_squares).collect();
    Ok(partials.iter().sum::<f64>().sqrt())
}

vectorized! {
    fn sum_of_squares<I>(x: &[f32]) -> f64 {
        // Sixteen sums in f64: squares of f32 neither overflow nor vanish there.
        let mut parts = [0f64; 16];
        for chunk in x.chunks(16) {
            for (part, v) in parts.iter_mut().zip(chunk) {
                *part += f64::from(*v) * f64::from(*v);
            }
        }
        parts.iter().sum()
    }
}
