//! Activations other than SiLU, on their own: `y = f(x)`, element by element.
//!
//! Every published diffusion model uses SiLU, so that one is fused into the group normalisation
//! ([`super::group_norm`]) and these are not: they cost another pass over the activations, and compute in f64, one
//! element at a time, to be right rather than fast. Formulas (Hendrycks & Gimpel 2016; Misra 2019), with
//! `s = sigmoid(x)` and the normal distribution's `Phi` and `phi`:
//!
//! | f | f(x) | f'(x) |
//! | --- | --- | --- |
//! | ReLU | `max(x, 0)` | `1` where `x > 0`, else `0` |
//! | GELU | `x Phi(x)` | `Phi(x) + x phi(x)` |
//! | Mish | `x t`, `t = tanh(ln(1 + e^x))` | `t + x (1 - t^2) s` |

#[cfg(feature = "cuda")]
mod cuda;

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use candle_core::cpu::erf::erf_f64;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{CHUNK, check};
use crate::buffer::{cpu_slice, cpu_tensor};
use crate::error::{KernelError, Result};

const OP: &str = "activation";

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// See the module.
    Relu,
    /// The exact one, not the approximation by tanh.
    Gelu,
    /// See the module.
    Mish,
}

impl Activation {
    fn value(self, x: f64) -> f64 {
        match self {
            Self::Relu => x.max(0.0),
            Self::Gelu => x * normal_cdf(x),
            Self::Mish => x * tanh_softplus(x),
        }
    }

    fn derivative(self, x: f64) -> f64 {
        match self {
            Self::Relu => f64::from(u8::from(x > 0.0)),
            Self::Gelu => normal_cdf(x) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt(),
            Self::Mish => {
                let t = tanh_softplus(x);
                t + x * (1.0 - t * t) / (1.0 + (-x).exp())
            }
        }
    }
}

fn normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + erf_f64(x * FRAC_1_SQRT_2))
}

/// `tanh(ln(1 + e)) = e (e + 2) / (e (e + 2) + 2)` with `e = e^x`; from 40 on it is 1, and `e^2` would overflow later.
fn tanh_softplus(x: f64) -> f64 {
    let e = x.min(40.0).exp();
    let n = e * (e + 2.0);
    n / (n + 2.0)
}

/// `f(x)`.
///
/// # Errors
/// A tensor that is not contiguous f32, or a device without this operation.
pub fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::forward(f, x),
        Device::Cpu => {
            let mut y = cpu_slice(OP, x)?.to_vec();
            y.par_chunks_mut(CHUNK).for_each(|y| {
                for v in y {
                    *v = f.value(f64::from(*v)) as f32;
                }
            });
            cpu_tensor(y, x.dims())
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The gradient of [`forward`] at `x`.
///
/// # Errors
/// As [`forward`], or shapes that differ.
pub fn backward(f: Activation, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    check::shape(OP, "dy", dy, x.dims())?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::backward(f, x, dy),
        Device::Cpu => {
            let x_data = cpu_slice(OP, x)?;
            let mut dx = cpu_slice(OP, dy)?.to_vec();
            dx.par_chunks_mut(CHUNK).zip(x_data.par_chunks(CHUNK)).for_each(|(dx, x)| {
                for (dx, x) in dx.iter_mut().zip(x) {
                    *dx = (f64::from(*dx) * f.derivative(f64::from(*x))) as f32;
                }
            });
            cpu_tensor(dx, x.dims())
        }
        other => Err(KernelError::Device { op: OP, device: other.location() }),
    }
}

/// The twin in plain candle operations, differentiable by candle's autograd, in any dtype.
pub mod reference {
    use candle_core::{Result, Tensor};

    use super::Activation;

    /// See [`super::forward`].
    ///
    /// # Errors
    /// Candle's own.
    pub fn forward(f: Activation, x: &Tensor) -> Result<Tensor> {
        match f {
            Activation::Relu => x.relu(),
            Activation::Gelu => ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * (x * 0.5)?,
            Activation::Mish => x * (x.exp()? + 1.0)?.log()?.tanh()?,
        }
    }
}
