//! Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//!
//! Nothing in this project keeps a generator's state. A random number is a pure function of
//! `(seed, purpose, step, position, element)`, so a resumed run, another number of workers or another
//! device draws the same numbers, and a checkpoint needs to store only the step.
//!
//! The seed and the purpose are mixed into the 64-bit key; step, position and element make the 128-bit counter:
//! word 0 is the element's block, words 1 and 2 the low halves of step and position, word 3 their high 16 bits each.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a stream of random numbers is for. Two purposes never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights; position is the parameter's index.
    Init = 1,
    /// The order of the samples in an epoch.
    Order = 2,
    /// Horizontal flips; position is the number of images seen.
    Flip = 3,
    /// Random crops; position is the number of images seen.
    Crop = 4,
    /// The choice of `t`; position is the place in the global batch.
    Timestep = 5,
    /// The noise `q_sample` adds; position is the place in the global batch.
    Noise = 6,
    /// Which labels are dropped for classifier-free guidance.
    LabelDropout = 7,
    /// Dropout masks; position is the place in the global batch.
    Dropout = 8,
    /// Everything a sampler draws; position is the picture's number, step the denoising step.
    Sample = 9,
    /// The noise added to images that a model is judged on; step is t, position the image's number.
    Evaluation = 10,
}

/// A keyed stream; copying it is free, drawing from it changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        // splitmix64's finaliser: neighbouring seeds and purposes get unrelated keys.
        let mut z = seed.wrapping_add((purpose as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self::from_key(z ^ (z >> 31))
    }

    fn from_key(key: u64) -> Self {
        Self { key: [key as u32, (key >> 32) as u32] }
    }

    /// The key as one number, its first word in the low half: what a GPU needs to draw the same numbers.
    #[cfg(feature = "cuda")]
    pub(crate) fn key(&self) -> u64 {
        u64::from(self.key[0]) | (u64::from(self.key[1]) << 32)
    }

    /// The four 32-bit words at `counter`.
    #[inline]
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let mut x = counter;
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let a = u64::from(MULTIPLIER[0]) * u64::from(x[0]);
            let b = u64::from(MULTIPLIER[1]) * u64::from(x[2]);
            x = [(b >> 32) as u32 ^ x[1] ^ key[0], b as u32, (a >> 32) as u32 ^ x[3] ^ key[1], a as u32];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        x
    }

    #[inline]
    fn element_block(&self, step: u64, position: u64, block: u32) -> [u32; 4] {
        let high = ((step >> 32) as u32 & 0xFFFF) | (((position >> 32) as u32 & 0xFFFF) << 16);
        self.block([block, step as u32, position as u32, high])
    }

    /// 64 random bits at `(step, position)`.
    pub fn u64(&self, step: u64, position: u64) -> u64 {
        let w = self.element_block(step, position, 0);
        u64::from(w[0]) | (u64::from(w[1]) << 32)
    }

    /// A uniform number in `[0, 1)` with 53 random bits.
    pub fn uniform(&self, step: u64, position: u64) -> f64 {
        (self.u64(step, position) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniform integer in `0..bound` (0 where `bound` is 0); the bias is below `bound / 2^64`.
    pub fn below(&self, step: u64, position: u64, bound: u64) -> u64 {
        ((u128::from(self.u64(step, position)) * u128::from(bound)) >> 64) as u64
    }

    /// Fills `out` with standard normals; element `i` depends on `(step, position, i)` alone.
    pub fn fill_normal(&self, step: u64, position: u64, out: &mut [f32]) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let w = self.element_block(step, position, block as u32);
            let (a, b) = box_muller(w[0], w[1]);
            let (c, d) = box_muller(w[2], w[3]);
            four.copy_from_slice(&[a, b, c, d][..four.len()]);
        }
    }

    /// Fills `out` with uniform numbers in `(-1, 1)`; element `i` depends on `(step, position, i)` alone.
    pub fn fill_uniform(&self, step: u64, position: u64, out: &mut [f32]) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let w = self.element_block(step, position, block as u32);
            for (o, w) in four.iter_mut().zip(w) {
                *o = (unit_open(w) * 2.0 - 1.0) as f32;
            }
        }
    }

    /// 32 random bits per element of `out`, for dropout masks.
    pub fn fill_bits(&self, step: u64, position: u64, out: &mut [u32]) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let w = self.element_block(step, position, block as u32);
            four.copy_from_slice(&w[..four.len()]);
        }
    }
}

/// Maps 32 bits to the open interval (0, 1), so that its logarithm is finite.
fn unit_open(bits: u32) -> f64 {
    (f64::from(bits) + 0.5) * (1.0 / 4_294_967_296.0)
}

/// Box and Muller 1958, in f64: `libm`'s last digit must not decide what a run learns.
fn box_muller(u: u32, v: u32) -> (f32, f32) {
    let radius = (-2.0 * unit_open(u).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * unit_open(v)).sin_cos();
    ((radius * cos) as f32, (radius * sin) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors distributed with Random123 (philox4x32, 10 rounds).
    #[test]
    fn known_answers_of_random123_are_reproduced() {
        let zeros = Philox::from_key(0).block([0; 4]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox::from_key(u64::MAX).block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Philox::from_key(0x299f_31d0_a409_3822).block([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut x = vec![0f32; 1 << 18];
        Philox::new(7, Purpose::Noise).fill_normal(3, 5, &mut x);
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        let kurtosis = x.iter().map(|&v| f64::from(v).powi(4)).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{variance}");
        assert!((kurtosis - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "{kurtosis}");
    }

    #[test]
    fn a_number_depends_on_its_own_place_alone() {
        let philox = Philox::new(1, Purpose::Noise);
        let (mut long, mut short) = ([0f32; 10], [0f32; 3]);
        philox.fill_normal(4, 9, &mut long);
        philox.fill_normal(4, 9, &mut short);
        assert_eq!(long[..3], short);
    }

    #[test]
    fn seed_purpose_step_and_position_each_change_the_number() {
        let base = Philox::new(1, Purpose::Noise).u64(2, 3);
        assert_ne!(base, Philox::new(2, Purpose::Noise).u64(2, 3));
        assert_ne!(base, Philox::new(1, Purpose::Order).u64(2, 3));
        assert_ne!(base, Philox::new(1, Purpose::Noise).u64(3, 3));
        assert_ne!(base, Philox::new(1, Purpose::Noise).u64(2, 4));
        assert_ne!(base, Philox::new(1, Purpose::Noise).u64(2 + (1 << 32), 3));
        assert_ne!(base, Philox::new(1, Purpose::Noise).u64(2, 3 + (1 << 32)));
    }

    #[test]
    fn below_stays_below_and_reaches_every_value() {
        let philox = Philox::new(11, Purpose::Timestep);
        let mut seen = [0u32; 7];
        for i in 0..7000 {
            seen[philox.below(0, i, 7) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }
}
