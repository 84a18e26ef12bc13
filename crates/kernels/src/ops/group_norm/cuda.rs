//! The bodies for a GPU: one launch each, two where an image is too large for a multiprocessor's shared memory.

use candle_core::{DType, Tensor};

use super::fusion::{ChannelSums, Fused, FusedGrads, Mask, Wanted};
use super::plan::{Limits, Pass, Plan, Sizes};
use super::{GroupNorm, OP, Shape};
use crate::buffer::{DeferredSum, DeferredSums, ParamGrads};
use crate::cuda::{Address, Gpu, Launch, empty, operand, optional, pack_width};
use crate::error::Result;

/// Weight, bias and modulation.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) bias: &'a Tensor,
    pub(super) modulation: Option<&'a Tensor>,
}

impl Affine<'_> {
    /// The arguments, with the offset, as every kernel takes them.
    fn pass_to<'g>(self, launch: Launch<'g>, gpu: &Gpu, offset: Option<&Tensor>, dtype: DType) -> Result<Launch<'g>> {
        let launch =
            launch.arg(operand(gpu, OP, self.weight, DType::F32)?).arg(operand(gpu, OP, self.bias, DType::F32)?);
        let (modulation, offset) = (rows(gpu, self.modulation, dtype)?, rows(gpu, offset, dtype)?);
        Ok(launch.arg(modulation.0).arg(offset.0).arg(modulation.1.max(offset.1)))
    }
}

/// Where the rows of a matrix begin, and how many elements they lie apart; the matrix may be left out.
fn rows(gpu: &Gpu, matrix: Option<&Tensor>, dtype: DType) -> Result<(Address, u32)> {
    let Some(matrix) = matrix else { return Ok((Address::NONE, 0)) };
    let apart = matrix.stride().first().copied().unwrap_or(0);
    // The first row is contiguous if any is.
    Ok((operand(gpu, OP, &matrix.narrow(0, 0, 1)?, dtype)?, apart as u32))
}

/// What the backward pass reads besides.
#[derive(Clone, Copy)]
pub(super) struct BackwardInputs<'a> {
    pub(super) x: &'a Tensor,
    pub(super) dy: &'a Tensor,
    pub(super) statistics: &'a Tensor,
    pub(super) extra: [Option<&'a Tensor>; 2],
}

/// What forward normalises: `x`, or two tensors that are written to `x` side by side.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) x: &'a Tensor,
    pub(super) parts: Option<[&'a Tensor; 2]>,
}

impl Source<'_> {
    /// Channels of the first part, or all.
    fn joined(&self, channels: usize) -> usize {
        self.parts.and_then(|[first, _]| first.dims().last().copied()).unwrap_or(channels)
    }

    /// Addresses of the two parts and of the joined result; or of `x`, without another part and without a result.
    fn addresses(&self, gpu: &Gpu, dtype: DType) -> Result<[Address; 3]> {
        let x = operand(gpu, OP, self.x, dtype)?;
        let Some([first, rest]) = self.parts else { return Ok([x, Address::NONE, Address::NONE]) };
        Ok([operand(gpu, OP, first, dtype)?, operand(gpu, OP, rest, dtype)?, x])
    }
}

/// A source's arguments, as every kernel takes them.
fn pass_source(launch: Launch<'_>, from: [Address; 3], joined: usize) -> Launch<'_> {
    from.into_iter().fold(launch, |launch, address| launch.arg(address)).arg(joined as u32)
}

/// The mask's arguments, as every kernel takes them.
fn pass_mask<'g>(launch: Launch<'g>, gpu: &Gpu, mask: Option<Mask<'_>>) -> Result<Launch<'g>> {
    let Some(Mask { dropout, step }) = mask else {
        let none = launch.arg(0u64).arg(Address::NONE).arg(0u64).arg(0u64);
        return Ok(none.arg(0u32).arg(0f32));
    };
    let launch = launch.arg(dropout.philox().key()).arg(optional(gpu, OP, step, DType::U32)?);
    Ok(launch.arg(dropout.step).arg(dropout.first_position).arg(dropout.threshold()).arg(dropout.keep()))
}

/// The sizes and the split that follows from them.
struct Work {
    sizes: Sizes,
    plan: Plan,
}

impl Work {
    /// For tensors of `dtype` at these addresses, which begin at one of these channels.
    fn new(
        gpu: &Gpu,
        pass: Pass,
        shape: Shape,
        images: usize,
        dtype: DType,
        (addresses, begin): (&[Address], [usize; 2]),
        drops: bool,
    ) -> Self {
        let Shape { pixels, channels, groups } = shape;
        let width = begin.map(|channel| pack_width(channel, dtype, addresses));
        let width = width[0].min(width[1]).min(pack_width(channels, dtype, addresses));
        let sizes = Sizes { images, pixels, channels, groups, size: dtype.size_in_bytes(), width, drops };
        let limits = Limits { multiprocessors: gpu.multiprocessors() as usize, shared: gpu.shared_memory() };
        Self { sizes, plan: Plan::new(pass, sizes, limits) }
    }

    /// Memory for the results that the first of two launches leaves to the second: two sums for every channel of each part.
    /// (Scratch memory would only last for one launch.)
    fn partials(&self, gpu: &Gpu) -> Result<Option<Tensor>> {
        let parts = self.sizes.images * self.plan.parts;
        self.plan.split.then(|| empty(gpu, DType::F32, (parts, 2, self.sizes.channels))).transpose()
    }

    /// Room for every image's gradients of weight and bias, and for every part's sums of dx, where `bias`' are wanted, or an
    /// offset's and the launch does not see whole images.
    fn room(&self, gpu: &Gpu, later: &DeferredSums, bias: bool, offset: bool) -> Result<(Address, Address)> {
        let images = self.sizes.images * self.sizes.channels;
        let parts = if bias || (offset && self.plan.parts > 1) { self.plan.parts * images } else { 0 };
        let own = later.room(gpu, 2 * images + parts)?;
        Ok((own, if parts > 0 { own.offset(2 * images, DType::F32) } else { Address::NONE }))
    }

    /// Sums over what lies there: the gradients of weight and bias, and `wanted` ones.
    fn expect(
        &self,
        later: &DeferredSums,
        (own, dx_sums): (Address, Address),
        grads: &ParamGrads<'_>,
        wanted: &[ChannelSums],
    ) {
        let Sizes { images, channels, .. } = self.sizes;
        let of_images = |first: usize, to: usize| {
            let from = own.offset(first, DType::F32);
            DeferredSum { from, rows: images, apart: 2 * channels, columns: channels, to, write: grads.write }
        };
        later.expect(of_images(0, grads.weight.start));
        later.expect(of_images(channels, grads.bias.start));
        let rows = images * self.plan.parts;
        for ChannelSums { at, write } in wanted {
            let (columns, to, write) = (at.len(), at.start, *write);
            later.expect(DeferredSum { from: dx_sums, rows, apart: channels, columns, to, write });
        }
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
            .arg(sizes.inverse())
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        let (sizes, plan) = (&self.sizes, &self.plan);
        let grid = (sizes.channels / plan.slice, plan.parts, sizes.images);
        let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
        launch.shared(plan.shared).blocks(grid, plan.threads as u32)
    }
}

/// Returns `y` and the statistics `[N, 2, G]`.
pub(super) fn forward(
    norm: &GroupNorm,
    shape: Shape,
    source: Source<'_>,
    affine: Affine<'_>,
    fused: Fused<'_>,
) -> Result<(Tensor, Tensor)> {
    let x = source.x;
    let gpu = Gpu::of(x.device())?;
    let (images, dtype) = (x.dim(0)?, x.dtype());
    let y = empty(&gpu, dtype, x.dims())?;
    let statistics = empty(&gpu, DType::F32, (images, 2, shape.groups))?;
    let (from, to) = (source.addresses(&gpu, dtype)?, operand(&gpu, OP, &y, dtype)?);
    let joined = source.joined(shape.channels);
    let ends = ([from.as_slice(), &[to]].concat(), [joined, shape.channels - joined]);
    let work = Work::new(&gpu, Pass::Forward, shape, images, dtype, (&ends.0, ends.1), fused.dropout.is_some());
    let of_parts = work.partials(&gpu)?;
    let partials = optional(&gpu, OP, of_parts.as_ref(), DType::F32)?;
    let mut reads = (from, joined);
    if work.plan.split {
        let launch = pass_source(gpu.float_kernel("group_norm_moments", dtype)?, from, joined).arg(partials);
        work.launch(work.pass_to(launch))?;
        reads = (Source { parts: None, ..source }.addresses(&gpu, dtype)?, shape.channels);
    }
    let name = if work.plan.whole(Pass::Forward) { "group_norm_whole" } else { OP };
    let launch = affine
        .pass_to(pass_source(gpu.float_kernel(name, dtype)?, reads.0, reads.1), &gpu, fused.offset, dtype)?
        .arg(to)
        .arg(operand(&gpu, OP, &statistics, DType::F32)?)
        .arg(partials);
    let launch = work.pass_to(launch).arg(work.plan.kept as u32).arg(norm.eps as f32).arg(u32::from(norm.silu));
    work.launch(pass_mask(launch, &gpu, fused.dropout)?)?;
    Ok((y, statistics))
}

/// New tensors for the gradients, except for the time's where a place is given.
fn results(x: &Tensor, affine: Affine<'_>, fused: Fused<'_>, wanted: &Wanted) -> Result<FusedGrads> {
    let gpu = Gpu::of(x.device())?;
    let like = |tensor: &Tensor| match &wanted.time {
        Some(place) => Ok(place.clone()),
        None => empty(&gpu, tensor.dtype(), tensor.dims()),
    };
    let part = |channels: usize| {
        let mut dims = x.dims().to_vec();
        dims.iter_mut().rev().take(1).for_each(|last| *last = channels);
        empty(&gpu, x.dtype(), dims)
    };
    let channels = affine.weight.elem_count();
    let joined = wanted.joined.unwrap_or(channels);
    Ok(FusedGrads {
        dx: part(joined)?,
        rest: (joined < channels).then(|| part(channels - joined)).transpose()?,
        modulation: affine.modulation.map(like).transpose()?,
        offset: fused.offset.map(like).transpose()?,
    })
}

/// The kernel that writes dx: for whole images in shared memory or not, with dropout or not, adding so many gradients from
/// elsewhere.
fn backward_kernel(whole: bool, drops: bool, extra: usize) -> &'static str {
    match (whole, drops, extra) {
        (true, true, _) => "group_norm_backward_dropout_whole",
        (true, false, 0) => "group_norm_backward_whole",
        (true, false, 1) => "group_norm_backward_one_whole",
        (true, false, _) => "group_norm_backward_two_whole",
        (false, true, _) => "group_norm_backward_dropout",
        (false, false, 0 | 1) => "group_norm_backward",
        (false, false, _) => "group_norm_backward_two",
    }
}

pub(super) fn backward(
    norm: &GroupNorm,
    shape: Shape,
    operands: BackwardInputs<'_>,
    affine: Affine<'_>,
    fused: Fused<'_>,
    wanted: &Wanted,
    grads: &ParamGrads<'_>,
) -> Result<FusedGrads> {
    let BackwardInputs { x, dy, statistics, extra } = operands;
    let gpu = Gpu::of(x.device())?;
    let (images, dtype) = (x.dim(0)?, x.dtype());
    let joined = wanted.joined.unwrap_or(shape.channels);
    let found = results(x, affine, fused, wanted)?;
    let at = |tensor: Option<&Tensor>| optional(&gpu, OP, tensor, dtype);
    let inputs = [at(Some(x))?, at(Some(dy))?, at(extra[0])?, at(extra[1])?];
    let outputs = [at(Some(&found.dx))?, at(found.rest.as_ref())?];
    let activations = [inputs.as_slice(), &outputs].concat();
    let begin = [joined, shape.channels - joined];
    let work = Work::new(&gpu, Pass::Backward, shape, images, dtype, (&activations, begin), fused.dropout.is_some());
    let of_parts = work.partials(&gpu)?;
    let partials = optional(&gpu, OP, of_parts.as_ref(), DType::F32)?;
    let at_once = DeferredSums::default();
    let later = grads.sums.unwrap_or(&at_once);
    let rooms = work.room(&gpu, later, !wanted.sums.is_empty(), fused.offset.is_some())?;
    let (dmodulation, doffset) =
        (rows(&gpu, found.modulation.as_ref(), dtype)?, rows(&gpu, found.offset.as_ref(), dtype)?);
    let queue = |name: &'static str| {
        let launch = inputs.iter().fold(gpu.float_kernel(name, dtype)?, |launch, &input| launch.arg(input));
        let launch = affine.pass_to(launch, &gpu, fused.offset, dtype)?;
        let launch = launch.arg(operand(&gpu, OP, statistics, DType::F32)?);
        let launch = outputs.iter().fold(launch, |launch, &output| launch.arg(output));
        let launch = launch
            .arg(dmodulation.0)
            .arg(doffset.0)
            .arg(dmodulation.1.max(doffset.1))
            .arg(partials)
            .arg(rooms.0)
            .arg(rooms.1)
            .arg(gpu.counters(if work.plan.parts > 1 { images * shape.channels / work.plan.slice } else { 0 })?)
            .arg(u32::from(norm.silu))
            .arg(joined as u32);
        let launch = pass_mask(launch, &gpu, fused.dropout)?;
        work.launch(work.pass_to(launch).arg(work.plan.kept as u32))
    };
    let drops = fused.dropout.is_some();
    if work.plan.split {
        queue(if drops { "group_norm_sums_dropout" } else { "group_norm_sums" })?;
    }
    queue(backward_kernel(work.plan.whole(Pass::Backward), drops, extra.into_iter().flatten().count()))?;
    work.expect(later, rooms, grads, &wanted.sums);
    at_once.settle(grads.buffer)?;
    Ok(found)
}
