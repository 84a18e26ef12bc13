//! The operations: each a pair of plain functions `forward` and `backward` over candle tensors, with a body per
//! device and no autograd inside, and a twin in plain candle operations (`reference`) as the oracle of its tests.
//!
//! Memory policy: `forward` and the gradient of an input are returned as new tensors; the gradient of a parameter
//! is written straight into the flat gradient buffer, overwriting or adding as the caller says. (A weight's of 16 bits may wait
//! in `buffer::NarrowGradients` until the pass ends.)
//!
//! On the CPU tensors are f32. On a GPU activations may be f32, bf16 or f16, the same for all tensors of one operation;
//! operations compute in f32 in any case, and gradients of parameters are f32.
//!
//! Every split of work into parts is a function of the shapes and the number of threads alone, and partial sums are
//! added in order: the same machine gives the same bits, however its threads are scheduled.

pub mod activation;
pub mod attention;
pub mod conv2d;
pub mod diffusion;
pub mod dropout;
pub mod elementwise;
pub mod group_norm;
pub mod linear;
pub mod resample;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use crate::check;
use crate::gemm::Write;
use crate::vectorized;

/// Elements per task of an elementwise loop: 64 KiB of f32, so that a task is long against its scheduling.
pub(crate) const CHUNK: usize = 16 * 1024;

/// `0..len` in as many nearly equal parts as there are threads.
pub(crate) fn partitions(len: usize) -> Vec<Range<usize>> {
    let parts = rayon::current_num_threads().clamp(1, len.max(1));
    (0..parts).map(|i| i * len / parts..(i + 1) * len / parts).collect()
}

/// Adds equally long partial sums, in order.
pub(crate) fn sum_partials(partials: &[Vec<f32>], out: &mut [f32], write: Write) {
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
        if write == Write::Assign {
            out.fill(0.0);
        }
        let start = chunk * CHUNK;
        for partial in partials {
            add_assign(out, &partial[start..start + out.len()]);
        }
    });
}

vectorized! {
    /// `to += from`.
    pub(crate) fn add_assign<I>(to: &mut [f32], from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

/// Starts every row of `y` with the bias, plus the residual's row where there is one: what a product is then added to.
pub(crate) fn start_rows(y: &mut [f32], bias: &[f32], residual: Option<&[f32]>) {
    let rows = y.chunks_exact_mut(bias.len());
    match residual {
        Some(residual) => {
            for (y, residual) in rows.zip(residual.chunks_exact(bias.len())) {
                for ((y, r), b) in y.iter_mut().zip(residual).zip(bias) {
                    *y = r + b;
                }
            }
        }
        None => rows.for_each(|y| y.copy_from_slice(bias)),
    }
}

/// `out[c] (+)= sum over rows of x[row, c]`: the gradient of a bias.
pub(crate) fn column_sum(x: &[f32], out: &mut [f32], write: Write) {
    let columns = out.len();
    let partials: Vec<Vec<f32>> = partitions(x.len() / columns)
        .into_par_iter()
        .map(|rows| {
            let mut sum = vec![0.0; columns];
            add_rows(&mut sum, &x[rows.start * columns..rows.end * columns]);
            sum
        })
        .collect();
    sum_partials(&partials, out, write);
}

vectorized! {
    /// Adds every row of `x` `[rows, sum.len()]` to `sum`.
    pub(crate) fn add_rows<I>(sum: &mut [f32], x: &[f32]) {
        for row in x.chunks_exact(sum.len()) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}
