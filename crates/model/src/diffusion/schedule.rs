//! The noise schedule: every table that depends on t alone, in f64, in the order of the derivation.
//!
//! Values are cast to the tensors' type once, where they are used. Equation numbers are those of Ho et al. 2020
//! (arXiv 2006.11239) unless another paper is named.

use serde::Serialize;

use super::{BetaSchedule, DiffusionConfig, DiffusionError, Timestep};

/// Betas above this would almost erase the image in one step (Nichol & Dhariwal 2021, after eq. 17).
const MAX_COSINE_BETA: f64 = 0.999;

/// The natural logarithm of a variance; the type prevents confusion with a variance or a standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct LogVariance(pub f64);

impl LogVariance {
    /// The logarithm of a variance.
    pub fn of(variance: f64) -> Self {
        Self(variance.ln())
    }

    /// The variance.
    pub fn variance(self) -> f64 {
        self.0.exp()
    }
}

/// The tables over `0..T`; all of one length and finite.
#[derive(Clone, Debug, Serialize)]
pub struct Schedule {
    // q(x_t | x_{t-1}), eq. 2
    betas: Vec<f64>,
    // q(x_t | x_0), eq. 4
    alphas_cumprod: Vec<f64>,
    alphas_cumprod_prev: Vec<f64>,
    snr: Vec<f64>,
    // q(x_{t-1} | x_t, x_0), eqs. 6 and 7
    posterior_variance: Vec<f64>,
    posterior_log_variance_clipped: Vec<LogVariance>,
    posterior_mean_coef1: Vec<f64>,
    posterior_mean_coef2: Vec<f64>,
    // p(x_{t-1} | x_t) with the upper bound of its variance, section 3.2
    fixed_large_log_variance: Vec<LogVariance>,
}

impl Schedule {
    /// The tables of `config`, which is validated first.
    pub fn new(config: &DiffusionConfig) -> Result<Self, DiffusionError> {
        config.validate()?;
        Self::from_betas(betas(config))
    }

    /// The tables of the process that visits only `kept` of this one's timesteps (ascending, as
    /// [`Spacing::kept_timesteps`](super::Spacing::kept_timesteps) gives them): the betas follow from alpha_bar at
    /// the kept steps (Nichol & Dhariwal 2021, eq. 19).
    pub fn respaced(&self, kept: &[Timestep]) -> Result<Self, DiffusionError> {
        let mut previous = 1.0;
        let mut betas = Vec::with_capacity(kept.len());
        for &t in kept {
            let alpha_bar = self.alphas_cumprod[self.checked(t)?];
            betas.push(1.0 - alpha_bar / previous);
            previous = alpha_bar;
        }
        Self::from_betas(betas)
    }

    fn from_betas(betas: Vec<f64>) -> Result<Self, DiffusionError> {
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        let alphas_cumprod_prev: Vec<f64> =
            std::iter::once(1.0).chain(alphas_cumprod.iter().copied()).take(betas.len()).collect();
        let table = |f: fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..betas.len()).map(|t| f(betas[t], alphas_cumprod[t], alphas_cumprod_prev[t])).collect()
        };

        let snr = table(|_, bar, _| bar / (1.0 - bar));
        let posterior_variance = table(|beta, bar, bar_prev| beta * (1.0 - bar_prev) / (1.0 - bar));
        let posterior_mean_coef1 = table(|beta, bar, bar_prev| bar_prev.sqrt() * beta / (1.0 - bar));
        let posterior_mean_coef2 = table(|beta, bar, bar_prev| (1.0 - beta).sqrt() * (1.0 - bar_prev) / (1.0 - bar));

        // Entry 0 of the posterior variance is 0 (x_0 given x_0): its neighbour replaces it, so that the logarithm exists.
        // A one-step schedule has no neighbour, only its beta.
        let first_variance = posterior_variance.get(1).or(betas.first()).copied();
        let with_first = |rest: &[f64]| -> Vec<LogVariance> {
            first_variance.into_iter().chain(rest.iter().copied().skip(1)).map(LogVariance::of).collect()
        };
        let schedule = Self {
            posterior_log_variance_clipped: with_first(&posterior_variance),
            fixed_large_log_variance: with_first(&betas),
            betas,
            alphas_cumprod,
            alphas_cumprod_prev,
            snr,
            posterior_variance,
            posterior_mean_coef1,
            posterior_mean_coef2,
        };
        schedule.check_finite()
    }

    /// Extreme betas make alpha_bar underflow to 0 or round to 1, and a table would then hold an infinity or a NaN.
    fn check_finite(self) -> Result<Self, DiffusionError> {
        let signal_left = self.alphas_cumprod.last().is_some_and(|&bar| bar > 0.0);
        let logarithms = self.posterior_log_variance_clipped.iter().map(|log_variance| &log_variance.0);
        let mut all = self.snr.iter().chain(logarithms).chain(&self.posterior_mean_coef1);
        if signal_left && all.all(|value| value.is_finite()) {
            return Ok(self);
        }
        Err(DiffusionError::setting(
            "diffusion.beta_schedule",
            &format!(
                "betas from {:e} to {:e} over {} timesteps",
                self.betas.first().unwrap_or(&f64::NAN),
                self.betas.last().unwrap_or(&f64::NAN),
                self.betas.len()
            ),
            "a schedule whose alpha_bar stays strictly between 0 and 1",
            "bring diffusion.beta_start and diffusion.beta_end closer to 0.0001 and 0.02",
        ))
    }

    /// T, the number of timesteps.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.betas.len()
    }

    /// `index` as a timestep of this schedule.
    pub fn timestep(&self, index: usize) -> Result<Timestep, DiffusionError> {
        Timestep::new(index, self.len())
    }

    /// The index of `t`, which may come from a longer schedule.
    pub(super) fn checked(&self, t: Timestep) -> Result<usize, DiffusionError> {
        self.timestep(t.index()).map(Timestep::index)
    }

    /// beta_t.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// alpha_bar_t, the product of 1 - beta up to t.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// alpha_bar_{t-1}, 1 at t = 0.
    pub(crate) fn alphas_cumprod_prev(&self) -> &[f64] {
        &self.alphas_cumprod_prev
    }

    /// The signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t).
    pub fn snr(&self) -> &[f64] {
        &self.snr
    }

    /// beta~_t, the variance of q(x_{t-1} | x_t, x_0); 0 at t = 0.
    pub fn posterior_variance(&self) -> &[f64] {
        &self.posterior_variance
    }

    /// log beta~_t, entry 0 replaced by entry 1.
    pub fn posterior_log_variance_clipped(&self) -> &[LogVariance] {
        &self.posterior_log_variance_clipped
    }

    /// The factor of x_0 in the posterior mean.
    pub fn posterior_mean_coef1(&self) -> &[f64] {
        &self.posterior_mean_coef1
    }

    /// The factor of x_t in the posterior mean.
    pub fn posterior_mean_coef2(&self) -> &[f64] {
        &self.posterior_mean_coef2
    }

    /// log of beta_t, entry 0 replaced by beta~_1.
    pub(crate) fn fixed_large_log_variance(&self) -> &[LogVariance] {
        &self.fixed_large_log_variance
    }

    /// sqrt(alpha_bar_T), the share of the image left in x_T. Sampling starts from pure noise, so it should be small:
    /// above 0.05 T is too short for these betas.
    pub fn terminal_signal(&self) -> f64 {
        self.alphas_cumprod.last().map_or(1.0, |bar| bar.sqrt())
    }
}

fn betas(config: &DiffusionConfig) -> Vec<f64> {
    let (start, end, count) = (config.beta_start, config.beta_end, config.num_train_timesteps);
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(start, end, count),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt(), end.sqrt(), count).iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => cosine_betas(count),
        BetaSchedule::Sigmoid => {
            let logistic = |x: &f64| 1.0 / (1.0 + (-x).exp());
            linspace(-6.0, 6.0, count).iter().map(|x| logistic(x) * (end - start) + start).collect()
        }
    }
}

/// `count` evenly spaced values, both ends included; `start` alone where `count` is 1.
fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count).map(|i| if i > 0 && i + 1 == count { end } else { start + step * i as f64 }).collect()
}

/// Nichol & Dhariwal 2021, eq. 17.
fn cosine_betas(count: usize) -> Vec<f64> {
    let alpha_bar = |s: f64| ((s + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let at = |i: usize| alpha_bar(i as f64 / count as f64);
    (0..count).map(|i| (1.0 - at(i + 1) / at(i)).min(MAX_COSINE_BETA)).collect()
}
