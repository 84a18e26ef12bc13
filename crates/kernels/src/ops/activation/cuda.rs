//! The bodies for a GPU, in f32: one launch each.

use candle_core::Tensor;

use super::Activation;
use crate::error::Result;
use crate::ops::elementwise;

/// The device code's number of `f`.
fn number(f: Activation) -> u32 {
    match f {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::Mish => 2,
    }
}

pub(super) fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
    elementwise::cuda::map("activation", &[x], Some(number(f).into()))
}

pub(super) fn backward(f: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    elementwise::cuda::map("activation_backward", &[x, dy], Some(number(f).into()))
}
