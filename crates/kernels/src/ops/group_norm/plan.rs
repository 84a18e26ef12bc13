//! How a group normalisation is split among the blocks of a GPU.
//!
//! A block has a slice of the channels of one image: whole groups and, where possible, the 32 to 128 neighbouring bytes of
//! every pixel that memory moves at once. If the slice fits into shared memory, it is read from memory once and one launch
//! does everything. Otherwise the pixels are split too, so that few large images fill the GPU, and it takes two launches.

/// Threads of a block, and of one that has a multiprocessor to itself.
const THREADS: usize = 256;
const ALONE: usize = 512;
/// Threads that are enough for a block that keeps everything and has few packs.
const ENOUGH: usize = 128;
/// Bytes of a pixel a block should read: fewer waste what memory moves, more leave too few blocks.
const NARROW: usize = 32;
const WIDE: usize = 128;
/// Bytes that memory reads at once: worth a block that has a multiprocessor to itself.
const FULL: usize = 64;
/// Bytes that memory writes at once: a slice that begins or ends within them has the rest read and written again. On an H100 a
/// pass over 384 channels by slices of 48 bytes took twice as long as by slices of 96.
const SECTOR: usize = 32;
/// Shared memory of a block beside which others fit.
const COMFORTABLE: usize = 72 * 1024;
/// From here on a block is alone on its multiprocessor.
const CROWDED: usize = 100 * 1024;
/// A slice small enough for one block even on an empty GPU.
const SMALL: usize = 64 * 1024;
/// Neighbouring channels of a group that forward sums together.
const TOGETHER: usize = 4;
/// Threads in a row at most. What stays in shared memory is no wider, so that a thread has one column.
const ACROSS: usize = 32;
/// Parts of an image at most: every block of the second launch reads what all of them found.
const PARTS: usize = 64;

/// The sizes of a normalisation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) images: usize,
    pub(super) pixels: usize,
    pub(super) channels: usize,
    pub(super) groups: usize,
    /// Bytes of an element.
    pub(super) size: usize,
    /// Elements a thread takes at once: as many as 16 bytes hold, or 1 where the channels do not allow it.
    pub(super) width: usize,
    /// Whether elements of the result are dropped.
    pub(super) drops: bool,
}

impl Sizes {
    fn per_group(self) -> usize {
        self.channels / self.groups
    }

    /// What a channel is multiplied by instead of dividing it by those of a group: in units of 2^-16, rounded up.
    pub(super) fn inverse(self) -> u32 {
        (65536 / self.per_group() + 1) as u32
    }
}

/// What a multiprocessor has, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) multiprocessors: usize,
    /// Shared memory a block may have, in bytes.
    pub(super) shared: usize,
}

/// Which pass: forward, or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

impl Pass {
    /// Tensors that are read twice.
    fn tensors(self) -> usize {
        match self {
            Self::Forward => 1,
            Self::Backward => 2,
        }
    }

    /// Packs of a thread whose block keeps everything and has many. (These and the other numbers are the fastest of those tried
    /// on an H100, at the layers of the CIFAR-10 network with 128 images.)
    fn packs(self) -> usize {
        match self {
            Self::Forward => 16,
            Self::Backward => 8,
        }
    }

    /// Floats in shared memory of a block with so many channels, groups and columns of sums: of each channel, of each group, and
    /// of each column, as the device code's `Carve` hands them out.
    fn floats(self, whole: bool, sizes: Sizes, [channels, groups, columns]: [usize; 3]) -> usize {
        let [of_channel, of_group, of_column] = match (self, whole) {
            (Self::Forward, true) if sizes.per_group().is_multiple_of(TOGETHER) => [3, 3, 2 * (sizes.width / TOGETHER)],
            (Self::Forward, true) => [3, 3, 2 * sizes.width],
            (Self::Backward, true) => [6, 2, 3 * sizes.width],
            (Self::Forward, false) => [4, 2, 2 * sizes.width],
            (Self::Backward, false) => [5, 2, 2 * sizes.width],
        };
        let up = |floats: usize| floats.next_multiple_of(4);
        of_channel * up(channels) + of_group * up(groups) + up(of_column * columns)
    }
}

/// The split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Channels of a slice.
    pub(super) slice: usize,
    /// Threads in a row: a power of two.
    pub(super) across: usize,
    /// Pixels of a part.
    pub(super) part: usize,
    pub(super) parts: usize,
    /// Tensors that stay in shared memory.
    pub(super) kept: usize,
    pub(super) threads: usize,
    /// Dynamic shared memory in bytes.
    pub(super) shared: usize,
    /// Whether the parts' sums are computed by a launch of their own.
    pub(super) split: bool,
}

impl Plan {
    pub(super) fn new(pass: Pass, sizes: Sizes, limits: Limits) -> Self {
        let slices = slices(sizes);
        let whole = (1..=pass.tensors()).rev().find_map(|kept| whole_image(pass, sizes, limits, &slices, kept));
        whole.unwrap_or_else(|| split_image(pass, sizes, limits, slices[0]))
    }

    /// Whether all that is read twice stays in shared memory: there are kernels of their own for that.
    pub(super) fn whole(&self, pass: Pass) -> bool {
        self.kept == pass.tensors()
    }

    fn of_slice(pass: Pass, sizes: Sizes, slice: usize, parts: usize, kept: usize) -> Self {
        let across = (slice / sizes.width).next_power_of_two().min(ACROSS);
        let part = sizes.pixels.div_ceil(parts);
        let whole = kept == pass.tensors();
        let mask = if whole && sizes.drops { part * slice / sizes.width } else { 0 };
        let staged = kept * part * slice * sizes.size + mask;
        let most = if staged > CROWDED { ALONE } else { THREADS };
        let threads = if whole {
            // With fewer packs per thread, a block's fixed work takes longer than they do. And a thread for every channel.
            let packs = part * slice / sizes.width;
            let threads = (packs / pass.packs()).max((packs / 2).min(ENOUGH)).max(slice);
            threads.next_multiple_of(32).min(most)
        } else {
            (across * part).next_multiple_of(32).clamp(128, most)
        };
        let floats = pass.floats(whole, sizes, [slice, slice / sizes.per_group(), threads / 32 * across]);
        let shared = floats * size_of::<f32>() + staged;
        Self { slice, across, part, parts: sizes.pixels.div_ceil(part), kept, threads, shared, split: false }
    }
}

/// The slices worth considering, from wide to narrow.
fn slices(sizes: Sizes) -> Vec<usize> {
    let per_group = sizes.per_group();
    let unit = per_group / greatest_common_divisor(per_group, sizes.width) * sizes.width;
    let units = sizes.channels / unit;
    let fits: Vec<usize> = (1..=units)
        .rev()
        .filter(|count| units.is_multiple_of(*count))
        .map(|count| count * unit)
        .filter(|slice| *slice == unit || slice * sizes.size <= WIDE)
        .collect();
    let prefer = |slices: Vec<usize>, good: &dyn Fn(usize) -> bool| {
        let preferred: Vec<usize> = slices.iter().copied().filter(|&slice| good(slice * sizes.size)).collect();
        if preferred.is_empty() { slices } else { preferred }
    };
    prefer(prefer(fits, &|bytes| bytes >= NARROW), &|bytes| bytes.is_multiple_of(SECTOR))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// One launch with `kept` tensors in shared memory, if they fit and there are blocks enough.
fn whole_image(pass: Pass, sizes: Sizes, limits: Limits, slices: &[usize], kept: usize) -> Option<Plan> {
    let blocks = |plan: &Plan| sizes.images * (sizes.channels / plan.slice);
    // Single elements are read again rather than kept: such channels are rare.
    let kept_now = if sizes.width == 1 { 0 } else { kept };
    let bytes = |slice: usize| kept * sizes.pixels * slice * sizes.size;
    let plans: Vec<Plan> = slices
        .iter()
        .filter(|&&slice| kept_now < pass.tensors() || slice / sizes.width <= ACROSS)
        .map(|&slice| Plan::of_slice(pass, sizes, slice, 1, kept_now))
        .filter(|p| bytes(p.slice) < limits.shared && p.shared <= limits.shared)
        .collect();
    let filling = |limit: usize, least: usize| {
        let fits = move |plan: &&Plan| bytes(plan.slice) <= limit && plan.slice * sizes.size >= least;
        plans.iter().find(move |plan| fits(plan) && blocks(plan) >= limits.multiprocessors)
    };
    let narrowest =
        plans.last().filter(|plan| 2 * blocks(plan) >= limits.multiprocessors || bytes(plan.slice) <= SMALL);
    let wishes = [(COMFORTABLE, FULL), (limits.shared, FULL), (COMFORTABLE, NARROW), (limits.shared, 0)];
    wishes.into_iter().find_map(|(limit, least)| filling(limit, least)).or(narrowest).copied()
}

/// Two launches over parts of the images.
fn split_image(pass: Pass, sizes: Sizes, limits: Limits, slice: usize) -> Plan {
    let blocks = sizes.images * (sizes.channels / slice);
    let across = (slice / sizes.width).next_power_of_two().min(ACROSS);
    let worthwhile = sizes.pixels.div_ceil(THREADS / across);
    let parts = (2 * limits.multiprocessors).div_ceil(blocks).clamp(1, PARTS.min(worthwhile));
    Plan { split: true, ..Plan::of_slice(pass, sizes, slice, parts, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits { multiprocessors: 132, shared: 227 * 1024 };

    fn sizes(images: usize, side: usize, channels: usize, groups: usize) -> Sizes {
        let width = if channels.is_multiple_of(8) { 8 } else { 1 };
        Sizes { images, pixels: side * side, channels, groups, size: 2, width, drops: false }
    }

    fn plan(pass: Pass, sizes: Sizes) -> Plan {
        let plan = Plan::new(pass, sizes, H100);
        assert_eq!(sizes.channels % plan.slice, 0, "{sizes:?} {plan:?}");
        assert_eq!(plan.slice % (sizes.channels / sizes.groups), 0, "{sizes:?} {plan:?}");
        assert_eq!(plan.slice % sizes.width, 0, "{sizes:?} {plan:?}");
        assert!(plan.part * plan.parts >= sizes.pixels && plan.part * (plan.parts - 1) < sizes.pixels, "{plan:?}");
        assert!(plan.shared <= H100.shared && plan.threads.is_multiple_of(32), "{plan:?}");
        assert!(plan.split || plan.parts == 1, "{plan:?}");
        plan
    }

    #[test]
    fn the_layers_of_the_cifar10_network_take_one_launch_and_read_once() {
        for (side, channels) in [(32, 128), (32, 256), (32, 384), (16, 256), (16, 384), (16, 512), (8, 512), (4, 256)] {
            let forward = plan(Pass::Forward, sizes(128, side, channels, 32));
            let backward = plan(Pass::Backward, sizes(128, side, channels, 32));
            assert!(!forward.split && forward.kept == 1, "{side} {channels}: {forward:?}");
            assert!(!backward.split && backward.kept == 2, "{side} {channels}: {backward:?}");
            assert!((forward.slice * 2).is_multiple_of(SECTOR), "{forward:?}");
            assert!((backward.slice * 2).is_multiple_of(SECTOR), "{backward:?}");
            assert!(forward.slice * 2 >= FULL && backward.slice * 2 >= FULL, "{forward:?} {backward:?}");
        }
    }

    /// Slice and threads that were the fastest on an H100, or not measurably slower.
    #[test]
    fn the_layers_of_the_cifar10_network_are_split_as_measured() {
        let of = |pass, side, channels| {
            let plan = plan(pass, sizes(128, side, channels, 32));
            (plan.slice, plan.threads)
        };
        for (side, channels, forward, backward) in [
            (32, 128, (32, 256), (32, 512)),
            (32, 256, (32, 256), (32, 512)),
            (32, 384, (48, 256), (48, 512)),
            (16, 256, (64, 128), (64, 256)),
            (16, 512, (64, 128), (64, 256)),
            (8, 256, (64, 128), (64, 128)),
            (4, 256, (64, 64), (64, 64)),
        ] {
            assert_eq!(of(Pass::Forward, side, channels), forward, "{side} {channels}");
            assert_eq!(of(Pass::Backward, side, channels), backward, "{side} {channels}");
        }
    }

    #[test]
    fn a_channels_group_is_found_without_a_division() {
        for per_group in 1..=256 {
            let inverse = sizes(1, 1, per_group * 8, 8).inverse() as usize;
            for channel in 0..=256 {
                assert_eq!((channel * inverse) >> 16, channel / per_group, "{channel} of {per_group} a group");
            }
        }
        // The first channel of a slice, and their number, are multiples.
        for (per_group, groups) in [(1, 4096), (3, 1000), (12, 256), (100, 41), (256, 16)] {
            let inverse = sizes(1, 1, per_group * groups, groups).inverse();
            for group in 0..=groups {
                assert_eq!(((per_group * group) as u32 * inverse) >> 16, group as u32, "{group} of {per_group}");
            }
        }
    }

    #[test]
    fn few_large_images_are_split_until_they_fill_the_gpu() {
        for pass in [Pass::Forward, Pass::Backward] {
            let plan = plan(pass, sizes(16, 256, 128, 32));
            assert!(plan.split && 16 * plan.parts * 128 / plan.slice >= 2 * 132, "{plan:?}");
        }
    }

    #[test]
    fn any_channels_and_groups_are_split_without_a_rest() {
        for (channels, groups) in [(3, 1), (3, 3), (17, 17), (17, 1), (24, 8), (192, 32), (2048, 1), (40, 5), (8, 8)] {
            for (images, side) in [(1, 1), (2, 7), (128, 16), (3, 100)] {
                plan(Pass::Forward, sizes(images, side, channels, groups));
                plan(Pass::Backward, sizes(images, side, channels, groups));
            }
        }
    }
}
