//! The tiles of a batch, and the two-dimensional transforms of a row of them: what Winograd does besides multiplying.

// The loops over a tile must be unrolled, and closures given to `map` would be compiled without wide vectors.
#![allow(clippy::needless_range_loop)]

use super::{Epilogue, Geometry, transforms};
use crate::simd::{LANES, Lanes};
use crate::vectorized;

/// The tiling of a batch: 4x4 outputs each, the last row and column partly outside the image.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) h: usize,
    pub(super) w: usize,
    /// Rows of tiles in an image.
    pub(super) rows: usize,
    /// Tiles in a row.
    pub(super) cols: usize,
    /// Tiles in the batch.
    pub(super) count: usize,
}

impl Tiles {
    pub(super) fn new(g: &Geometry) -> Self {
        let (rows, cols) = (g.h.div_ceil(4), g.w.div_ceil(4));
        Self { h: g.h, w: g.w, rows, cols, count: g.n * rows * cols }
    }

    /// Rows of tiles in the batch.
    pub(super) fn tile_rows(&self) -> usize {
        self.count / self.cols
    }

    /// The batch's first pixel in tile row `row`; for one row too many, the number of pixels.
    pub(super) fn first_pixel(&self, row: usize) -> usize {
        let (image, y0) = self.place(row);
        image + y0.min(self.h) * self.w
    }

    /// The image that tile row `row` of the batch belongs to, as the offset of its first pixel, and the row's first pixel row.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        (row / self.rows * self.h * self.w, row % self.rows * 4)
    }
}

/// The 16 elements of `x` at `at`.
#[inline(always)]
pub(super) fn load(x: &[f32], at: usize) -> Lanes {
    debug_assert!(at + LANES <= x.len());
    // SAFETY: every caller computes `at` from the geometry the slice was checked against (checked in debug builds).
    Lanes(unsafe { x.as_ptr().add(at).cast::<[f32; LANES]>().read_unaligned() })
}

/// Writes 16 elements of `x` at `at`.
#[inline(always)]
pub(super) fn store(x: &mut [f32], at: usize, value: Lanes) {
    debug_assert!(at + LANES <= x.len());
    // SAFETY: as in `load`.
    unsafe { x.as_mut_ptr().add(at).cast::<[f32; LANES]>().write_unaligned(value.0) };
}

vectorized! {
    /// Tile row `row` of `x` `[N, H, W, C]` into tiles `first..` of `v`, whose planes `[t, C]` are `plane` apart.
    pub(super) fn input_row<I>(tiles: Tiles, channels: usize, x: &[f32], row: usize, v: &mut [f32], plane: usize, first: usize) {
        let (image, y0) = tiles.place(row);
        for col in 0..tiles.cols {
            // The tile's 6x6 inputs begin one pixel above and left of it.
            let (x0, tile) = (col * 4, (first + col) * channels);
            let inside = y0 >= 1 && x0 >= 1 && y0 + 5 <= tiles.h && x0 + 5 <= tiles.w;
            let pixel = |ky: usize, kx: usize| (image + (y0 + ky) * tiles.w + x0 + kx - tiles.w - 1) * channels;
            for c in (0..channels).step_by(LANES) {
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
    pub(super) fn output_row<I>(
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
    pub(super) fn output_gradient_row<I>(
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
