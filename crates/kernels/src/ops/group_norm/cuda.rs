//! The bodies for a GPU: one launch each, two where an image is too large for a multiprocessor's shared memory.

use candle_core::{DType, Tensor};

use super::plan::{Pass, Plan, Room, Sizes};
use super::{GroupNorm, InputGrads, OP, Shape};
use crate::buffer::ParamGrads;
use crate::cuda::{Address, Gpu, Launch, empty, operand, optional, pack_width};
use crate::error::Result;
use crate::gemm::Write;

/// Weight, bias and modulation.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) bias: &'a Tensor,
    pub(super) modulation: Option<&'a Tensor>,
}

/// What backward reads besides.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) x: &'a Tensor,
    pub(super) dy: &'a Tensor,
    pub(super) statistics: &'a Tensor,
    pub(super) extra: Option<&'a Tensor>,
}

/// The sizes and the split that follows from them.
struct Work {
    sizes: Sizes,
    plan: Plan,
}

impl Work {
    /// For tensors of `dtype` at these addresses.
    fn new(gpu: &Gpu, pass: Pass, shape: Shape, images: usize, dtype: DType, addresses: &[Address]) -> Self {
        let Shape { pixels, channels, groups } = shape;
        let width = pack_width(channels, dtype, addresses);
        let sizes = Sizes { images, pixels, channels, groups, size: dtype.size_in_bytes(), width };
        let room = Room { multiprocessors: gpu.multiprocessors() as usize, shared: gpu.shared_memory() };
        Self { sizes, plan: Plan::new(pass, sizes, room) }
    }

    /// Bytes of two sums for every channel of `count` things.
    fn sums(&self, count: usize) -> usize {
        2 * count * self.sizes.channels * size_of::<f32>()
    }

    /// The sizes, as every kernel takes them.
    fn pass_to<'g>(&self, launch: Launch<'g>) -> Launch<'g> {
        let (sizes, plan) = (&self.sizes, &self.plan);
        launch
            .arg(sizes.pixels as u32)
            .arg(sizes.channels as u32)
            .arg((sizes.channels / sizes.groups) as u32)
            .arg(plan.slice as u32)
            .arg(plan.across as u32)
            .arg(plan.part as u32)
            .arg(sizes.width as u32)
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        let (sizes, plan) = (&self.sizes, &self.plan);
        let grid = (sizes.channels / plan.slice, plan.parts, sizes.images);
        let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
        launch.shared(plan.shared).blocks(grid, plan.threads as u32)
    }
}

/// Returns `y` and the statistics `[N, 2, G]`.
pub(super) fn forward(norm: &GroupNorm, shape: Shape, x: &Tensor, affine: Affine<'_>) -> Result<(Tensor, Tensor)> {
    let gpu = Gpu::of(x.device())?;
    let (images, dtype) = (x.dim(0)?, x.dtype());
    let y = empty(&gpu, dtype, x.dims())?;
    let statistics = empty(&gpu, DType::F32, (images, 2, shape.groups))?;
    let (from, to) = (operand(&gpu, OP, x, dtype)?, operand(&gpu, OP, &y, dtype)?);
    let work = Work::new(&gpu, Pass::Forward, shape, images, dtype, &[from, to]);
    let mut partials = Address::NONE;
    if work.plan.split {
        partials = gpu.workspace(work.sums(images * work.plan.parts))?;
        let launch = gpu.float_kernel("group_norm_moments", dtype)?.arg(from).arg(partials);
        work.launch(work.pass_to(launch))?;
    }
    let launch = gpu
        .float_kernel(OP, dtype)?
        .arg(from)
        .arg(operand(&gpu, OP, affine.weight, DType::F32)?)
        .arg(operand(&gpu, OP, affine.bias, DType::F32)?)
        .arg(optional(&gpu, OP, affine.modulation, dtype)?)
        .arg(to)
        .arg(operand(&gpu, OP, &statistics, DType::F32)?)
        .arg(partials);
    let launch = work.pass_to(launch).arg(work.plan.kept as u32).arg(norm.eps as f32).arg(u32::from(norm.silu));
    work.launch(launch)?;
    Ok((y, statistics))
}

pub(super) fn backward(
    norm: &GroupNorm,
    shape: Shape,
    operands: Operands<'_>,
    affine: Affine<'_>,
    grads: &ParamGrads<'_>,
) -> Result<InputGrads> {
    let Operands { x, dy, statistics, extra } = operands;
    let gpu = Gpu::of(x.device())?;
    let (images, dtype) = (x.dim(0)?, x.dtype());
    let dx = empty(&gpu, dtype, x.dims())?;
    let dmodulation = affine.modulation.map(|m| empty(&gpu, dtype, m.dims())).transpose()?;
    let activations = [
        operand(&gpu, OP, x, dtype)?,
        operand(&gpu, OP, dy, dtype)?,
        optional(&gpu, OP, extra, dtype)?,
        operand(&gpu, OP, &dx, dtype)?,
    ];
    let work = Work::new(&gpu, Pass::Backward, shape, images, dtype, &activations);
    let of_parts = if work.plan.split { work.sums(images * work.plan.parts) } else { 0 };
    let own = gpu.workspace(work.sums(images) + of_parts)?;
    let partials = if work.plan.split { Address(own.0 + work.sums(images) as u64) } else { Address::NONE };
    let (dweight, dbias) = grads.addresses(&gpu)?;
    let queue = |name: &'static str| {
        let [x, dy, extra, dx] = activations;
        let launch = gpu
            .float_kernel(name, dtype)?
            .arg(x)
            .arg(dy)
            .arg(extra)
            .arg(operand(&gpu, OP, affine.weight, DType::F32)?)
            .arg(operand(&gpu, OP, affine.bias, DType::F32)?)
            .arg(optional(&gpu, OP, affine.modulation, dtype)?)
            .arg(operand(&gpu, OP, statistics, DType::F32)?)
            .arg(dx)
            .arg(optional(&gpu, OP, dmodulation.as_ref(), dtype)?)
            .arg(dweight)
            .arg(dbias)
            .arg(partials)
            .arg(own)
            .arg(gpu.counters(shape.channels)?)
            .arg(u32::from(norm.silu))
            .arg(u32::from(grads.write == Write::Add));
        work.launch(work.pass_to(launch).arg(work.plan.kept as u32))
    };
    if work.plan.split {
        queue("group_norm_sums")?;
    }
    queue("group_norm_backward")?;
    Ok(InputGrads { dx, modulation: dmodulation })
}
