//! The twin: the same formulas in plain candle operations, on given images and noise, in any dtype.

use candle_core::{D, DType, Result, Tensor};

use super::{SampleConstants, SamplerConstants};

/// Half a bin of 8 bits, where the outermost ones begin, and the least probability: see `likelihood`.
const HALF_BIN: f64 = 1.0 / 255.0;
const EDGE: f64 = 0.999;
const MIN_PROBABILITY: f64 = 1e-12;

/// A constant of each sample, to multiply `like` `[N, ...]`.
fn column(samples: &[SampleConstants], like: &Tensor, of: fn(&SampleConstants) -> f64) -> Result<Tensor> {
    let values: Vec<f64> = samples.iter().map(of).collect();
    let mut shape = vec![1; like.rank()];
    shape[0] = values.len();
    Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
}

/// `a(s) x + b(s) y`, sample by sample.
fn combined(
    samples: &[SampleConstants],
    (a, x): (fn(&SampleConstants) -> f64, &Tensor),
    (b, y): (fn(&SampleConstants) -> f64, &Tensor),
) -> Result<Tensor> {
    x.broadcast_mul(&column(samples, x, a)?)? + y.broadcast_mul(&column(samples, y, b)?)?
}

/// `x_t` of `x_start` and `noise`, `[N, H, W, C]`.
pub fn q_sample(samples: &[SampleConstants], x_start: &Tensor, noise: &Tensor) -> Result<Tensor> {
    combined(samples, (|s| s.signal, x_start), (|s| s.noise, noise))
}

/// The mean of each sample, `[N]`.
fn mean_flat(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(1)?.mean(D::Minus1)
}

/// The loss, the mean squared error and the bits of each sample, each `[N]`. Where only the variance learns from the bound, the
/// bound has no gradient with respect to the prediction.
pub fn losses(
    samples: &[SampleConstants],
    x_start: &Tensor,
    noise: &Tensor,
    model_output: &Tensor,
) -> Result<[Tensor; 3]> {
    let channels = x_start.dim(D::Minus1)?;
    let prediction = model_output.narrow(D::Minus1, 0, channels)?;
    let target = combined(samples, (|s| s.target_x_start, x_start), (|s| s.target_noise, noise))?;
    let mse = mean_flat(&(&prediction - target)?.sqr()?)?;
    let learning = column(samples, x_start, |s| f64::from(u8::from(s.bound == 1.0)))?;
    let still = column(samples, x_start, |s| f64::from(u8::from(s.bound == 2.0)))?;
    let prediction = (prediction.broadcast_mul(&learning)? + prediction.detach().broadcast_mul(&still)?)?;
    let x_t = q_sample(samples, x_start, noise)?;
    let x_0 = predicted_x_start(samples, &x_t, &prediction)?;
    let counts = column(samples, &mse, |s| f64::from(u8::from(s.bound != 0.0)))?;
    let bits = (bits(samples, x_start, &x_t, &x_0, model_output)? * counts)?;
    let loss = combined(samples, (|s| s.mse_weight, &mse), (|s| s.bound_weight, &bits))?;
    Ok([loss, mse, bits])
}

/// The results of [`bound`](super::bound) for each image: the term in bits per dimension, and the squared error of x_0; each
/// `[N]`.
pub fn bound(
    samples: &[SampleConstants],
    x_start: &Tensor,
    noise: &Tensor,
    model_output: &Tensor,
) -> Result<[Tensor; 2]> {
    let x_t = q_sample(samples, x_start, noise)?;
    let prediction = model_output.narrow(D::Minus1, 0, x_start.dim(D::Minus1)?)?;
    let x_0 = predicted_x_start(samples, &x_t, &prediction)?.clamp(-1.0, 1.0)?;
    let bits = bits(samples, x_start, &x_t, &x_0, model_output)?;
    Ok([bits, mean_flat(&(x_0 - x_start)?.sqr()?)?])
}

fn predicted_x_start(samples: &[SampleConstants], x_t: &Tensor, prediction: &Tensor) -> Result<Tensor> {
    combined(samples, (|s| s.x_start_x_t, x_t), (|s| s.x_start_prediction, prediction))
}

/// The bound's term of each sample for a predicted `x_0`.
fn bits(
    samples: &[SampleConstants],
    x_start: &Tensor,
    x_t: &Tensor,
    x_0: &Tensor,
    model_output: &Tensor,
) -> Result<Tensor> {
    let channels = x_start.dim(D::Minus1)?;
    let fraction = if model_output.dim(D::Minus1)? == channels {
        x_start.zeros_like()?
    } else {
        model_output.narrow(D::Minus1, channels, channels)?.affine(0.5, 0.5)?
    };
    let lower = column(samples, x_start, |s| s.log_variance_lower)?;
    let log_variance =
        fraction.broadcast_mul(&column(samples, x_start, |s| s.log_variance_width)?)?.broadcast_add(&lower)?;
    let mean = combined(samples, (|s| s.mean_coef1, x_0), (|s| s.mean_coef2, x_t))?;
    let decoder = decoder_nats(x_start, &mean, &log_variance)?;
    let error = (x_0 - x_start)?.broadcast_mul(&column(samples, x_start, |s| s.mean_coef1)?)?;
    let divergence = normal_kl(&error, &column(samples, x_start, |s| s.posterior_log_variance)?, &log_variance)?;
    let is_decoder = column(samples, x_start, |s| s.decoder)?.broadcast_as(x_start.shape())?.to_dtype(DType::U8)?;
    mean_flat(&is_decoder.where_cond(&decoder, &divergence)?)? / std::f64::consts::LN_2
}

/// KL(N(mean - mean_error, q) || N(mean, p)) of log variances.
fn normal_kl(mean_error: &Tensor, q: &Tensor, p: &Tensor) -> Result<Tensor> {
    let precision = p.neg()?.exp()?;
    let ratio = precision.broadcast_mul(&q.exp()?)?;
    let squared = (mean_error.sqr()? * precision)?;
    ((p.broadcast_sub(q)? + ratio)? + squared)?.affine(0.5, -0.5)
}

/// -log of the probability of an 8-bit value.
fn decoder_nats(x: &Tensor, mean: &Tensor, log_variance: &Tensor) -> Result<Tensor> {
    let inverse_deviation = (log_variance * -0.5)?.exp()?;
    let cdf_at = |shift: f64| ((((x - mean)? + shift)? * &inverse_deviation)?).normal_cdf();
    let (upper, lower) = (cdf_at(HALF_BIN)?, cdf_at(-HALF_BIN)?);
    let upper = x.gt(EDGE)?.where_cond(&upper.ones_like()?, &upper)?;
    let lower = x.lt(-EDGE)?.where_cond(&lower.zeros_like()?, &lower)?;
    (upper - lower)?.maximum(MIN_PROBABILITY)?.log()?.neg()
}

trait NormalCdf {
    fn normal_cdf(&self) -> Result<Tensor>;
}

impl NormalCdf for Tensor {
    /// 0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))).
    fn normal_cdf(&self) -> Result<Tensor> {
        let cubic = (self.sqr()? * self)?;
        let inner = ((self + (cubic * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
        inner.tanh()?.affine(0.5, 0.5)
    }
}

/// A sampler's step: the next x_t, and the predicted x_0. `previous` is that of the step before, `noise` is z.
pub fn sampler_step(
    step: &SamplerConstants,
    x_t: &Tensor,
    previous: &Tensor,
    (model_output, unguided): (&Tensor, Option<&Tensor>),
    noise: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let channels = x_t.dim(D::Minus1)?;
    let first = |output: &Tensor| output.narrow(D::Minus1, 0, channels);
    let prediction = match unguided {
        Some(unguided) => ((first(model_output)? * (1.0 + step.guidance))? - (first(unguided)? * step.guidance)?)?,
        None => first(model_output)?,
    };
    let x_0 = ((x_t * step.x_start_x_t)? + (&prediction * step.x_start_prediction)?)?;
    let x_0 = if step.clip == 0.0 { x_0 } else { x_0.clamp(-1.0, 1.0)? };
    let mut mean = ((&x_0 * step.mean_x_start)? + (x_t * step.mean_x_t)?)?;
    // A factor of zero skips its operand, which may not exist yet.
    for (factor, value) in [(step.mean_prediction, &prediction), (step.mean_previous, previous)] {
        mean = if factor == 0.0 { mean } else { (mean + (value * factor)?)? };
    }
    if step.noise == 0.0 {
        return Ok((mean, x_0));
    }
    let fraction = if model_output.dim(D::Minus1)? == channels {
        x_t.zeros_like()?
    } else {
        model_output.narrow(D::Minus1, channels, channels)?.affine(0.5, 0.5)?
    };
    let deviation = fraction.affine(0.5 * step.log_variance_width, 0.5 * step.log_variance_lower)?.exp()?;
    Ok(((mean + (deviation * noise)?)?, x_0))
}
