//! The CPU bodies.

use rayon::prelude::*;

use super::Shape;
use crate::buffer::unwritten;
use crate::gemm::{Mat, Write, matmul};
use crate::simd::exp;
use crate::vectorized;

/// Queries, keys and values of one head: views into an image's `[L, 3C]`.
struct Head<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
}

impl Shape {
    /// The three matrices `[L, d]` of `head` in an image's `qkv`.
    fn head<'a>(&self, qkv: &'a [f32], head: usize) -> Head<'a> {
        let d = self.head_dim();
        let part = |i: usize| Mat::new(&qkv[i * self.channels + head * d..], self.tokens, d, 3 * self.channels);
        Head { q: part(0), k: part(1), v: part(2) }
    }
}

pub(super) fn forward(s: Shape, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (l, c, d) = (s.tokens, s.channels, s.head_dim());
    let mut probabilities = unwritten(s.n * s.heads * l * l);
    let mut out = unwritten(s.n * l * c);
    out.par_chunks_mut(l * c)
        .zip(qkv.par_chunks(l * 3 * c))
        .zip(probabilities.par_chunks_mut(s.heads * l * l))
        .for_each(|((out, qkv), probabilities)| {
            for (head, p) in probabilities.chunks_exact_mut(l * l).enumerate() {
                let Head { q, k, v } = s.head(qkv, head);
                matmul(q, k.t(), p, l, Write::Assign);
                softmax_rows(p, l, s.scale());
                matmul(Mat::new(p, l, l, l), v, &mut out[head * d..], c, Write::Assign);
            }
        });
    (out, probabilities)
}

vectorized! {
    /// `softmax(scale * row)` for every row of length `l`.
    fn softmax_rows<I>(x: &mut [f32], l: usize, scale: f32) {
        for row in x.chunks_exact_mut(l) {
            let max = maximum(row);
            for v in &mut *row {
                *v = exp::<I>((*v - max) * scale);
            }
            let inverse = 1.0 / sum(row);
            for v in row {
                *v *= inverse;
            }
        }
    }
}

/// The largest element, in sixteen parts.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut parts = [f32::NEG_INFINITY; 16];
    for chunk in x.chunks(16) {
        for (part, v) in parts.iter_mut().zip(chunk) {
            *part = larger(*part, *v);
        }
    }
    parts.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// A sum in sixteen parts: a single running sum cannot be vectorised, for its order is fixed.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut parts = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (part, v) in parts.iter_mut().zip(chunk) {
            *part += v;
        }
    }
    parts.iter().sum::<f32>() + tail
}

pub(super) fn backward(s: Shape, qkv: &[f32], probabilities: &[f32], d_out: &[f32]) -> Vec<f32> {
    let (l, c, d) = (s.tokens, s.channels, s.head_dim());
    let mut dqkv = unwritten(s.n * l * 3 * c);
    dqkv.par_chunks_mut(l * 3 * c).enumerate().for_each_init(
        || unwritten(l * l),
        |dp, (n, dqkv)| {
            let qkv = &qkv[n * l * 3 * c..][..l * 3 * c];
            for head in 0..s.heads {
                let p = &probabilities[(n * s.heads + head) * l * l..][..l * l];
                let d_out = Mat::new(&d_out[n * l * c + head * d..], l, d, c);
                let Head { q, k, v } = s.head(qkv, head);
                let (dq, dk, dv) = (head * d, c + head * d, 2 * c + head * d);
                matmul(Mat::new(p, l, l, l).t(), d_out, &mut dqkv[dv..], 3 * c, Write::Assign);
                matmul(d_out, v.t(), dp, l, Write::Assign);
                softmax_gradient(p, dp, l, s.scale());
                matmul(Mat::new(dp, l, l, l), k, &mut dqkv[dq..], 3 * c, Write::Assign);
                matmul(Mat::new(dp, l, l, l).t(), q, &mut dqkv[dk..], 3 * c, Write::Assign);
            }
        },
    );
    dqkv
}

vectorized! {
    /// Turns `dp` into the gradient of the unscaled scores: `scale p (dp - sum p dp)`, row by row.
    fn softmax_gradient<I>(p: &[f32], dp: &mut [f32], l: usize, scale: f32) {
        for (dp, p) in dp.chunks_exact_mut(l).zip(p.chunks_exact(l)) {
            let mut parts = [0.0f32; 16];
            for (dp, p) in dp.chunks(16).zip(p.chunks(16)) {
                for ((part, dp), p) in parts.iter_mut().zip(dp).zip(p) {
                    *part = I::mul_add(*dp, *p, *part);
                }
            }
            let dot: f32 = parts.iter().sum();
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = (*dp - dot) * *p * scale;
            }
        }
    }
}
