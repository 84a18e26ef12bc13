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

#![allow(clippy::needless_range_loop, reason = "the loops over a tile must be unrolled, see `input_row`")]

use std::ops::Range;

use rayon::prelude::*;

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

/// The tiling of a batch: 4x4 outputs each, the last row and column partly outside the image.
#[derive(Clone, Copy)]
struct Tiles {
    h: usize,
    w: usize,
    /// Rows of tiles in an image.
    rows: usize,
    /// Tiles in a row.
    cols: usize,
    /// Tiles in the batch.
    count: usize,
}

impl Tiles {
    fn new(g: &Geometry) -> Self {
        let (rows, cols) = (g.h.div_ceil(4), g.w.div_ceil(4));
        Self { h: g.h, w: g.w, rows, cols, count: g.n * rows * cols }
    }

    /// Rows of tiles in the batch.
    fn tile_rows(&self) -> usize {
        self.count / self.cols
    }

    /// Rows of tiles per block: enough tiles that a product is not thin against the weight, few enough for the
    /// cache, and the same number of blocks for every thread.
    fn rows_per_block(&self, ci: usize, co: usize) -> usize {
        let tiles = (BLOCK_ELEMENTS / (PLANES * (ci + co))).max(ci.max(co));
        let threads = rayon::current_num_threads();
        let blocks = self.count.div_ceil(tiles).next_multiple_of(threads);
        self.tile_rows().div_ceil(blocks).max(1)
    }

    /// The image that tile row `row` of the batch belongs to, as the offset of its first pixel, and the row's first pixel row.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        (row / self.rows * self.h * self.w, row % self.rows * 4)
    }
}

/// The 16 elements of `x` at `at`.
#[inline(always)]
fn load(x: &[f32], at: usize) -> Lanes {
    debug_assert!(at + LANES <= x.len());
    // SAFETY: every caller computes `at` from the geometry the slice was checked against (checked in debug builds).
    Lanes(unsafe { x.as_ptr().add(at).cast::<[f32; LANES]>().read_unaligned() })
}

/// Writes 16 elements of `x` at `at`.
#[inline(always)]
fn store(x: &mut [f32], at: usize, value: Lanes) {
    debug_assert!(at + LANES <= x.len());
    // SAFETY: as in `load`.
    unsafe { x.as_mut_ptr().add(at).cast::<[f32; LANES]>().write_unaligned(value.0) };
}

/// Which way a convolution runs.
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
    let rows = tiles.rows_per_block(from, to);
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

impl Tiles {
    /// The batch's first pixel in tile row `row`; for one row too many, the number of pixels.
    fn first_pixel(&self, row: usize) -> usize {
        let (image, y0) = self.place(row);
        image + y0.min(self.h) * self.w
    }
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
    let rows = tiles.rows_per_block(g.ci, g.co);
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

vectorized! {
    /// Tile row `row` of `x` `[N, H, W, C]` into tiles `first..` of `v`, whose planes `[t, C]` are `plane` apart.
    fn input_row<I>(tiles: Tiles, channels: usize, x: &[f32], row: usize, v: &mut [f32], plane: usize, first: usize) {
        let (image, y0) = tiles.place(row);
        for col in 0..tiles.cols {
            // The tile's 6x6 inputs begin one pixel above and left of it.
            let (x0, tile) = (col * 4, (first + col) * channels);
            let inside = y0 >= 1 && x0 >= 1 && y0 + 5 <= tiles.h && x0 + 5 <= tiles.w;
            let pixel = |ky: usize, kx: usize| (image + (y0 + ky) * tiles.w + x0 + kx - tiles.w - 1) * channels;
            for c in (0..channels).step_by(LANES) {
                // Loops over indices throughout: closures given to `map` would be compiled without wide vectors.
                let mut half = [[Lanes::ZERO; 6]; 6];
                for kx in 0..6 {
                    let mut column = [Lanes::ZERO; 6];
                    if inside {
                        for ky in 0..6 {
                            column[ky] = load(x, pixel(ky, kx) + c);
                        }
                    } else if x0 + kx >= 1 && x0 + kx <= tiles.w {
                        for ky in 0..6 {
                            if y0 + ky >= 1 && y0 + ky <= tiles.h {
                                column[ky] = load(x, pixel(ky, kx) + c);
                            }
                        }
                    }
                    let column = transforms::input::<I>(column);
                    for ky in 0..6 {
                        half[ky][kx] = column[ky];
                    }
                }
                for ky in 0..6 {
                    let line = transforms::input::<I>(half[ky]);
                    for kx in 0..6 {
                        store(v, (ky * 6 + kx) * plane + tile + c, line[kx]);
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Tiles `first..` of `m`, whose planes `[t, C]` are `plane` apart, into tile row `row` of `y`, which begins at
    /// element `start` of the whole `[N, H, W, C]`.
    fn output_row<I>(
        tiles: Tiles,
        channels: usize,
        m: &[f32],
        plane: usize,
        first: usize,
        add: Option<Epilogue<'_>>,
        row: usize,
        start: usize,
        y: &mut [f32],
    ) {
        let (image, y0) = tiles.place(row);
        let residual = add.and_then(|add| add.residual);
        for col in 0..tiles.cols {
            let (x0, tile) = (col * 4, (first + col) * channels);
            let (height, width) = ((tiles.h - y0).min(4), (tiles.w - x0).min(4));
            for c in (0..channels).step_by(LANES) {
                let mut half = [[Lanes::ZERO; 6]; 4];
                for kx in 0..6 {
                    let mut column = [Lanes::ZERO; 6];
                    for ky in 0..6 {
                        column[ky] = load(m, (ky * 6 + kx) * plane + tile + c);
                    }
                    let column = transforms::output::<I>(column);
                    for dy in 0..4 {
                        half[dy][kx] = column[dy];
                    }
                }
                let bias = match add {
                    Some(add) => load(add.bias, c),
                    None => Lanes::ZERO,
                };
                for dy in 0..4 {
                    let line = transforms::output::<I>(half[dy]);
                    let at = (image + (y0 + dy) * tiles.w + x0) * channels + c;
                    for dx in 0..4 {
                        if dy < height && dx < width {
                            let at = at + dx * channels;
                            let mut value = line[dx] + bias;
                            if let Some(residual) = residual {
                                value = value + load(residual, at);
                            }
                            store(y, at - start, value);
                        }
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Tile row `row` of `dy` `[N, H, W, C]` into tiles `first..` of `dm`, whose planes `[t, C]` are `plane` apart.
    fn output_gradient_row<I>(
        tiles: Tiles,
        channels: usize,
        dy: &[f32],
        row: usize,
        dm: &mut [f32],
        plane: usize,
        first: usize,
    ) {
        let (image, y0) = tiles.place(row);
        for col in 0..tiles.cols {
            let (x0, tile) = (col * 4, (first + col) * channels);
            let (height, width) = ((tiles.h - y0).min(4), (tiles.w - x0).min(4));
            for c in (0..channels).step_by(LANES) {
                let mut half = [[Lanes::ZERO; 4]; 6];
                for kx in 0..4 {
                    let mut column = [Lanes::ZERO; 4];
                    for ky in 0..4 {
                        if ky < height && kx < width {
                            column[ky] = load(dy, (image + (y0 + ky) * tiles.w + x0 + kx) * channels + c);
                        }
                    }
                    let column = transforms::output_adjoint::<I>(column);
                    for ky in 0..6 {
                        half[ky][kx] = column[ky];
                    }
                }
                for ky in 0..6 {
                    let line = transforms::output_adjoint::<I>(half[ky]);
                    for kx in 0..6 {
                        store(dm, (ky * 6 + kx) * plane + tile + c, line[kx]);
                    }
                }
            }
        }
    }
}
