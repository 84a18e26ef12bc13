//! What can be fused with a group normalisation on a GPU: types that [`fused`](super::fused) and the GPU's body share.

use std::ops::Range;

use candle_core::Tensor;

use crate::gemm::Write;
use crate::ops::dropout::Dropout;

/// What is done before and after the normalisation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused<'a> {
    /// `[N, C]`, added to every pixel before; its rows may lie apart.
    pub offset: Option<&'a Tensor>,
    /// What is dropped after it.
    pub dropout: Option<Mask<'a>>,
}

/// Which elements [`dropout`](crate::ops::dropout) drops: those of `apply_at` where there is a `step`, else of `apply`.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The mask.
    pub dropout: Dropout,
    /// Where the GPU keeps the step.
    pub step: Option<&'a Tensor>,
}

/// What the backward pass computes besides.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `x` was joined of two, the first of so many channels: their gradients are two tensors.
    pub joined: Option<usize>,
    /// Gradients of biases.
    pub sums: Vec<ChannelSums>,
    /// Where the gradient of modulation or offset is to be written, if not to a tensor of its own: rows of it may lie apart.
    pub time: Option<Tensor>,
}

/// `sum over n, p of dx[n, p, c]`, of as many channels as there are places: the gradient of a bias.
#[derive(Clone, Debug)]
pub struct ChannelSums {
    /// Where in the flat gradient buffer.
    pub at: Range<usize>,
    /// Overwrite or add.
    pub write: Write,
}

/// The gradients with respect to the inputs.
#[derive(Debug)]
pub struct FusedGrads {
    /// Of `x`, or of its first channels.
    pub dx: Tensor,
    /// Of the others, if `x` was joined.
    pub rest: Option<Tensor>,
    /// `[N, 2C]`, where there was a modulation.
    pub modulation: Option<Tensor>,
    /// `[N, C]`, where there was an offset.
    pub offset: Option<Tensor>,
}
