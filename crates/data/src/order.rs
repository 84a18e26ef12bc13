//! The order of the samples: one seeded permutation per epoch, in O(1) memory.
//!
//! A stored permutation would have to be rebuilt at a resume and costs 8 bytes a sample. Instead an index is
//! *computed*: a Feistel network is a bijection of `0..2^bits` whatever its round function (Luby & Rackoff 1988),
//! and cycle walking (Black & Rogaway 2002, "Ciphers with arbitrary finite domains") restricts it to `0..len`: while
//! the result falls outside, apply the network again. As `2^bits < 2 len`, fewer than two applications are expected.
//! Rounds draw from Philox under [`Purpose::Order`], so any position of any epoch can be computed directly.

use ddpm_kernels::philox::{Philox, Purpose};

/// Four rounds suffice in theory, for large halves; small sets have halves of few bits, where more rounds are what
/// mixes. Must be even, so that halves of unequal width end where they began.
const ROUNDS: u32 = 8;

/// The seeded order of a source with `len` samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    philox: Philox,
    len: u64,
    low_bits: u32,
    high_bits: u32,
}

impl Order {
    /// The order of `len` samples under `seed`.
    pub(crate) fn new(seed: u64, len: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let low_bits = bits.div_ceil(2);
        Self { philox: Philox::new(seed, Purpose::Order), len, low_bits, high_bits: bits - low_bits }
    }

    /// The index at `slot` of `epoch`'s permutation; `slot` must be below the number of samples.
    pub(crate) fn permute(&self, epoch: u64, slot: u64) -> u64 {
        debug_assert!(slot < self.len.max(1), "slot {slot} of {}", self.len);
        let mut index = slot;
        loop {
            index = self.feistel(epoch, index);
            if index < self.len.max(1) {
                return index;
            }
        }
    }

    fn feistel(&self, epoch: u64, value: u64) -> u64 {
        let (mut low_bits, mut high_bits) = (self.low_bits, self.high_bits);
        let mut low = value & mask(low_bits);
        let mut high = value >> low_bits;
        for round in 0..ROUNDS {
            let words = self.philox.block([low as u32, round, epoch as u32, (epoch >> 32) as u32]);
            let mixed = high ^ (u64::from(words[0]) & mask(high_bits));
            (high, low) = (low, mixed);
            (high_bits, low_bits) = (low_bits, high_bits);
        }
        (high << low_bits) | low
    }
}

/// `bits` ones; `bits` is at most 32.
fn mask(bits: u32) -> u64 {
    (1u64 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch(order: &Order, len: u64, epoch: u64) -> Vec<u64> {
        (0..len).map(|slot| order.permute(epoch, slot)).collect()
    }

    fn is_permutation(indices: &[u64]) -> bool {
        let mut seen = vec![false; indices.len()];
        indices.iter().all(|&i| seen.get_mut(i as usize).is_some_and(|s| !std::mem::replace(s, true)))
    }

    #[test]
    fn every_small_size_is_permuted_completely() {
        for len in 1..=260 {
            assert!(is_permutation(&epoch(&Order::new(5, len), len, 3)), "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_size_seed_and_epoch_give_a_permutation(len in 1u64..6000, seed: u64, e: u64) {
            prop_assert!(is_permutation(&epoch(&Order::new(seed, len), len, e)));
        }

        #[test]
        fn huge_sources_stay_in_range(len in 1u64..u64::MAX, seed: u64, at: u64) {
            prop_assert!(Order::new(seed, len).permute(0, at % len) < len);
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let len = 1000;
        let base = epoch(&Order::new(1, len), len, 0);
        for other in [epoch(&Order::new(1, len), len, 1), epoch(&Order::new(2, len), len, 0), (0..len).collect()] {
            let fixed = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            // The number of agreements of two random permutations is Poisson with mean 1.
            assert!(fixed < 10, "{fixed} of {len} places agree");
        }
    }

    #[test]
    fn every_index_is_equally_likely_at_a_slot() {
        // Chi-square over 12 indices at slot 0, 24,000 epochs: 11 degrees of freedom, 99.99 % quantile 37.4.
        let (len, epochs) = (12u64, 24_000u64);
        let order = Order::new(9, len);
        let mut counts = [0f64; 12];
        (0..epochs).for_each(|e| counts[order.permute(e, 0) as usize] += 1.0);
        let expected = epochs as f64 / len as f64;
        let chi_square: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
        assert!(chi_square < 37.4, "{chi_square}: {counts:?}");
    }

    #[test]
    fn neighbours_in_the_order_are_not_neighbours_in_the_source() {
        let len = 10_000;
        let indices = epoch(&Order::new(3, len), len, 0);
        let adjacent = indices.windows(2).filter(|w| w[0].abs_diff(w[1]) == 1).count();
        // Expected 2 (of 9,999 pairs, each with probability 2 / len).
        assert!(adjacent < 12, "{adjacent}");
    }
}
