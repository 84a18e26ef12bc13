//! Differentiable tensor operations for diffusion UNets, channels last, fused and fast.
//!
//! - [`ops`]: convolution, group normalisation with scale-shift and SiLU, attention, linear layers, resampling,
//!   dropout: a `forward` and a `backward` each, over candle tensors.
//! - [`optim`]: the gradient's norm, AdamW and moving averages over flat buffers.
//! - [`buffer`]: those buffers, and slices of tensors.
//! - [`philox`]: random numbers without state.
//! - [`image_size`]: height and width of the images.
//! - [`share`]: which part of a batch one rank of several works on.
//! - [`simd`] and [`gemm`]: what the CPU bodies stand on.
//!
//! - [`cuda`]: what the bodies for NVIDIA GPUs stand on; without the feature `cuda` its names alone, and no GPU.
//!
//! An operation has a body per device, chosen by where its operands live: `ops/<name>/cpu.rs` or its algorithms, and
//! `ops/<name>/cuda.rs`.

pub mod buffer;
pub(crate) mod check;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "without_cuda.rs"]
pub mod cuda;
mod error;
pub mod gemm;
pub mod image_size;
pub mod ops;
pub mod optim;
pub mod philox;
pub mod share;
pub mod simd;

pub(crate) use simd::vectorized;

pub use error::{KernelError, Result};
