//! From where on the steps of a run follow each other in the order of its images.
//!
//! Normally from the beginning: step `k` begins after `k * batch_size` images. A run may leave this line: with another batch
//! size from some step on, or after a divergence, when it goes back to an earlier step and passes over the images that led
//! there. Then this is where its new line begins; it is a part of the run's state.

use ddpm_kernels::share::Share;
use serde::{Deserialize, Serialize};

/// See the module. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Steps done.
    pub step: u64,
    /// Images before the next step: seen, or passed over.
    pub images: u64,
}

impl Origin {
    /// Images before step `step` (from 0, not before [`Origin::step`]) of batches with `batch_size` images.
    pub fn images_before(&self, step: u64, batch_size: usize) -> u64 {
        self.images.wrapping_add(step.wrapping_sub(self.step).wrapping_mul(batch_size as u64))
    }

    /// The positions of a share's images at step `step`: the number of images before each of them.
    pub(crate) fn positions(&self, share: Share, step: u64) -> impl Iterator<Item = u64> + use<> {
        let before = self.images_before(step, share.of());
        share.places().map(move |place| before.wrapping_add(place as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_follow_each_other_from_the_origin_on() {
        let positions = |origin: Origin, share, step| origin.positions(share, step).collect::<Vec<_>>();
        assert_eq!(positions(Origin::default(), Share::whole(7), 3), (21..28).collect::<Vec<_>>());
        let later = Origin { step: 3, images: 100 };
        assert_eq!(positions(later, Share::whole(2), 3), [100, 101]);
        assert_eq!(positions(later, Share::whole(2), 5), [104, 105]);
        assert_eq!(positions(later, Share::of_rank(1, 2, 4).unwrap_or(Share::whole(1)), 4), [106, 107]);
    }
}
