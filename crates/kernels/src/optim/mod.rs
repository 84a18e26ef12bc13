//! The optimizer's arithmetic over flat buffers: the gradient's norm, and AdamW with any number of moving averages
//! in one pass (Loshchilov & Hutter 2019, algorithm 2).
//!
//! The pass is bound by memory: it reads parameter, gradient and both moments once and writes three of them, plus a read and a
//! write per average. A pass per quantity would triple that.
//!
//! Training uses [`JudgedStep`], which decides on the device whether a step is made, so that a GPU's step can be queued as a
//! whole.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod judged;

use candle_core::Device;

use crate::buffer::FlatBuffer;
use crate::error::{KernelError, Result};

pub use self::judged::{JudgedStep, MAX_AVERAGES, StepBuffers, StepSettings, StepState};

/// What errors of a step are about.
const OP: &str = "optimizer step";

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// This step's number, from 1.
    pub step: u64,
    /// Factor on the gradient: clipping.
    pub gradient_scale: f64,
}

/// The buffers one step reads and writes, all of the same length.
#[derive(Debug)]
pub struct AdamWBuffers<'a> {
    /// The parameters.
    pub parameters: &'a FlatBuffer,
    /// Their gradients.
    pub gradients: &'a FlatBuffer,
    /// First moment.
    pub exp_avg: &'a FlatBuffer,
    /// Second moment.
    pub exp_avg_sq: &'a FlatBuffer,
    /// Moving averages of the parameters, each with the decay of this step.
    pub averages: &'a [(FlatBuffer, f64)],
}

/// The factors of a step in f32, as the inner loop wants them.
#[derive(Clone, Copy, Debug)]
struct Factors {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    gradient_scale: f32,
    keep: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
}

impl Factors {
    fn new(adamw: &AdamW) -> Self {
        let t = adamw.step as f64;
        let correction1 = 1.0 - adamw.beta1.powf(t);
        let correction2 = 1.0 - adamw.beta2.powf(t);
        Self {
            beta1: adamw.beta1 as f32,
            rest1: (1.0 - adamw.beta1) as f32,
            beta2: adamw.beta2 as f32,
            rest2: (1.0 - adamw.beta2) as f32,
            gradient_scale: adamw.gradient_scale as f32,
            keep: (1.0 - adamw.lr * adamw.weight_decay) as f32,
            step_size: (adamw.lr / correction1) as f32,
            root_correction: (1.0 / correction2.sqrt()) as f32,
            eps: adamw.eps as f32,
        }
    }
}

/// The factor that makes a gradient of this norm no longer than `limit`; 0: no limit.
pub fn clipping(limit: f64, norm: f64) -> f64 {
    if limit > 0.0 && norm > limit { limit / norm } else { 1.0 }
}

/// One step: `m`, `v`, the parameters and the averages are updated in place.
///
/// # Errors
/// The device does not have this operation.
pub fn adamw_step(adamw: &AdamW, buffers: &AdamWBuffers<'_>) -> Result<()> {
    let factors = Factors::new(adamw);
    match buffers.parameters.device() {
        Device::Cpu => cpu::adamw_step(factors, buffers),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::adamw_step(factors, buffers),
        other => Err(KernelError::Device { op: "adamw_step", device: other.location() }),
    }
}

/// The Euclidean norm of all elements; NaN or infinity if any of them is. On a GPU this waits for it.
///
/// # Errors
/// The device does not have this operation.
pub fn norm(buffer: &FlatBuffer) -> Result<f64> {
    match buffer.device() {
        Device::Cpu => cpu::norm(buffer),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::norm(buffer),
        other => Err(KernelError::Device { op: "norm", device: other.location() }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn buffer(data: &[f32]) -> FlatBuffer {
        FlatBuffer::from_vec(data.to_vec(), &Device::Cpu).unwrap()
    }

    /// Algorithm 2 of Loshchilov & Hutter in f64, one number at a time.
    fn scalar(p: f64, gradients: &[f64], lr: f64, decay: f64) -> f64 {
        let (b1, b2, eps) = (0.9, 0.99, 1e-8);
        let (mut p, mut m, mut v) = (p, 0.0, 0.0);
        for (t, g) in gradients.iter().enumerate() {
            let t = t as i32 + 1;
            m = b1 * m + (1.0 - b1) * g;
            v = b2 * v + (1.0 - b2) * g * g;
            let (m_hat, v_hat) = (m / (1.0 - f64::powi(b1, t)), v / (1.0 - f64::powi(b2, t)));
            p -= lr * (m_hat / (v_hat.sqrt() + eps) + decay * p);
        }
        p
    }

    #[test]
    fn five_steps_agree_with_the_published_algorithm() {
        let start: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient = |t: u64, i: usize| ((i as f32 + t as f32 * 3.0) * 0.11).cos();
        let (p, m, v) = (buffer(&start), buffer(&vec![0.0; start.len()]), buffer(&vec![0.0; start.len()]));
        let averages = [(buffer(&start), 0.75)];
        let mut adamw =
            AdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 0, gradient_scale: 0.5 };
        let mut average = start.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        for t in 1..=5 {
            adamw.step = t;
            let g: Vec<f32> = (0..start.len()).map(|i| gradient(t, i)).collect();
            let gradients = buffer(&g);
            let buffers = AdamWBuffers {
                parameters: &p,
                gradients: &gradients,
                exp_avg: &m,
                exp_avg_sq: &v,
                averages: &averages,
            };
            adamw_step(&adamw, &buffers).unwrap();
            for (a, p) in average.iter_mut().zip(p.to_vec().unwrap()) {
                *a += 0.25 * (f64::from(p) - *a);
            }
        }
        let (got, ema) = (p.to_vec().unwrap(), averages[0].0.to_vec().unwrap());
        for i in (0..start.len()).step_by(997) {
            let gradients: Vec<f64> = (1..=5).map(|t| f64::from(gradient(t, i)) * 0.5).collect();
            let want = scalar(f64::from(start[i]), &gradients, 0.01, 0.1);
            assert!((f64::from(got[i]) - want).abs() < 2e-6, "{i}: {} {want}", got[i]);
            assert!((f64::from(ema[i]) - average[i]).abs() < 2e-6);
        }
    }

    #[test]
    fn the_norm_sees_a_number_that_is_not_finite() {
        let mut x = vec![3.0f32; 50_000];
        x[49_999] = 4.0;
        let want = (9.0 * 49_999.0 + 16.0f64).sqrt();
        assert!((norm(&buffer(&x)).unwrap() - want).abs() < 1e-9);
        x[20_001] = f32::NAN;
        assert!(norm(&buffer(&x)).unwrap().is_nan());
    }
}
