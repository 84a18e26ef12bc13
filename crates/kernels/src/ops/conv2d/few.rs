//! Convolutions between an image of few channels, a picture or its noise, and one of many, on a GPU: the first and the last of a
//! network. `cuda/conv2d_few.cu` says why cuDNN does not compute them.

use candle_core::DType;

use super::Geometry;
use crate::buffer::{DeferredSum, ParamGrads};
use crate::cuda::dnn::ConvAddresses;
use crate::cuda::{Address, Gpu, Launch, column_sum, empty, operand};
use crate::error::Result;

/// Numbers of channels that kernels are made for: pictures without colours and with, latent ones, and pictures with a variance
/// each. With the kernels' names, and the channels of the many that a warp which spreads has registers for.
const FEW: [(usize, [&str; 3], usize); 4] = [
    (1, ["conv2d_spread_1", "conv2d_gather_1", "conv2d_few_gradient_1"], 128),
    (3, ["conv2d_spread_3", "conv2d_gather_3", "conv2d_few_gradient_3"], 128),
    (4, ["conv2d_spread_4", "conv2d_gather_4", "conv2d_few_gradient_4"], 64),
    (6, ["conv2d_spread_6", "conv2d_gather_6", "conv2d_few_gradient_6"], 32),
];
/// The many channels are a multiple of this.
const MANY: usize = 32;
/// Threads of a block, and the warps among them.
const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;
/// Pixels of a row that a warp takes at once.
const TILE: usize = 16;
/// Columns of the outputs of a block that gathers, and rows at most and at least.
const ACROSS: usize = 32;
const DOWN: [usize; 2] = [16, 4];
/// Shared memory of a block that sums a weight's gradient: 64 sums of each of its threads, and before that as many copies in
/// flight.
const GRADIENT_SHARED: usize = THREADS as usize * 64 * size_of::<f32>();
/// Blocks that a multiprocessor holds, and the shared memory that lets an H100's hold two.
const BLOCKS: u32 = 2;
const TWO_BLOCKS: usize = 112 * 1024;

/// Such a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Few<'g> {
    g: &'g Geometry,
    dtype: DType,
    few: usize,
    many: usize,
    /// Whether the few are the outputs.
    out: bool,
    kernels: [&'static str; 3],
    spread_channels: usize,
}

impl<'g> Few<'g> {
    /// The convolution, if it is one; `x` and `y` are where its input and output lie, or their gradients.
    pub(super) fn of(gpu: &Gpu, g: &'g Geometry, dtype: DType, x: Address, y: Address) -> Option<Self> {
        let conv = &g.conv;
        let same = (conv.kernel, conv.stride, conv.pad_before, conv.pad_after) == (3, 1, 1, 1);
        let out = g.co < g.ci;
        let (few, many, at) = if out { (g.co, g.ci, x) } else { (g.ci, g.co, y) };
        let (_, kernels, spread_channels) = FEW.into_iter().find(|(channels, ..)| *channels == few)?;
        let this = Self { g, dtype, few, many, out, kernels, spread_channels };
        let fits =
            many.is_multiple_of(MANY) && at.alignment() >= 16 && this.gather_shared(DOWN[1]) <= gpu.shared_memory();
        // What the kernels count in 32 bits, and the most images that a grid has.
        let counted = u32::try_from(g.n * g.h * g.w).is_ok() && g.w.max(many) < 1 << 20 && g.n < 1 << 16;
        (same && !g.exact() && dtype != DType::F32 && fits && counted).then_some(this)
    }

    /// Products of a pixel, one for the bias among them, as the kernels have them.
    fn products(&self) -> usize {
        (9 * self.few + 1).next_multiple_of(32)
    }

    fn pass_to<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        let sizes = [self.g.n, self.g.h, self.g.w, self.many, usize::from(self.out)];
        sizes.into_iter().fold(launch, |launch, size| launch.arg(size as u32))
    }

    /// y; there is no residual.
    pub(super) fn forward(&self, gpu: &Gpu, at: &ConvAddresses) -> Result<()> {
        if self.out {
            self.gather(gpu, at.x, at.weight, at.bias, at.y)
        } else {
            self.spread(gpu, at.x, at.weight, at.bias, at.y)
        }
    }

    /// dx.
    pub(super) fn input_gradient(&self, gpu: &Gpu, at: &ConvAddresses) -> Result<()> {
        let none = Address::NONE;
        if self.out {
            self.spread(gpu, at.y, at.weight, none, at.x)
        } else {
            self.gather(gpu, at.y, at.weight, none, at.x)
        }
    }

    /// The grid of blocks that take shares of the tiles, and so many channels each.
    fn shares(&self, gpu: &Gpu, channels: usize) -> (u32, u32, u32) {
        let tiles = self.g.n * self.g.h * self.g.w.div_ceil(TILE);
        let groups = self.many.div_ceil(channels);
        let most = (BLOCKS * gpu.multiprocessors()) as usize / groups;
        (most.clamp(1, tiles.div_ceil(WARPS)) as u32, groups as u32, 1)
    }

    fn spread(&self, gpu: &Gpu, few: Address, weight: Address, bias: Address, many: Address) -> Result<()> {
        let channels = self.spread_channels;
        let launch = gpu.float_kernel(self.kernels[0], self.dtype)?.arg(few).arg(weight).arg(bias).arg(many);
        let weights = channels * (self.products() + 2) * self.dtype.size_in_bytes();
        self.pass_to(launch).shared(weights).blocks(self.shares(gpu, channels), THREADS)
    }

    /// Rows of the outputs of a block: as many as leave two blocks to every multiprocessor, so that few rows are read twice.
    fn down(&self, gpu: &Gpu) -> usize {
        let [mut down, least] = DOWN;
        let blocks = |down: usize| self.g.n * self.g.h.div_ceil(down) * self.g.w.div_ceil(ACROSS);
        // Nearly two counts as two.
        let wanted = gpu.multiprocessors() as usize * 3 / 2;
        while down > least && (blocks(down) < wanted || self.gather_shared(down) > TWO_BLOCKS) {
            down /= 2;
        }
        down
    }

    /// Elements from a product to the next in shared memory, so that four of them lie in different banks.
    fn gather_stride(&self, down: usize) -> usize {
        let pixels = (down + 2).min(self.g.h) * (ACROSS + 2).min(self.g.w);
        pixels.next_multiple_of(32) + 4
    }

    fn gather_shared(&self, down: usize) -> usize {
        let weights = self.many * (9 * self.few).next_multiple_of(8) * self.dtype.size_in_bytes();
        weights + 9 * self.few * self.gather_stride(down) * size_of::<f32>()
    }

    fn gather(&self, gpu: &Gpu, many: Address, weight: Address, bias: Address, few: Address) -> Result<()> {
        let launch = gpu.float_kernel(self.kernels[1], self.dtype)?.arg(many).arg(weight).arg(bias).arg(few);
        let down = self.down(gpu);
        let grid = (self.g.w.div_ceil(ACROSS) as u32, self.g.h.div_ceil(down) as u32, self.g.n as u32);
        let launch = self.pass_to(launch).arg(down as u32).arg(ACROSS as u32).arg(self.gather_stride(down) as u32);
        launch.shared(self.gather_shared(down)).blocks(grid, THREADS)
    }

    /// The gradients of weight and bias: sums over shares of the pixels, which are added with all others of the pass, or
    /// immediately.
    pub(super) fn weight_gradient(&self, gpu: &Gpu, at: &ConvAddresses, grads: &ParamGrads<'_>) -> Result<()> {
        // As many channels as a thread has registers for their sums.
        let grid = self.shares(gpu, 2048 / self.products());
        let (rows, weights) = (grid.0 as usize, 9 * self.few * self.many);
        let numbers = rows * (weights + self.g.co);
        let own;
        let partials = match grads.sums {
            Some(sums) => sums.room(gpu, numbers)?,
            None => {
                own = empty(gpu, DType::F32, numbers)?;
                operand(gpu, super::OP, &own, DType::F32)?
            }
        };
        let (few, many) = if self.out { (at.y, at.x) } else { (at.x, at.y) };
        let launch = gpu.float_kernel(self.kernels[2], self.dtype)?.arg(few).arg(many).arg(partials);
        self.pass_to(launch).shared(GRADIENT_SHARED).blocks(grid, THREADS)?;
        let places =
            [(partials, weights, &grads.weight), (partials.offset(rows * weights, DType::F32), self.g.co, &grads.bias)];
        for (from, columns, place) in places.into_iter().take(if grads.bias_summed { 1 } else { 2 }) {
            match grads.sums {
                Some(sums) => {
                    sums.expect(DeferredSum {
                        from,
                        rows,
                        apart: columns,
                        columns,
                        to: place.start,
                        write: grads.write,
                    });
                }
                None => {
                    let to = grads.address(gpu, place.start)?;
                    column_sum(gpu, DType::F32, from, (rows, columns), to, grads.write)?;
                }
            }
        }
        Ok(())
    }
}
