//! Convolution as matrix products over patches, a tile of output rows at a time.
//!
//! A tile's patches `[pixels, k k I]` are small enough to stay in the second-level cache between being gathered and
//! being multiplied. A 1x1 convolution of stride 1 needs no gathering: its patches are the image.

use rayon::prelude::*;

use super::{Epilogue, Geometry};
use crate::buffer::unwritten;
use crate::gemm::{Mat, Write, matmul};
use crate::ops::{partitions, start_rows, sum_partials};

/// Patches per tile, in elements: half a megabyte, a quarter of a current core's second-level cache.
const TILE_ELEMENTS: usize = 128 * 1024;

impl Geometry {
    fn patches_are_pixels(&self) -> bool {
        let c = self.conv;
        (c.kernel, c.stride, c.pad_before, c.pad_after) == (1, 1, 0, 0)
    }

    /// Output rows per tile.
    fn rows_per_tile(&self) -> usize {
        (TILE_ELEMENTS / (self.ow() * self.patch())).clamp(1, self.n * self.oh())
    }

    /// The patches of output rows `first..first + count` of the batch, `[count W', k k I]`.
    fn patches<'a>(&self, x: &'a [f32], first: usize, count: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if self.patches_are_pixels() {
            return &x[first * self.w * self.ci..][..count * self.w * self.ci];
        }
        scratch.resize(count * self.ow() * self.patch(), 0.0);
        for (row, patches) in scratch.chunks_exact_mut(self.ow() * self.patch()).enumerate() {
            self.gather_row(x, first + row, patches);
        }
        scratch
    }

    /// For each patch row of output row `row`: where it lies in the image, if it does.
    fn for_each_run(&self, row: usize, mut f: impl FnMut(usize, Option<usize>)) {
        let (c, ow) = (self.conv, self.ow());
        let (image, oy) = (row / self.oh(), row % self.oh());
        for ox in 0..ow {
            for ky in 0..c.kernel {
                let iy = (oy * c.stride + ky).checked_sub(c.pad_before).filter(|&y| y < self.h);
                for kx in 0..c.kernel {
                    let ix = (ox * c.stride + kx).checked_sub(c.pad_before).filter(|&x| x < self.w);
                    let patch = (ox * c.kernel * c.kernel + ky * c.kernel + kx) * self.ci;
                    let pixel = iy.zip(ix).map(|(y, x)| ((image * self.h + y) * self.w + x) * self.ci);
                    f(patch, pixel);
                }
            }
        }
    }

    fn gather_row(&self, x: &[f32], row: usize, patches: &mut [f32]) {
        self.for_each_run(row, |patch, pixel| {
            let to = &mut patches[patch..][..self.ci];
            match pixel {
                Some(pixel) => to.copy_from_slice(&x[pixel..][..self.ci]),
                None => to.fill(0.0),
            }
        });
    }

    /// Adds the patches of output row `row` of an image to that image's pixels.
    fn scatter_row(&self, patches: &[f32], row: usize, image: &mut [f32]) {
        self.for_each_run(row, |patch, pixel| {
            if let Some(pixel) = pixel {
                for (to, from) in image[pixel..][..self.ci].iter_mut().zip(&patches[patch..][..self.ci]) {
                    *to += from;
                }
            }
        });
    }
}

pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], add: Epilogue<'_>) -> Vec<f32> {
    let (ow, patch, rows) = (g.ow(), g.patch(), g.rows_per_tile());
    let tile = rows * ow * g.co;
    let mut y = unwritten(g.n * g.oh() * ow * g.co);
    y.par_chunks_mut(tile).enumerate().for_each_init(Vec::new, |scratch, (index, y)| {
        let pixels = y.len() / g.co;
        start_rows(y, add.bias, add.residual.map(|residual| &residual[index * tile..]));
        let patches = Mat::new(g.patches(x, index * rows, pixels / ow, scratch), pixels, patch, patch);
        matmul(patches, Mat::new(weight, g.co, patch, patch).t(), y, g.co, Write::Add);
    });
    y
}

pub(super) fn backward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    need_dx: bool,
    dw: &mut [f32],
    write: Write,
) -> Option<Vec<f32>> {
    weight_gradient(g, x, dy, dw, write);
    need_dx.then(|| if g.patches_are_pixels() { pixel_gradient(g, weight, dy) } else { input_gradient(g, weight, dy) })
}

/// `dw += dy^T patches`, split over the rows of the batch; each part has its own sum.
fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], write: Write) {
    let (ow, patch, tile) = (g.ow(), g.patch(), g.rows_per_tile());
    let partials: Vec<Vec<f32>> = partitions(g.n * g.oh())
        .into_par_iter()
        .map(|rows| {
            let (mut sum, mut scratch) = (vec![0.0; g.co * patch], Vec::new());
            for first in rows.clone().step_by(tile) {
                let count = tile.min(rows.end - first);
                let dy = Mat::new(&dy[first * ow * g.co..], count * ow, g.co, g.co);
                let patches = Mat::new(g.patches(x, first, count, &mut scratch), count * ow, patch, patch);
                matmul(dy.t(), patches, &mut sum, patch, Write::Add);
            }
            sum
        })
        .collect();
    sum_partials(&partials, dw, write);
}

/// `dx` of a 1x1 convolution: one product, split by rows.
fn pixel_gradient(g: &Geometry, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dx = unwritten(g.n * g.h * g.w * g.ci);
    let rows = g.rows_per_tile() * g.w;
    dx.par_chunks_mut(rows * g.ci).zip(dy.par_chunks(rows * g.co)).for_each(|(dx, dy)| {
        let dy = Mat::new(dy, dy.len() / g.co, g.co, g.co);
        matmul(dy, Mat::new(weight, g.co, g.ci, g.ci), dx, g.ci, Write::Assign);
    });
    dx
}

/// `dx`: the patches' gradients, added where they overlap; an image stays on one thread.
fn input_gradient(g: &Geometry, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let (oh, ow, patch) = (g.oh(), g.ow(), g.patch());
    let single = Geometry { n: 1, ..*g };
    let tile = single.rows_per_tile();
    let mut dx = vec![0.0; g.n * g.h * g.w * g.ci];
    dx.par_chunks_mut(g.h * g.w * g.ci).zip(dy.par_chunks(oh * ow * g.co)).for_each_init(
        Vec::new,
        |scratch: &mut Vec<f32>, (dx, dy)| {
            for first in (0..oh).step_by(tile) {
                let count = tile.min(oh - first);
                scratch.resize(count * ow * patch, 0.0);
                let dy = Mat::new(&dy[first * ow * g.co..], count * ow, g.co, g.co);
                matmul(dy, Mat::new(weight, g.co, patch, patch), scratch, patch, Write::Assign);
                for (row, patches) in scratch.chunks_exact(ow * patch).enumerate() {
                    single.scatter_row(patches, first + row, dx);
                }
            }
        },
    );
    dx
}
