//! Scaled dot-product self-attention (Vaswani et al. 2017, equation 1), one task per image and head.
//!
//! `qkv` `[N, L, 3C]` holds queries, keys and values side by side, as one linear layer writes them; `C` is split into
//! `heads` heads. `o = softmax(q k^T / sqrt(d)) v` with `d = C / heads`, result `[N, L, C]`.
//!
//! On the CPU the probabilities `[N, heads, L, L]` are kept for the backward pass: at the sizes a pixel UNet attends at (64
//! to 1024 tokens) they are smaller than what making them again would cost in time. A GPU makes them again where its tensor
//! cores do that faster than its memory delivers them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod reference;

use candle_core::{Device, Tensor};

use crate::buffer::{cpu_slice, cpu_tensor};
use crate::check;
use crate::error::{KernelError, Result};

const OP: &str = "attention";

/// What [`forward`] keeps for [`backward`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Kept {
    /// The probabilities `[N, heads, L, L]`.
    Probabilities(Tensor),
    /// What they can be made from again.
    #[cfg(feature = "cuda")]
    LogSums {
        /// The result `[N, L, C]`.
        out: Tensor,
        /// The logarithm to the base 2 of the sum of every row's exponentials, f32 `[N, heads, L]`.
        log_sums: Tensor,
    },
}

impl Kept {
    /// Refuses what a forward pass of another shape kept.
    fn check(&self, s: Shape) -> Result<()> {
        match self {
            Self::Probabilities(p) => check::shape(OP, "probabilities", p, &[s.n, s.heads, s.tokens, s.tokens]),
            #[cfg(feature = "cuda")]
            Self::LogSums { out, log_sums } => {
                check::shape(OP, "out", out, &[s.n, s.tokens, s.channels])?;
                check::shape(OP, "log_sums", log_sums, &[s.n, s.heads, s.tokens])
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    tokens: usize,
    channels: usize,
    heads: usize,
}

impl Shape {
    fn new(qkv: &Tensor, heads: usize) -> Result<Self> {
        let [n, tokens, triple] = check::dims(OP, "qkv", qkv)?;
        if heads == 0 || triple % (3 * heads) != 0 {
            let expected = vec![n, tokens, triple.next_multiple_of(3 * heads.max(1))];
            return Err(KernelError::Shape { op: OP, tensor: "qkv", found: qkv.dims().to_vec(), expected });
        }
        Ok(Self { n, tokens, channels: triple / 3, heads })
    }

    fn head_dim(&self) -> usize {
        self.channels / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }
}

/// Attends: `qkv` `[N, L, 3C]` to `[N, L, C]`; see the module.
///
/// # Errors
/// Shapes that do not fit, tensors that are not contiguous (and f32 on the CPU), or a device without this operation.
pub fn forward(qkv: &Tensor, heads: usize) -> Result<(Tensor, Kept)> {
    let s = Shape::new(qkv, heads)?;
    match qkv.device() {
        Device::Cpu => {
            let (out, probabilities) = cpu::forward(s, &cpu_slice(OP, qkv)?);
            let probabilities = cpu_tensor(probabilities, (s.n, s.heads, s.tokens, s.tokens))?;
            Ok((cpu_tensor(out, (s.n, s.tokens, s.channels))?, Kept::Probabilities(probabilities)))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::forward(s, qkv),
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The gradient of [`forward`] with respect to `qkv`, given `d_out` `[N, L, C]`.
///
/// # Errors
/// As [`forward`].
pub fn backward(qkv: &Tensor, heads: usize, kept: &Kept, d_out: &Tensor) -> Result<Tensor> {
    let s = Shape::new(qkv, heads)?;
    check::shape(OP, "d_out", d_out, &[s.n, s.tokens, s.channels])?;
    kept.check(s)?;
    match (qkv.device(), kept) {
        (Device::Cpu, Kept::Probabilities(probabilities)) => {
            let dqkv = cpu::backward(s, &cpu_slice(OP, qkv)?, &cpu_slice(OP, probabilities)?, &cpu_slice(OP, d_out)?);
            cpu_tensor(dqkv, qkv.dims())
        }
        #[cfg(feature = "cuda")]
        (Device::Cuda(_), kept) => cuda::backward(s, qkv, kept, d_out),
        (other, _) => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}
