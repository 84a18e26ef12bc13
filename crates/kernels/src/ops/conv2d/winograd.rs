//! Winograd F(4x4, 3x3): a 3x3 convolution of stride 1 as 36 matrix products over tiles of 4x4 outputs.
//!
//! With `t` tiles, the transformed input `V` is `[36, t, I]`, the weight `U` `[36, O, I]` and the product `M`
//! `[36, t, O]`: `M[k] = V[k] U[k]^T`. The tiles are taken a block at a time, so that `V` and `M` of a block stay in
//! cache between being written and being read, and take no memory worth mentioning.
//!
//! The input's gradient is a convolution of `dy` with the weight turned by 180 degrees and its channels exchanged, so
//! the same code computes it. The weight's gradient is the adjoint of the forward pass: `dM` from `dy`,
//! `dU[k] = dM[k]^T V[k]`, and back from there. `V` is made again: keeping it would cost 2.25 times the
//! activation's memory, making it is one pass.
//!
//! F(4x4, 3x3) does 36 multiplications where the direct sum does 144. In f32 its error is about ten times that of
//! the direct sum (constants up to 8 in the transforms); the tests state and check the bound.

use std::ops::Range;

use rayon::prelude::*;

use super::tiles::{Tiles, input_row, load, output_gradient_row, output_row, store};
use super::{Epilogue, Geometry, transforms};
use crate::buffer::unwritten;
use crate::gemm::{Mat, Write, matmul};
use crate::ops::{partitions, sum_partials};
use crate::simd::{LANES, Lanes};
use crate::vectorized;

/// Products per tile and channel pair: 6 x 6.
const PLANES: usize = 36;
/// Below this many tiles the products are too thin to pay for transforming the weight.
const MIN_TILES: usize = 16;
/// Elements between two planes beyond what they hold: planes a power of two apart would share cache sets.
const PLANE_GAP: usize = LANES;
/// `V` and `M` of a block, in elements: they share a second-level cache of 1 to 2 MB with a plane of `U`.
const BLOCK_ELEMENTS: usize = 256 * 1024;

pub(super) fn fits(g: &Geometry) -> bool {
    let c = g.conv;
    (c.kernel, c.stride, c.pad_before, c.pad_after) == (3, 1, 1, 1)
        && g.ci.is_multiple_of(LANES)
        && g.co.is_multiple_of(LANES)
        && Tiles::new(g).count >= MIN_TILES
}

/// Rows of tiles per block: enough tiles that a product is not thin against the weight, few enough for the
/// cache, and the same number of blocks for every thread.
fn rows_per_block(tiles: Tiles, ci: usize, co: usize) -> usize {
    let wanted = (BLOCK_ELEMENTS / (PLANES * (ci + co))).max(ci.max(co));
    let threads = rayon::current_num_threads();
    let blocks = tiles.count.div_ceil(wanted).next_multiple_of(threads);
    tiles.tile_rows().div_ceil(blocks).max(1)
}

/// The direction of a convolution.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From `[N, H, W, I]` to `[N, H, W, O]`.
    Forward,
    /// From `dy` `[N, H, W, O]` to `dx` `[N, H, W, I]`.
    Backward,
}

pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], add: Epilogue<'_>) -> Vec<f32> {
    convolve(g, x, weight, Direction::Forward, Some(add))
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
    need_dx.then(|| convolve(g, dy, weight, Direction::Backward, None))
}

fn convolve(g: &Geometry, x: &[f32], weight: &[f32], direction: Direction, add: Option<Epilogue<'_>>) -> Vec<f32> {
    let tiles = Tiles::new(g);
    let (from, to) = if direction == Direction::Forward { (g.ci, g.co) } else { (g.co, g.ci) };
    let u = transform_weight(g, weight, direction);
    let rows = rows_per_block(tiles, from, to);
    // Pixel rows of the batch that a block of tiles covers; an image whose height is no multiple of 4 ends a block early.
    let mut y = unwritten(g.n * g.h * g.w * to);
    split_rows(&mut y, tiles, to, rows).into_par_iter().for_each_init(Scratch::default, |scratch, (block, y)| {
        let count = block.len() * tiles.cols;
        let (v_plane, m_plane) = (count * from + PLANE_GAP, count * to + PLANE_GAP);
        let (v, m) = scratch.sized(PLANES * v_plane, PLANES * m_plane);
        for (at, row) in block.clone().enumerate() {
            input_row(tiles, from, x, row, v, v_plane, at * tiles.cols);
        }
        for k in 0..PLANES {
            let v = Mat::new(&v[k * v_plane..], count, from, from);
            let u = Mat::new(&u[k * g.co * g.ci..], g.co, g.ci, g.ci);
            let u = if direction == Direction::Forward { u.t() } else { u };
            matmul(v, u, &mut m[k * m_plane..][..count * to], to, Write::Assign);
        }
        let start = tiles.first_pixel(block.start) * to;
        for (at, row) in block.enumerate() {
            output_row(tiles, to, m, m_plane, at * tiles.cols, add, row, start, y);
        }
    });
    y
}

/// Cuts `y` `[N, H, W, C]` into the pixels of blocks of `rows` rows of tiles.
fn split_rows(y: &mut [f32], tiles: Tiles, channels: usize, rows: usize) -> Vec<(Range<usize>, &mut [f32])> {
    let mut rest = y;
    let mut blocks = Vec::new();
    for start in (0..tiles.tile_rows()).step_by(rows) {
        let end = (start + rows).min(tiles.tile_rows());
        let pixels = tiles.first_pixel(end) - tiles.first_pixel(start);
        let (block, after) = rest.split_at_mut(pixels * channels);
        blocks.push((start..end, block));
        rest = after;
    }
    blocks
}

/// A thread's buffers, kept from block to block.
#[derive(Default)]
struct Scratch {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Scratch {
    /// Two buffers of at least these lengths, holding anything.
    fn sized(&mut self, first: usize, second: usize) -> (&mut [f32], &mut [f32]) {
        for (buffer, len) in [(&mut self.first, first), (&mut self.second, second)] {
            if buffer.len() < len {
                *buffer = unwritten(len);
            }
        }
        (&mut self.first[..first], &mut self.second[..second])
    }
}

/// `[O, 3, 3, I]` to `[36, O, I]`, for [`Direction::Backward`] with the taps turned by 180 degrees.
fn transform_weight(g: &Geometry, weight: &[f32], direction: Direction) -> Vec<f32> {
    let plane = g.co * g.ci;
    let mut u = unwritten(PLANES * plane);
    let mut planes: Vec<_> = u.chunks_exact_mut(plane).map(|plane| plane.chunks_mut(8 * g.ci)).collect();
    let tasks: Vec<(usize, Vec<&mut [f32]>)> =
        (0..g.co.div_ceil(8)).map(|task| (task * 8, planes.iter_mut().filter_map(Iterator::next).collect())).collect();
    tasks.into_par_iter().for_each(|(first, mut planes)| {
        weight_rows(g.ci, weight, first, direction == Direction::Backward, &mut planes);
    });
    u
}

vectorized! {
    /// Writes the output channels from `first` on that `planes` have room for.
    fn weight_rows<I>(ci: usize, weight: &[f32], first: usize, turned: bool, planes: &mut [&mut [f32]]) {
        for o in 0..planes[0].len() / ci {
            for i in (0..ci).step_by(LANES) {
                let tap = |ky: usize, kx: usize| {
                    let tap = ky * 3 + kx;
                    load(weight, ((first + o) * 9 + if turned { 8 - tap } else { tap }) * ci + i)
                };
                let mut half = [[Lanes::ZERO; 3]; 6];
                for kx in 0..3 {
                    let column = transforms::weight::<I>([tap(0, kx), tap(1, kx), tap(2, kx)]);
                    for (row, value) in half.iter_mut().zip(column) {
                        row[kx] = value;
                    }
                }
                for (ky, row) in half.into_iter().enumerate() {
                    for (kx, value) in transforms::weight::<I>(row).into_iter().enumerate() {
                        store(planes[ky * 6 + kx], o * ci + i, value);
                    }
                }
            }
        }
    }
}

/// `dw (+)= G^T (dM^T V) G`, each thread over its share of the tiles with a sum of its own.
fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], write: Write) {
    let tiles = Tiles::new(g);
    let plane = g.co * g.ci;
    let rows = rows_per_block(tiles, g.ci, g.co);
    let partials: Vec<Vec<f32>> = partitions(tiles.tile_rows())
        .into_par_iter()
        .map(|share| {
            let (mut du, mut scratch) = (unwritten(PLANES * plane), Scratch::default());
            for start in share.clone().step_by(rows) {
                let block = start..(start + rows).min(share.end);
                let count = block.len() * tiles.cols;
                let (v_plane, dm_plane) = (count * g.ci + PLANE_GAP, count * g.co + PLANE_GAP);
                let (v, dm) = scratch.sized(PLANES * v_plane, PLANES * dm_plane);
                for (at, row) in block.enumerate() {
                    input_row(tiles, g.ci, x, row, v, v_plane, at * tiles.cols);
                    output_gradient_row(tiles, g.co, dy, row, dm, dm_plane, at * tiles.cols);
                }
                let write = if start == share.start { Write::Assign } else { Write::Add };
                for k in 0..PLANES {
                    let dm = Mat::new(&dm[k * dm_plane..], count, g.co, g.co);
                    let v = Mat::new(&v[k * v_plane..], count, g.ci, g.ci);
                    matmul(dm.t(), v, &mut du[k * plane..][..plane], g.ci, write);
                }
            }
            du
        })
        .collect();
    let mut du = unwritten(PLANES * plane);
    sum_partials(&partials, &mut du, Write::Assign);
    drop(partials);
    dw.par_chunks_mut(9 * g.ci).enumerate().with_min_len(8).for_each(|(o, dw)| {
        weight_gradient_row(g.ci, plane, &du, o, dw, write);
    });
}

vectorized! {
    /// `[36, O, I]` to `[3, 3, I]` of output channel `o`.
    fn weight_gradient_row<I>(ci: usize, plane: usize, du: &[f32], o: usize, dw: &mut [f32], write: Write) {
        for i in (0..ci).step_by(LANES) {
            let mut half = [[Lanes::ZERO; 6]; 3];
            for kx in 0..6 {
                let column: [Lanes; 6] = std::array::from_fn(|ky| load(du, (ky * 6 + kx) * plane + o * ci + i));
                for (row, value) in half.iter_mut().zip(transforms::weight_adjoint::<I>(column)) {
                    row[kx] = value;
                }
            }
            for (ky, row) in half.into_iter().enumerate() {
                for (kx, value) in transforms::weight_adjoint::<I>(row).into_iter().enumerate() {
                    let at = (ky * 3 + kx) * ci + i;
                    let value = if write == Write::Add { value + load(dw, at) } else { value };
                    store(dw, at, value);
                }
            }
        }
    }
}
