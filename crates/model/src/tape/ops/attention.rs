//! Self-attention.

use ddpm_kernels::KernelError;
use ddpm_kernels::ops::attention;

use super::super::operands::{Maker, Runs};
use super::super::operation::{BackwardPass, Facts, Gradient, Kept, Work, channels, count, with_channels};
use super::super::{Tape, Var};
use crate::error::Result;

impl Tape<'_> {
    /// Self-attention over `qkv` `[N, L, 3C]`; the result is `[N, L, C]`.
    pub(crate) fn attention(&mut self, qkv: &Var, heads: usize) -> Result<Var> {
        if let Some(y) = self.sketch(qkv, None, Attention { heads })? {
            return Ok(y);
        }
        let (y, probabilities) = attention::forward(&qkv.value, heads)?;
        let (id, qkv) = (self.take(qkv).id, qkv.value.clone());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, attention::backward(&qkv, heads, &probabilities, dy)?)))
    }
}

/// Channels of a head up to which probabilities in 16 bits are made again instead of being kept, in steps of so many.
const FLASH_CHANNELS: usize = 128;
const FLASH_STEP: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Attention {
    heads: usize,
}

impl Attention {
    fn is_flash(self, x: &[usize], size: usize) -> bool {
        let head_channels = channels(x) / 3 / self.heads;
        size < size_of::<f32>() && head_channels.is_multiple_of(FLASH_STEP) && head_channels <= FLASH_CHANNELS
    }
}

/// The sequence's length, L.
fn tokens(x: &[usize]) -> usize {
    x.get(1).copied().unwrap_or(0)
}

impl Facts for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn details(&self) -> String {
        format!(", heads {}", self.heads)
    }

    fn y(&self, x: &[usize]) -> Vec<usize> {
        with_channels(x, channels(x) / 3)
    }

    /// Two products: queries by keys, and probabilities by values.
    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        let bytes = (count(x) + count(&self.y(x))) * size as u64;
        Work { bytes, flop: 2 * 2 * count(x) / 3 * tokens(x) as u64 }
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        let Work { flop, .. } = self.forward_work(x, size);
        Work { bytes: (2 * count(x) + count(&self.y(x))) * size as u64, flop: 2 * flop }
    }

    fn kept(&self) -> Kept {
        Kept { x: true, y: true, ..Kept::default() }
    }

    /// The probabilities, or what they are recomputed from.
    fn made_beside(&self, x: &[usize], size: usize) -> u64 {
        let rows = self.heads * tokens(x);
        (if self.is_flash(x, size) { rows * size_of::<f32>() } else { rows * tokens(x) * size }) as u64
    }

    /// As much as lies beside the result is needed once more, for the gradient of the probabilities.
    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        BackwardPass { beside: true, ..BackwardPass::gives(Gradient::New(x.to_vec()), Gradient::None) }
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let (heads, dy, x) = (self.heads, make.numbers(&self.y(x))?, make.numbers(x)?);
        let (_, kept) = attention::forward(&x, heads)?;
        let x2 = x.clone();
        Runs::both(
            move || attention::forward(&x, heads).map(drop),
            move || attention::backward(&x2, heads, &kept, &dy).map(drop),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::operation::Operation;
    use super::*;

    #[test]
    fn attention_has_two_products_forward_and_four_backward() {
        let attention = Operation::new(&[2, 16, 3 * 8], Attention { heads: 2 });
        let flop = 2 * 2 * 2 * 16 * 16 * 8;
        assert_eq!(attention.forward_work(4), Work { bytes: 4 * (2 * 16 * 32), flop });
        assert_eq!(attention.backward_work(4).flop, 2 * flop);
    }
}
