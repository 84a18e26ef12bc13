//! Dropout (Srivastava et al. 2014), scaled while training: `y = x keep / (1 - p)`.
//!
//! The mask is a function of (seed, layer, step, position of the sample in the global batch, element), so micro-batches and
//! resumes draw the same one, and backward makes it again instead of keeping it.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::buffer::{cpu_slice, cpu_tensor};
use crate::check;
use crate::error::{KernelError, Result};
use crate::philox::{Philox, Purpose};

const OP: &str = "dropout";

/// Which mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share of elements dropped, in `[0, 1)`.
    pub probability: f64,
    /// The run's seed.
    pub seed: u64,
    /// The layer's number: every layer has a mask of its own.
    pub layer: u32,
    /// The optimizer step.
    pub step: u64,
    /// Position of the first sample in the global batch.
    pub first_position: u64,
}

/// Drops elements of `x` `[N, ...]`. Its own gradient: apply it to `dy` with the same `dropout`.
///
/// # Errors
/// A tensor that is not contiguous f32, or a device without this operation.
pub fn apply(dropout: &Dropout, x: &Tensor) -> Result<Tensor> {
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::apply(dropout, None, x),
        Device::Cpu => {
            let mut y = cpu_slice(OP, x)?.to_vec();
            let sample = y.len() / x.dim(0)?.max(1);
            y.par_chunks_mut(sample.max(1)).enumerate().for_each(|(n, y)| mask(dropout, n as u64, y));
            cpu_tensor(y, x.dims())
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// As [`apply`], at the step that `step` `[2]` (u32: the low half, the high one) holds when the operation runs, instead of
/// `dropout.step`: where a captured graph is replayed, another one each time.
///
/// # Errors
/// As [`apply`], or a `step` of another kind.
pub fn apply_at(dropout: &Dropout, step: &Tensor, x: &Tensor) -> Result<Tensor> {
    check::shape(OP, "step", step, &[2])?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::apply(dropout, Some(step), x);
    }
    let halves = step.to_vec1::<u32>()?;
    let step = halves.iter().rev().fold(0, |all, &half| (all << 32) | u64::from(half));
    apply(&Dropout { step, ..*dropout }, x)
}

impl Dropout {
    pub(super) fn philox(&self) -> Philox {
        // A layer is a stream of its own: its number is mixed into the seed by a large odd factor.
        let seed = self.seed ^ u64::from(self.layer).wrapping_mul(0xA076_1D64_78BD_642F);
        Philox::new(seed, Purpose::Dropout)
    }

    /// An element whose 32 bits are below this is dropped.
    pub(super) fn threshold(&self) -> u32 {
        (self.probability * 4_294_967_296.0) as u32
    }

    /// What the others are multiplied by.
    pub(super) fn keep(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }
}

fn mask(dropout: &Dropout, sample: u64, y: &mut [f32]) {
    let (philox, threshold, keep) = (dropout.philox(), dropout.threshold(), dropout.keep());
    let mut bits = vec![0; y.len()];
    philox.fill_bits(dropout.step, dropout.first_position + sample, &mut bits);
    for (y, bits) in y.iter_mut().zip(bits) {
        *y = if bits < threshold { 0.0 } else { *y * keep };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::DType;

    const DROPOUT: Dropout = Dropout { probability: 0.25, seed: 3, layer: 1, step: 9, first_position: 0 };

    fn dropped(dropout: &Dropout, n: usize) -> Vec<f32> {
        let x = Tensor::ones((n, 10_000), DType::F32, &Device::Cpu).unwrap();
        apply(dropout, &x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_share_dropped_is_the_probability_and_the_mean_stays() {
        let y = dropped(&DROPOUT, 4);
        let zeros = y.iter().filter(|&&v| v == 0.0).count() as f64 / y.len() as f64;
        let mean = y.iter().map(|&v| f64::from(v)).sum::<f64>() / y.len() as f64;
        assert!((zeros - 0.25).abs() < 0.01, "{zeros}");
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }

    #[test]
    fn a_micro_batch_draws_its_part_of_the_whole_batchs_mask() {
        let whole = dropped(&DROPOUT, 4);
        let second = dropped(&Dropout { first_position: 2, ..DROPOUT }, 2);
        assert_eq!(whole[20_000..], second);
    }

    #[test]
    fn layers_and_steps_have_masks_of_their_own() {
        let base = dropped(&DROPOUT, 1);
        assert_ne!(base, dropped(&Dropout { layer: 2, ..DROPOUT }, 1));
        assert_ne!(base, dropped(&Dropout { step: 10, ..DROPOUT }, 1));
    }
}
