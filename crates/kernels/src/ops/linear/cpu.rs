//! The CPU bodies.

use rayon::prelude::*;

use super::Shape;
use crate::buffer::unwritten;
use crate::gemm::{Mat, Write, matmul};
use crate::ops::{partitions, start_rows, sum_partials};

impl Shape {
    /// Rows per task: a part for each thread, or all where the product is too small to share.
    fn rows_per_task(&self) -> usize {
        const SMALL: usize = 1 << 18;
        if self.rows * self.inputs * self.outputs < SMALL {
            return self.rows.max(1);
        }
        self.rows.div_ceil(rayon::current_num_threads()).max(1)
    }
}

pub(super) fn forward(s: Shape, x: &[f32], weight: &[f32], bias: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
    let rows = s.rows_per_task();
    let mut y = unwritten(s.rows * s.outputs);
    y.par_chunks_mut(rows * s.outputs).zip(x.par_chunks(rows * s.inputs)).enumerate().for_each(|(task, (y, x))| {
        start_rows(y, bias, residual.map(|residual| &residual[task * rows * s.outputs..]));
        let x = Mat::new(x, x.len() / s.inputs, s.inputs, s.inputs);
        matmul(x, Mat::new(weight, s.outputs, s.inputs, s.inputs).t(), y, s.outputs, Write::Add);
    });
    y
}

/// `dw (+)= dy^T x`: split over the outputs where there are few rows, else over the rows with partial sums.
pub(super) fn weight_gradient(s: Shape, x: &[f32], dy: &[f32], dw: &mut [f32], write: Write) {
    if s.rows_per_task() >= s.rows {
        let dy = Mat::new(dy, s.rows, s.outputs, s.outputs);
        return matmul(dy.t(), Mat::new(x, s.rows, s.inputs, s.inputs), dw, s.inputs, write);
    }
    let partials: Vec<Vec<f32>> = partitions(s.rows)
        .into_par_iter()
        .map(|rows| {
            let mut sum = unwritten(s.outputs * s.inputs);
            let dy = Mat::new(&dy[rows.start * s.outputs..], rows.len(), s.outputs, s.outputs);
            let x = Mat::new(&x[rows.start * s.inputs..], rows.len(), s.inputs, s.inputs);
            matmul(dy.t(), x, &mut sum, s.inputs, Write::Assign);
            sum
        })
        .collect();
    sum_partials(&partials, dw, write);
}

pub(super) fn input_gradient(s: Shape, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let rows = s.rows_per_task();
    let mut dx = unwritten(s.rows * s.inputs);
    dx.par_chunks_mut(rows * s.inputs).zip(dy.par_chunks(rows * s.outputs)).for_each(|(dx, dy)| {
        let dy = Mat::new(dy, dy.len() / s.outputs, s.outputs, s.outputs);
        matmul(dy, Mat::new(weight, s.outputs, s.inputs, s.inputs), dx, s.inputs, Write::Assign);
    });
    dx
}
