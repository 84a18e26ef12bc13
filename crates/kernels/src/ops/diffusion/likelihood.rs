//! The cost of an element in the variational bound, in nats, with its derivatives.
//!
//! - For t > 0, KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)): two Gaussians (Ho et al. 2020, eq. 5).
//! - For t = 0 the decoder p(x_0 | x_1): a Gaussian discretised to the 256 values of an 8-bit image (eq. 13).
//!
//! The normal CDF is the tanh approximation of the reference implementation, so that bits per dimension compare with
//! published ones (it differs from the exact CDF by less than 0.0004).

/// Half a bin: 8-bit values are 2/255 apart on [-1, 1].
const HALF_BIN: f64 = 1.0 / 255.0;
/// Beyond this the outermost bins take the whole tail.
const EDGE: f64 = 0.999;
/// Probabilities are kept above this, so that a hopeless mean costs 27.6 nats and not infinity.
const MIN_PROBABILITY: f64 = 1e-12;

/// A negative log-likelihood (or KL divergence) in nats and its derivatives with respect to the model's mean and log variance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Nats {
    pub(super) value: f64,
    pub(super) d_mean: f64,
    pub(super) d_log_variance: f64,
}

/// `-log p(x)` for a pixel `x` in [-1, 1] under the discretised N(mean, exp(log_variance)).
pub(super) fn negative_log_likelihood(x: f64, mean: f64, log_variance: f64) -> Nats {
    let inverse_deviation = (-0.5 * log_variance).exp();
    let upper = (x <= EDGE).then(|| Cdf::at((x - mean + HALF_BIN) * inverse_deviation));
    let lower = (x >= -EDGE).then(|| Cdf::at((x - mean - HALF_BIN) * inverse_deviation));
    let probability = upper.map_or(1.0, |cdf| cdf.value) - lower.map_or(0.0, |cdf| cdf.value);
    if probability <= MIN_PROBABILITY {
        return Nats { value: -MIN_PROBABILITY.ln(), ..Nats::default() };
    }
    // z = (edge - mean) exp(-log_variance / 2): dz/dmean = -1/deviation, dz/dlog_variance = -z/2.
    let difference = |f: fn(Cdf) -> f64| upper.map_or(0.0, f) - lower.map_or(0.0, f);
    Nats {
        value: -probability.ln(),
        d_mean: difference(|cdf| cdf.density) * inverse_deviation / probability,
        d_log_variance: 0.5 * difference(|cdf| cdf.density * cdf.z) / probability,
    }
}

/// KL(N(mean - mean_error, q) || N(mean, p)) of log variances q and p.
pub(super) fn normal_kl(mean_error: f64, q: f64, p: f64) -> Nats {
    let precision = (-p).exp();
    let ratio = q.exp() * precision;
    let squared = mean_error * mean_error * precision;
    Nats {
        value: 0.5 * (p - q - 1.0 + ratio + squared),
        d_mean: mean_error * precision,
        d_log_variance: 0.5 * (1.0 - ratio - squared),
    }
}

/// The approximate standard normal CDF at a bin's edge, with its derivative.
#[derive(Clone, Copy)]
struct Cdf {
    z: f64,
    value: f64,
    density: f64,
}

impl Cdf {
    /// 0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))).
    fn at(z: f64) -> Self {
        const CUBIC: f64 = 0.044715;
        let scale = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
        let tanh = (scale * (z + CUBIC * z.powi(3))).tanh();
        let density = 0.5 * (1.0 - tanh * tanh) * scale * (1.0 + 3.0 * CUBIC * z * z);
        Self { z, value: 0.5 * (1.0 + tanh), density }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values of the reference implementation (OpenAI's improved-diffusion), log scale -4.6.
    #[test]
    fn the_decoder_agrees_with_the_reference_implementation() {
        let x = [-1.0, -0.5, 0.0, -0.0039216, 0.7, 1.0];
        let mean = [-0.9, -0.5, 0.01, 0.0, 0.5, 0.98];
        let want = [-27.63102, -1.19228, -1.66313, -1.26484, -27.63102, -2.90107];
        for i in 0..x.len() {
            let got = -negative_log_likelihood(x[i], mean[i], -9.2).value;
            assert!((got - want[i]).abs() < 2e-5, "pixel {i}: {got}, want {}", want[i]);
        }
    }

    #[test]
    fn the_bins_of_all_256_values_share_the_whole_probability() {
        for (mean, log_variance) in [(0.0, -9.2), (0.3, -4.0), (-0.99, -6.0), (1.2, -2.0)] {
            let total: f64 = (0..256)
                .map(|i| (-negative_log_likelihood(f64::from(i) / 127.5 - 1.0, mean, log_variance).value).exp())
                .sum();
            assert!((total - 1.0).abs() < 1e-8, "mean {mean}, log variance {log_variance}: {total}");
        }
    }

    #[test]
    fn the_derivatives_are_those_of_finite_differences() {
        for x in [-1.0, -0.5, 0.003, 1.0] {
            for (mean, log_variance) in [(x + 0.01, -9.0), (x - 0.02, -8.0), (x, -7.0), (0.0, -1.0)] {
                let value = |mean, log_variance| negative_log_likelihood(x, mean, log_variance).value;
                let h = 1e-6;
                let by_mean = (value(mean + h, log_variance) - value(mean - h, log_variance)) / (2.0 * h);
                let by_log_variance = (value(mean, log_variance + h) - value(mean, log_variance - h)) / (2.0 * h);
                let got = negative_log_likelihood(x, mean, log_variance);
                assert!((got.d_mean - by_mean).abs() < 1e-5 * (1.0 + by_mean.abs()), "{x}: {got:?}, {by_mean}");
                assert!((got.d_log_variance - by_log_variance).abs() < 1e-5, "{x}: {got:?}, {by_log_variance}");
            }
        }
    }

    #[test]
    fn a_hopeless_mean_has_a_bounded_loss_and_no_gradient() {
        let got = negative_log_likelihood(0.7, 0.0, -9.2);
        assert_eq!((got.d_mean, got.d_log_variance), (0.0, 0.0));
        assert!((got.value - 27.631021).abs() < 1e-6);
    }
}
