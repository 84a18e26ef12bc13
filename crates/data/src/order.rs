//! The order of the samples: one seeded permutation per epoch, in O(1) memory.
//!
//! A stored permutation would have to be rebuilt at a resume and costs 8 bytes a sample. Instead an index is
//! *computed*: a Feistel network is a bijection of `0..2^bits` whatever its round function (Luby & Rackoff 1988),
//! and cycle walking (Black & Rogaway 2002, "Ciphers with arbitrary finite domains") restricts it to `0..len`: while
//! the result falls outside, apply the network again. As `2^bits < 2 len`, fewer than two applications are expected.
//! Rounds draw from Philox under [`Purpose::Order`], so any position of any epoch can be computed directly.
//!
//! Over a network neighbours must be read together, so there the order is in [`windows`](Order::in_windows), by the same means:
//! ```text
//! samples    0 1 2 3 4 5 6 7 8 9 ...      cut into runs of neighbours
//! runs       4 5 | 0 1 | 8 9 | 2 3 ...    the runs of an epoch permuted
//! windows    0 4 1 5 | 9 3 8 2 ...        consecutive runs together, their samples permuted
//! ```
//! A window mixes [`RUNS_A_WINDOW`] places of the source, and what it needs is read in a few long pieces. Shards would be too
//! long for this: few of them are in a window, and a source may be one shard.

use ddpm_kernels::philox::{Philox, Purpose};
use serde::{Deserialize, Serialize};

/// Four rounds suffice in theory, for large halves; small sets have halves of few bits, where more rounds are what
/// mixes. Must be even, so that halves of unequal width end where they began.
const ROUNDS: u32 = 8;
/// How many places of the source a window mixes.
const RUNS_A_WINDOW: u64 = 64;
/// Samples of a window where none is asked for: of 64 px they are some 50 MB, of photos some GB. A tenth of a second
/// of 64 requests for the first batch of a window is then spread over a hundred batches.
const USUAL_WINDOW: u64 = 16_384;

/// Which order of an epoch's samples (`data.shuffle_window`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shuffle {
    /// Any sample after any other; in windows of a usual size where the source comes over a network.
    #[default]
    Auto,
    /// Any sample after any other.
    Whole,
    /// In windows of so many samples.
    Windows(u64),
}

impl Shuffle {
    /// What `Auto` is for a source that comes over a network, or does not.
    #[must_use]
    pub fn for_source(self, is_far: bool) -> Self {
        match self {
            Self::Auto if is_far => Self::Windows(USUAL_WINDOW),
            Self::Auto => Self::Whole,
            shuffle => shuffle,
        }
    }
}

/// The seeded order of a source with `len` samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    philox: Philox,
    len: u64,
    /// Samples of a window; `len` where there are none.
    window: u64,
}

impl Order {
    /// The order of `len` samples under `seed`.
    pub(crate) fn new(seed: u64, len: u64, shuffle: Shuffle) -> Self {
        let window = match shuffle {
            Shuffle::Windows(window) => window.clamp(1, len.max(1)),
            _ => len,
        };
        Self { philox: Philox::new(seed, Purpose::Order), len, window }
    }

    /// The index at `slot` of `epoch`'s permutation; `slot` must be below the number of samples.
    pub(crate) fn permute(&self, epoch: u64, slot: u64) -> u64 {
        debug_assert!(slot < self.len.max(1), "slot {slot} of {}", self.len);
        if self.window >= self.len {
            return self.permuted(self.len, Stream { epoch, window: 0 }, slot);
        }
        let number = slot / self.window;
        let start = number * self.window;
        let stream = Stream { epoch, window: (number as u32).wrapping_add(1) };
        self.in_runs(epoch, start + self.permuted(self.window.min(self.len - start), stream, slot - start))
    }

    /// A sample that is needed about a window after `slot` of `epoch`: taken at each slot, they are all samples, run after run.
    /// `None` where there are no windows.
    pub(crate) fn ahead(&self, epoch: u64, slot: u64) -> Option<u64> {
        let later = slot + self.window;
        match later.checked_sub(self.len) {
            _ if self.window >= self.len => None,
            None => Some(self.in_runs(epoch, later)),
            Some(slot) => Some(self.in_runs(epoch + 1, slot)),
        }
    }

    /// The index at `slot` of an epoch whose runs alone are permuted. The samples that make no whole run lie between two of
    /// the others, so that every slot's run follows from its number.
    fn in_runs(&self, epoch: u64, slot: u64) -> u64 {
        let run = (self.window / RUNS_A_WINDOW).max(1);
        let (runs, rest) = (self.len / run, self.len % run);
        let words = self.philox.block([0, ROUNDS, epoch as u32, (epoch >> 32) as u32]);
        let drawn = u64::from(words[0]) | u64::from(words[1]) << 32;
        let before = ((u128::from(drawn) * u128::from(runs + 1)) >> 64) as u64 * run;
        if (before..before + rest).contains(&slot) {
            return runs * run + (slot - before);
        }
        let slot = if slot < before { slot } else { slot - rest };
        self.permuted(runs, Stream { epoch, window: 0 }, slot / run) * run + slot % run
    }

    /// The place of `value` in a permutation of `0..len`.
    fn permuted(&self, len: u64, stream: Stream, value: u64) -> u64 {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut index = value;
        loop {
            index = self.feistel(bits, stream, index);
            if index < len.max(1) {
                return index;
            }
        }
    }

    fn feistel(&self, bits: u32, Stream { epoch, window }: Stream, value: u64) -> u64 {
        let mut low_bits = bits.div_ceil(2);
        let mut high_bits = bits - low_bits;
        let mut low = value & mask(low_bits);
        let mut high = value >> low_bits;
        for round in 0..ROUNDS {
            // After 2^28 windows their permutations come again.
            let words = self.philox.block([low as u32, round | window << 4, epoch as u32, (epoch >> 32) as u32]);
            let mixed = high ^ (u64::from(words[0]) & mask(high_bits));
            (high, low) = (low, mixed);
            (high_bits, low_bits) = (low_bits, high_bits);
        }
        (high << low_bits) | low
    }
}

/// Which permutation: of a window, counted from 1, or of what an epoch's windows are cut out of.
#[derive(Clone, Copy, Debug)]
struct Stream {
    epoch: u64,
    window: u32,
}

/// `bits` ones; `bits` is at most 32.
fn mask(bits: u32) -> u64 {
    (1u64 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(seed: u64, len: u64) -> Order {
        Order::new(seed, len, Shuffle::Whole)
    }

    fn in_windows(seed: u64, len: u64, window: u64) -> Order {
        Order::new(seed, len, Shuffle::Windows(window))
    }

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
            assert!(is_permutation(&epoch(&whole(5, len), len, 3)), "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_size_seed_and_epoch_give_a_permutation(len in 1u64..6000, seed: u64, e: u64) {
            prop_assert!(is_permutation(&epoch(&whole(seed, len), len, e)));
        }

        #[test]
        fn windows_of_any_size_give_a_permutation(len in 1u64..6000, window in 1u64..7000, seed: u64, e: u64) {
            prop_assert!(is_permutation(&epoch(&in_windows(seed, len, window), len, e)));
        }

        #[test]
        fn huge_sources_stay_in_range(len in 1u64..u64::MAX, seed: u64, at: u64) {
            prop_assert!(whole(seed, len).permute(0, at % len) < len);
            prop_assert!(in_windows(seed, len, 16_384).permute(3, at % len) < len);
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let len = 1000;
        let base = epoch(&whole(1, len), len, 0);
        for other in [epoch(&whole(1, len), len, 1), epoch(&whole(2, len), len, 0), (0..len).collect()] {
            let fixed = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            // The number of agreements of two random permutations is Poisson with mean 1.
            assert!(fixed < 10, "{fixed} of {len} places agree");
        }
    }

    #[test]
    fn every_index_is_equally_likely_at_a_slot() {
        // Chi-square over 12 indices at slot 0, 24,000 epochs: 11 degrees of freedom, 99.99 % quantile 37.4.
        let (len, epochs) = (12u64, 24_000u64);
        let order = whole(9, len);
        let mut counts = [0f64; 12];
        (0..epochs).for_each(|e| counts[order.permute(e, 0) as usize] += 1.0);
        let expected = epochs as f64 / len as f64;
        let chi_square: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
        assert!(chi_square < 37.4, "{chi_square}: {counts:?}");
    }

    #[test]
    fn neighbours_in_the_order_are_not_neighbours_in_the_source() {
        let len = 10_000;
        let indices = epoch(&whole(3, len), len, 0);
        let adjacent = indices.windows(2).filter(|w| w[0].abs_diff(w[1]) == 1).count();
        // Expected 2 (of 9,999 pairs, each with probability 2 / len).
        assert!(adjacent < 12, "{adjacent}");
    }

    #[test]
    fn the_order_of_all_samples_is_that_of_earlier_versions() {
        // What version 0.1.0 computes.
        const RECORDED: [u64; 8] = [651, 836, 415, 769, 340, 934, 515, 75];
        let order = |order: Order| (0..8).map(|slot| order.permute(5, slot)).collect::<Vec<_>>();
        assert_eq!(order(whole(7, 1000)), RECORDED);
        assert_eq!(order(in_windows(7, 1000, 1000)), RECORDED, "one window is all of it");
        assert_eq!(order(Order::new(7, 1000, Shuffle::Auto.for_source(false))), RECORDED);
    }

    #[test]
    fn a_window_mixes_many_places_and_each_of_them_is_long() {
        let (len, window) = (100_003u64, 6400u64);
        let order = in_windows(1, len, window);
        let all = epoch(&order, len, 4);
        for slots in all.chunks(window as usize).filter(|slots| slots.len() as u64 == window) {
            let mut sorted = slots.to_vec();
            sorted.sort_unstable();
            let pieces = 1 + sorted.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
            // 64 runs of 100, one more where the window begins inside one, and the rest of the samples. Fewer where two of them
            // happen to be neighbours: of 1,000 runs four are expected to be, 13 with a probability of some 1e-4.
            assert!((51..=66).contains(&pieces), "{pieces} pieces");
            let neighbours = slots.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
            assert!(neighbours < 12, "{neighbours}: about two are expected");
        }
        let (first, later) = (epoch(&order, len, 5), epoch(&in_windows(2, len, window), len, 4));
        for other in [first, later] {
            let same = all.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 12, "{same} of {len} places agree");
        }
    }

    #[test]
    fn what_is_fetched_ahead_is_the_next_window_run_after_run() {
        let (len, window) = (1000, 128);
        let order = in_windows(3, len, window);
        for epoch_number in 0..2 {
            let ahead: Vec<u64> = (0..len).filter_map(|slot| order.ahead(epoch_number, slot)).collect();
            let mut next: Vec<u64> = epoch(&order, len, epoch_number)[window as usize..].to_vec();
            next.extend(&epoch(&order, len, epoch_number + 1)[..window as usize]);
            let sorted = |values: &[u64]| {
                let mut values = values.to_vec();
                values.sort_unstable();
                values
            };
            assert_eq!(sorted(&ahead[..128]), sorted(&next[..128]), "the second window");
            assert_eq!(sorted(&ahead[872..]), sorted(&next[872..]), "the first window of the next epoch");
        }
        assert_eq!(whole(3, len).ahead(0, 5), None);
    }

    #[test]
    fn every_index_is_equally_likely_at_a_slot_of_a_window() {
        // As above, with two windows of six samples, each a run.
        let (len, epochs) = (12u64, 24_000u64);
        for slot in [0, 7] {
            let order = in_windows(9, len, 6);
            let mut counts = [0f64; 12];
            (0..epochs).for_each(|e| counts[order.permute(e, slot) as usize] += 1.0);
            let expected = epochs as f64 / len as f64;
            let chi_square: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
            assert!(chi_square < 37.4, "{chi_square}: {counts:?}");
        }
    }
}
