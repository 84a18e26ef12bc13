//! Which part of every global batch one rank of several works on.
//!
//! What is drawn for an image (its sample, its noise, its `t`, its dropout) depends on its place in the global batch
//! ([`crate::philox`]). So ranks that agree on nothing but their shares compute together what one rank computes alone.

use std::ops::Range;

/// The images `first .. first + count` of a global batch of `of` images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    first: usize,
    count: usize,
    of: usize,
}

impl Share {
    /// All of a batch of `of` images: the share of a rank that is alone.
    pub fn whole(of: usize) -> Self {
        Self { first: 0, count: of, of }
    }

    /// The share of rank number `rank` among `world` ranks. Shares follow one another and differ by at most one image.
    /// `None` where there is no such rank, or where a rank would have no image.
    pub fn of_rank(rank: usize, world: usize, of: usize) -> Option<Self> {
        if rank >= world || world > of {
            return None;
        }
        let (each, more) = (of / world, of % world);
        let first = rank * each + rank.min(more);
        Some(Self { first, count: each + usize::from(rank < more), of })
    }

    /// The place of its first image in the global batch.
    pub fn first(&self) -> usize {
        self.first
    }

    /// How many images it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Images of the global batch.
    pub fn of(&self) -> usize {
        self.of
    }

    /// The places of its images in the global batch.
    pub fn places(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_the_batch_once_and_differ_by_at_most_one_image() {
        for of in 1..40 {
            for world in 1..=of.min(9) {
                let shares: Vec<Share> = (0..world).filter_map(|rank| Share::of_rank(rank, world, of)).collect();
                let places: Vec<usize> = shares.iter().flat_map(Share::places).collect();
                assert_eq!(places, (0..of).collect::<Vec<_>>(), "{world} ranks, {of} images");
                let counts = || shares.iter().map(Share::count);
                assert!(counts().max() <= counts().min().map(|least| least + 1), "{shares:?}");
            }
        }
    }

    #[test]
    fn a_rank_that_is_alone_has_everything() {
        assert_eq!(Share::of_rank(0, 1, 7), Some(Share::whole(7)));
    }

    #[test]
    fn a_rank_without_images_has_no_share() {
        assert_eq!(Share::of_rank(2, 2, 8), None);
        assert_eq!(Share::of_rank(0, 9, 8), None);
        assert_eq!(Share::of_rank(0, 0, 8), None);
        assert_eq!(Share::of_rank(0, 1, 0), None);
    }
}
