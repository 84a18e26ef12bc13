//! Winograd F(4x4, 3x3): a 3x3 convolution of stride 1 as 36 matrix products over tiles of 4x4 outputs.
//!
//! With `t` tiles in the batch, the transformed input `V` is `[36, t, I]`, the weight `U` `[36, O, I]` and the
//! product `M` `[36, t, O]`: `M[k] = V[k] U[k]^T`. Backward is the adjoint of each arrow: `dM` from `dy`,
//! `dU[k] = dM[k]^T V[k]`, `dV[k] = dM[k] U[k]`. `V` is made again in the backward pass: keeping it would cost
//! 2.25 times the activation's memory, making it is one pass.
//!
//! F(4x4, 3x3) does 36 multiplications where the direct sum does 144. In f32 its error is about ten times that of
//! the direct sum (constants up to 8 in the transforms); the tests state and check the bound.

use rayon::prelude::*;

use super::{Epilogue, Geometry, transforms};
use crate::buffer::unwritten;
use crate::gemm::{Mat, Write, matmul};
use crate::simd::{LANES, Lanes};
use crate::vectorized;

/// Products per tile and channel pair: 6 x 6.
const PLANES: usize = 36;
/// Below this many tiles the products are too thin to pay for transforming the weight.
const MIN_TILES: usize = 16;

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
    rows: usize,
    cols: usize,
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
}

/// A buffer that several threads write to, each in places of its own.
#[derive(Clone, Copy)]
struct Scatter {
    start: *mut f32,
    len: usize,
}

// SAFETY: the functions that hold one write to disjoint places (each says which).
unsafe impl Send for Scatter {}
// SAFETY: as above.
unsafe impl Sync for Scatter {}

impl Scatter {
    fn new(buffer: &mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// # Safety
    /// No other thread may write to these 16 elements.
    #[inline(always)]
    unsafe fn put(self, at: usize, value: Lanes) {
        debug_assert!(at + LANES <= self.len);
        // SAFETY: inside the allocation (checked in debug builds), exclusive by the caller's word.
        unsafe { self.start.add(at).cast::<[f32; LANES]>().write_unaligned(value.0) }
    }
}

/// The 16 elements of `x` at `at`.
#[inline(always)]
fn load(x: &[f32], at: usize) -> Lanes {
    debug_assert!(at + LANES <= x.len());
    // SAFETY: every caller computes `at` from the geometry the slice was checked against (checked in debug builds).
    Lanes(unsafe { x.as_ptr().add(at).cast::<[f32; LANES]>().read_unaligned() })
}

/// Allocates `len` numbers for `fill` to write.
fn filled(len: usize, fill: impl FnOnce(Scatter)) -> Vec<f32> {
    let mut buffer = unwritten(len);
    fill(Scatter::new(&mut buffer));
    buffer
}

pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], add: Epilogue<'_>) -> Vec<f32> {
    let tiles = Tiles::new(g);
    let u = transform_weight(g, weight);
    let v = transform_input(g, tiles, x);
    let m = per_plane(tiles.count * g.co, |k, m| {
        let v = Mat::new(&v[k * tiles.count * g.ci..], tiles.count, g.ci, g.ci);
        let u = Mat::new(&u[k * g.co * g.ci..], g.co, g.ci, g.ci);
        matmul(v, u.t(), m, g.co, Write::Assign);
    });
    drop((u, v));
    transform_output(g, tiles, &m, add)
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
    let tiles = Tiles::new(g);
    let dm = transform_output_gradient(g, tiles, dy);
    let v = transform_input(g, tiles, x);
    let du = per_plane(g.co * g.ci, |k, du| {
        let dm = Mat::new(&dm[k * tiles.count * g.co..], tiles.count, g.co, g.co);
        let v = Mat::new(&v[k * tiles.count * g.ci..], tiles.count, g.ci, g.ci);
        matmul(dm.t(), v, du, g.ci, Write::Assign);
    });
    drop(v);
    weight_gradient(g, &du, dw, write);
    drop(du);
    need_dx.then(|| {
        let u = transform_weight(g, weight);
        let dv = per_plane(tiles.count * g.ci, |k, dv| {
            let dm = Mat::new(&dm[k * tiles.count * g.co..], tiles.count, g.co, g.co);
            let u = Mat::new(&u[k * g.co * g.ci..], g.co, g.ci, g.ci);
            matmul(dm, u, dv, g.ci, Write::Assign);
        });
        drop((u, dm));
        input_gradient(g, tiles, &dv)
    })
}

/// A `[36, plane]` buffer whose planes `fill` overwrites in parallel.
fn per_plane(plane: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = unwritten(PLANES * plane);
    out.par_chunks_mut(plane).enumerate().for_each(|(k, out)| fill(k, out));
    out
}

/// `[O, 3, 3, I]` to `[36, O, I]`.
fn transform_weight(g: &Geometry, weight: &[f32]) -> Vec<f32> {
    filled(PLANES * g.co * g.ci, |u| {
        (0..g.co).into_par_iter().with_min_len(8).for_each(|o| weight_row(g, weight, o, u));
    })
}

vectorized! {
    /// Writes output channel `o` of every plane.
    fn weight_row<I>(g: &Geometry, weight: &[f32], o: usize, u: Scatter) {
        let plane = g.co * g.ci;
        for i in (0..g.ci).step_by(LANES) {
            let mut half = [[Lanes::ZERO; 3]; 6];
            for kx in 0..3 {
                let tap = |ky: usize| load(weight, (o * 9 + ky * 3 + kx) * g.ci + i);
                let column = transforms::weight::<I>([tap(0), tap(1), tap(2)]);
                for (row, value) in half.iter_mut().zip(column) {
                    row[kx] = value;
                }
            }
            for (ky, row) in half.into_iter().enumerate() {
                for (kx, value) in transforms::weight::<I>(row).into_iter().enumerate() {
                    // SAFETY: channel `o` belongs to this call.
                    unsafe { u.put((ky * 6 + kx) * plane + o * g.ci + i, value) };
                }
            }
        }
    }
}

/// `[36, O, I]` to `[O, 3, 3, I]`.
fn weight_gradient(g: &Geometry, du: &[f32], dw: &mut [f32], write: Write) {
    dw.par_chunks_mut(9 * g.ci).enumerate().with_min_len(8).for_each(|(o, dw)| {
        weight_gradient_row(g, du, o, dw, write);
    });
}

vectorized! {
    fn weight_gradient_row<I>(g: &Geometry, du: &[f32], o: usize, dw: &mut [f32], write: Write) {
        let plane = g.co * g.ci;
        for i in (0..g.ci).step_by(LANES) {
            let mut half = [[Lanes::ZERO; 6]; 3];
            for kx in 0..6 {
                let column: [Lanes; 6] = std::array::from_fn(|ky| load(du, (ky * 6 + kx) * plane + o * g.ci + i));
                for (row, value) in half.iter_mut().zip(transforms::weight_adjoint::<I>(column)) {
                    row[kx] = value;
                }
            }
            for (ky, row) in half.into_iter().enumerate() {
                for (kx, value) in transforms::weight_adjoint::<I>(row).into_iter().enumerate() {
                    let at = &mut dw[(ky * 3 + kx) * g.ci + i..][..LANES];
                    let value = if write == Write::Add { value + Lanes::load(at) } else { value };
                    value.store(at);
                }
            }
        }
    }
}

/// `x` `[N, H, W, I]` to `[36, t, I]`.
fn transform_input(g: &Geometry, tiles: Tiles, x: &[f32]) -> Vec<f32> {
    filled(PLANES * tiles.count * g.ci, |v| {
        (0..tiles.tile_rows()).into_par_iter().for_each(|row| input_row(g, tiles, x, row, v));
    })
}

vectorized! {
    /// Writes the tiles of one row of tiles in every plane.
    fn input_row<I>(g: &Geometry, tiles: Tiles, x: &[f32], row: usize, v: Scatter) {
        let plane = tiles.count * g.ci;
        let image = row / tiles.rows * tiles.h * tiles.w;
        let y0 = row % tiles.rows * 4;
        for col in 0..tiles.cols {
            let (x0, tile) = (col * 4, row * tiles.cols + col);
            for i in (0..g.ci).step_by(LANES) {
                let mut half = [[Lanes::ZERO; 6]; 6];
                for kx in 0..6 {
                    // The tile's inputs begin one pixel above and left of it.
                    if x0 + kx < 1 || x0 + kx > tiles.w {
                        continue;
                    }
                    let column: [Lanes; 6] = std::array::from_fn(|ky| {
                        if y0 + ky < 1 || y0 + ky > tiles.h {
                            return Lanes::ZERO;
                        }
                        load(x, (image + (y0 + ky - 1) * tiles.w + x0 + kx - 1) * g.ci + i)
                    });
                    for (row, value) in half.iter_mut().zip(transforms::input::<I>(column)) {
                        row[kx] = value;
                    }
                }
                for (ky, half) in half.into_iter().enumerate() {
                    for (kx, value) in transforms::input::<I>(half).into_iter().enumerate() {
                        // SAFETY: the tiles of this row belong to this call.
                        unsafe { v.put((ky * 6 + kx) * plane + tile * g.ci + i, value) };
                    }
                }
            }
        }
    }
}

/// `[36, t, O]` to `y` `[N, H, W, O]`, with bias and residual.
fn transform_output(g: &Geometry, tiles: Tiles, m: &[f32], add: Epilogue<'_>) -> Vec<f32> {
    filled(g.n * g.h * g.w * g.co, |y| {
        (0..tiles.tile_rows()).into_par_iter().for_each(|row| output_row(g, tiles, m, add, row, y));
    })
}

vectorized! {
    /// Writes the up to four image rows of one row of tiles.
    fn output_row<I>(g: &Geometry, tiles: Tiles, m: &[f32], add: Epilogue<'_>, row: usize, y: Scatter) {
        let plane = tiles.count * g.co;
        let image = row / tiles.rows * tiles.h * tiles.w;
        let y0 = row % tiles.rows * 4;
        for col in 0..tiles.cols {
            let (x0, tile) = (col * 4, row * tiles.cols + col);
            for o in (0..g.co).step_by(LANES) {
                let bias = load(add.bias, o);
                let mut half = [[Lanes::ZERO; 6]; 4];
                for kx in 0..6 {
                    let column: [Lanes; 6] =
                        std::array::from_fn(|ky| load(m, (ky * 6 + kx) * plane + tile * g.co + o));
                    for (row, value) in half.iter_mut().zip(transforms::output::<I>(column)) {
                        row[kx] = value;
                    }
                }
                for (dy, half) in half.into_iter().enumerate().take(tiles.h - y0) {
                    for (dx, value) in transforms::output::<I>(half).into_iter().enumerate().take(tiles.w - x0) {
                        let at = (image + (y0 + dy) * tiles.w + x0 + dx) * g.co + o;
                        let value = match add.residual {
                            Some(residual) => value + bias + load(residual, at),
                            None => value + bias,
                        };
                        // SAFETY: the image rows of this row of tiles belong to this call.
                        unsafe { y.put(at, value) };
                    }
                }
            }
        }
    }
}

/// `dy` `[N, H, W, O]` to `[36, t, O]`.
fn transform_output_gradient(g: &Geometry, tiles: Tiles, dy: &[f32]) -> Vec<f32> {
    filled(PLANES * tiles.count * g.co, |dm| {
        (0..tiles.tile_rows()).into_par_iter().for_each(|row| output_gradient_row(g, tiles, dy, row, dm));
    })
}

vectorized! {
    /// Writes the tiles of one row of tiles in every plane.
    fn output_gradient_row<I>(g: &Geometry, tiles: Tiles, dy: &[f32], row: usize, dm: Scatter) {
        let plane = tiles.count * g.co;
        let image = row / tiles.rows * tiles.h * tiles.w;
        let y0 = row % tiles.rows * 4;
        for col in 0..tiles.cols {
            let (x0, tile) = (col * 4, row * tiles.cols + col);
            for o in (0..g.co).step_by(LANES) {
                let mut half = [[Lanes::ZERO; 4]; 6];
                for kx in 0..4usize.min(tiles.w - x0) {
                    let column: [Lanes; 4] = std::array::from_fn(|ky| {
                        if y0 + ky >= tiles.h {
                            return Lanes::ZERO;
                        }
                        load(dy, (image + (y0 + ky) * tiles.w + x0 + kx) * g.co + o)
                    });
                    for (row, value) in half.iter_mut().zip(transforms::output_adjoint::<I>(column)) {
                        row[kx] = value;
                    }
                }
                for (ky, half) in half.into_iter().enumerate() {
                    for (kx, value) in transforms::output_adjoint::<I>(half).into_iter().enumerate() {
                        // SAFETY: the tiles of this row belong to this call.
                        unsafe { dm.put((ky * 6 + kx) * plane + tile * g.co + o, value) };
                    }
                }
            }
        }
    }
}

/// `[36, t, I]` to `dx` `[N, H, W, I]`; neighbouring tiles overlap by two pixels, so an image stays on one thread.
fn input_gradient(g: &Geometry, tiles: Tiles, dv: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; g.n * g.h * g.w * g.ci];
    dx.par_chunks_mut(g.h * g.w * g.ci).enumerate().for_each(|(n, dx)| image_gradient(g, tiles, dv, n, dx));
    dx
}

vectorized! {
    fn image_gradient<I>(g: &Geometry, tiles: Tiles, dv: &[f32], n: usize, dx: &mut [f32]) {
        let plane = tiles.count * g.ci;
        for row in 0..tiles.rows {
            for col in 0..tiles.cols {
                let (y0, x0, tile) = (row * 4, col * 4, (n * tiles.rows + row) * tiles.cols + col);
                for i in (0..g.ci).step_by(LANES) {
                    let mut half = [[Lanes::ZERO; 6]; 6];
                    for kx in 0..6 {
                        let column: [Lanes; 6] =
                            std::array::from_fn(|ky| load(dv, (ky * 6 + kx) * plane + tile * g.ci + i));
                        for (row, value) in half.iter_mut().zip(transforms::input_adjoint::<I>(column)) {
                            row[kx] = value;
                        }
                    }
                    for (ky, half) in half.into_iter().enumerate() {
                        if y0 + ky < 1 || y0 + ky > tiles.h {
                            continue;
                        }
                        for (kx, value) in transforms::input_adjoint::<I>(half).into_iter().enumerate() {
                            if x0 + kx < 1 || x0 + kx > tiles.w {
                                continue;
                            }
                            let at = ((y0 + ky - 1) * tiles.w + x0 + kx - 1) * g.ci + i;
                            (value + load(dx, at)).store(&mut dx[at..]);
                        }
                    }
                }
            }
        }
    }
}
