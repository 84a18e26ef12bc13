//! The CPU bodies: an image is a task, a pixel's channels are the vector.

use rayon::prelude::*;

use super::{GroupNorm, Shape};
use crate::buffer::unwritten;
use crate::gemm::Write;
use crate::simd::sigmoid;
use crate::vectorized;

/// Weight, bias and modulation.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) modulation: Option<&'a [f32]>,
}

/// What the backward pass reads besides.
#[derive(Clone, Copy)]
pub(super) struct BackwardInputs<'a> {
    pub(super) x: &'a [f32],
    pub(super) dy: &'a [f32],
    pub(super) statistics: &'a [f32],
    pub(super) extra: Option<&'a [f32]>,
}

impl Affine<'_> {
    /// Weight and bias of image `n` with its modulation folded in.
    fn of_image(&self, n: usize) -> (Vec<f32>, Vec<f32>) {
        let c = self.weight.len();
        let Some(modulation) = self.modulation else { return (self.weight.to_vec(), self.bias.to_vec()) };
        let (scale, shift) = modulation[n * 2 * c..][..2 * c].split_at(c);
        let weight = self.weight.iter().zip(scale).map(|(w, s)| w * (1.0 + s)).collect();
        let bias = self.bias.iter().zip(scale).zip(shift).map(|((b, s), t)| b * (1.0 + s) + t).collect();
        (weight, bias)
    }
}

/// `z = x a + b` per channel, from an image's weight, bias and statistics (`[2, G]`).
fn multiply_add(shape: Shape, weight: &[f32], bias: &[f32], statistics: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let per_group = shape.channels / shape.groups;
    (0..shape.channels)
        .map(|c| {
            let (mean, rstd) = (statistics[c / per_group], statistics[shape.groups + c / per_group]);
            let a = weight[c] * rstd;
            (a, bias[c] - a * mean)
        })
        .unzip()
}

pub(super) fn forward(norm: &GroupNorm, shape: Shape, x: &[f32], affine: Affine<'_>) -> (Vec<f32>, Vec<f32>) {
    let image = shape.pixels * shape.channels;
    let mut y = unwritten(x.len());
    let mut statistics = vec![0.0; x.len() / image * 2 * shape.groups];
    y.par_chunks_mut(image)
        .zip(x.par_chunks(image))
        .zip(statistics.par_chunks_mut(2 * shape.groups))
        .enumerate()
        .for_each(|(n, ((y, x), statistics))| {
            image_statistics(norm, shape, x, statistics);
            let (weight, bias) = affine.of_image(n);
            let (a, b) = multiply_add(shape, &weight, &bias, statistics);
            normalise(x, &a, &b, norm.silu, y);
        });
    (y, statistics)
}

fn image_statistics(norm: &GroupNorm, shape: Shape, x: &[f32], statistics: &mut [f32]) {
    let (c, per_group) = (shape.channels, shape.channels / shape.groups);
    let pivot = &x[..c];
    let (mut sum, mut squares) = (vec![0.0; c], vec![0.0; c]);
    sums_about(x, pivot, &mut sum, &mut squares);
    let pixels = shape.pixels as f64;
    for group in 0..shape.groups {
        let channels = group * per_group..(group + 1) * per_group;
        let count = per_group as f64 * pixels;
        let total: f64 = channels.clone().map(|c| f64::from(sum[c]) + f64::from(pivot[c]) * pixels).sum();
        let mean = total / count;
        let square: f64 = channels
            .map(|c| {
                let offset = f64::from(pivot[c]) - mean;
                f64::from(squares[c]) + 2.0 * offset * f64::from(sum[c]) + offset * offset * pixels
            })
            .sum();
        statistics[group] = mean as f32;
        statistics[shape.groups + group] = (1.0 / (square / count + norm.eps).sqrt()) as f32;
    }
}

vectorized! {
    /// Per channel: the sum of `x - pivot` and of its square.
    fn sums_about<I>(x: &[f32], pivot: &[f32], sum: &mut [f32], squares: &mut [f32]) {
        let c = pivot.len();
        let (sum, squares) = (&mut sum[..c], &mut squares[..c]);
        for pixel in x.chunks_exact(c) {
            for i in 0..c {
                let d = pixel[i] - pivot[i];
                sum[i] += d;
                squares[i] = I::mul_add(d, d, squares[i]);
            }
        }
    }
}

vectorized! {
    fn normalise<I>(x: &[f32], a: &[f32], b: &[f32], silu: bool, y: &mut [f32]) {
        let c = a.len();
        let b = &b[..c];
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            if silu {
                for i in 0..c {
                    let z = I::mul_add(x[i], a[i], b[i]);
                    y[i] = z * sigmoid::<I>(z);
                }
            } else {
                for i in 0..c {
                    y[i] = I::mul_add(x[i], a[i], b[i]);
                }
            }
        }
    }
}

/// Per image and channel: `sum dz x^` and `sum dz`, the gradients of that image's weight and bias.
struct ImageSums {
    dz_x_hat: Vec<f32>,
    dz: Vec<f32>,
}

/// Returns `dx` and, if there was a modulation, its gradient `[N, 2C]` (else nothing).
pub(super) fn backward(
    norm: &GroupNorm,
    shape: Shape,
    operands: BackwardInputs<'_>,
    affine: Affine<'_>,
    dw: &mut [f32],
    db: &mut [f32],
    write: Write,
) -> (Vec<f32>, Vec<f32>) {
    let image = shape.pixels * shape.channels;
    let mut dx = unwritten(operands.x.len());
    let sums: Vec<ImageSums> = dx
        .par_chunks_mut(image)
        .enumerate()
        .map(|(n, dx)| {
            let of_image = BackwardInputs {
                x: &operands.x[n * image..][..image],
                dy: &operands.dy[n * image..][..image],
                statistics: &operands.statistics[n * 2 * shape.groups..][..2 * shape.groups],
                extra: operands.extra.map(|e| &e[n * image..][..image]),
            };
            image_backward(norm, shape, of_image, affine.of_image(n), dx)
        })
        .collect();
    let dmodulation = parameter_gradients(affine, &sums, dw, db, write);
    (dx, dmodulation)
}

/// `dx = a dz - rstd^2 / count (sum_g w dz x^) (x - mean) - rstd / count (sum_g w dz)`, with sums over the group.
fn image_backward(
    norm: &GroupNorm,
    shape: Shape,
    operands: BackwardInputs<'_>,
    (weight, bias): (Vec<f32>, Vec<f32>),
    dx: &mut [f32],
) -> ImageSums {
    let (c, per_group) = (shape.channels, shape.channels / shape.groups);
    let (a, b) = multiply_add(shape, &weight, &bias, operands.statistics);
    let (mean, rstd) = operands.statistics.split_at(shape.groups);
    let means: Vec<f32> = (0..c).map(|c| mean[c / per_group]).collect();
    let mut sums = ImageSums { dz_x_hat: vec![0.0; c], dz: vec![0.0; c] };
    gradient_of_z(operands.x, operands.dy, &a, &b, &means, norm.silu, dx, &mut sums.dz, &mut sums.dz_x_hat);
    for (channel, sum) in sums.dz_x_hat.iter_mut().enumerate() {
        *sum *= rstd[channel / per_group];
    }
    let count = (per_group * shape.pixels) as f32;
    let (mut slope, mut constant) = (vec![0.0; c], vec![0.0; c]);
    for group in 0..shape.groups {
        let channels = group * per_group..(group + 1) * per_group;
        let dz: f32 = channels.clone().map(|c| weight[c] * sums.dz[c]).sum();
        let dz_x_hat: f32 = channels.clone().map(|c| weight[c] * sums.dz_x_hat[c]).sum();
        let k = -rstd[group] * rstd[group] * dz_x_hat / count;
        slope[channels.clone()].fill(k);
        constant[channels].fill(-rstd[group] * dz / count - k * mean[group]);
    }
    gradient_of_x(operands.x, &a, &slope, &constant, operands.extra, dx);
    sums
}

vectorized! {
    /// Writes `dz` and adds it, and `dz (x - mean)`, to the sums per channel.
    fn gradient_of_z<I>(
        x: &[f32],
        dy: &[f32],
        a: &[f32],
        b: &[f32],
        means: &[f32],
        silu: bool,
        dz: &mut [f32],
        sum: &mut [f32],
        sum_centred: &mut [f32],
    ) {
        let c = a.len();
        let (b, means, sum, sum_centred) = (&b[..c], &means[..c], &mut sum[..c], &mut sum_centred[..c]);
        for ((dz, x), dy) in dz.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)) {
            for i in 0..c {
                let gradient = if silu {
                    let z = I::mul_add(x[i], a[i], b[i]);
                    let s = sigmoid::<I>(z);
                    dy[i] * s * I::mul_add(z, 1.0 - s, 1.0)
                } else {
                    dy[i]
                };
                dz[i] = gradient;
                sum[i] += gradient;
                sum_centred[i] = I::mul_add(gradient, x[i] - means[i], sum_centred[i]);
            }
        }
    }
}

vectorized! {
    /// Turns `dz` in `dx` into `dz a + x slope + constant (+ extra)`.
    fn gradient_of_x<I>(
        x: &[f32],
        a: &[f32],
        slope: &[f32],
        constant: &[f32],
        extra: Option<&[f32]>,
        dx: &mut [f32],
    ) {
        let c = a.len();
        let (slope, constant) = (&slope[..c], &constant[..c]);
        match extra {
            Some(extra) => {
                for ((dx, x), extra) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(extra.chunks_exact(c)) {
                    for i in 0..c {
                        dx[i] = I::mul_add(dx[i], a[i], I::mul_add(x[i], slope[i], constant[i] + extra[i]));
                    }
                }
            }
            None => {
                for (dx, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for i in 0..c {
                        dx[i] = I::mul_add(dx[i], a[i], I::mul_add(x[i], slope[i], constant[i]));
                    }
                }
            }
        }
    }
}

/// Sums the images' gradients into those of weight and bias, in order; returns the modulation's.
fn parameter_gradients(
    affine: Affine<'_>,
    sums: &[ImageSums],
    dw: &mut [f32],
    db: &mut [f32],
    write: Write,
) -> Vec<f32> {
    let c = affine.weight.len();
    if write == Write::Assign {
        dw.fill(0.0);
        db.fill(0.0);
    }
    let mut dmodulation = vec![0.0; if affine.modulation.is_some() { sums.len() * 2 * c } else { 0 }];
    for (n, image) in sums.iter().enumerate() {
        let scale = affine.modulation.map(|m| &m[n * 2 * c..][..c]);
        for i in 0..c {
            let factor = scale.map_or(1.0, |s| 1.0 + s[i]);
            dw[i] += image.dz_x_hat[i] * factor;
            db[i] += image.dz[i] * factor;
        }
        if affine.modulation.is_some() {
            let (dscale, dshift) = dmodulation[n * 2 * c..][..2 * c].split_at_mut(c);
            for (i, dscale) in dscale.iter_mut().enumerate() {
                *dscale = image.dz_x_hat[i] * affine.weight[i] + image.dz[i] * affine.bias[i];
            }
            dshift.copy_from_slice(&image.dz);
        }
    }
    dmodulation
}
