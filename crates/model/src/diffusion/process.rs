//! The forward process q, its posterior, and what a network's output means for them.
//!
//! Tensors are `[N, H, W, C]` with one timestep for each of the N samples. Equation numbers are those of Ho et al.
//! 2020 (arXiv 2006.11239) unless another paper is named.

use candle_core::{D, Tensor};
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, q_sample};

use super::{DiffusionConfig, DiffusionError, LogVariance, PredictionType, Schedule, Timestep, VarianceType};

/// A noise schedule and the meaning of the network's output.
#[derive(Clone, Debug)]
pub struct DiffusionProcess {
    config: DiffusionConfig,
    schedule: Schedule,
    /// The time that the network gets at each timestep: t itself, or the original t on a respaced schedule.
    network_timesteps: Vec<Timestep>,
}

/// The factors of x_t and of the network's prediction in a quantity that is linear in both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Linear {
    /// Factor of x_t.
    pub(super) x_t: f64,
    /// Factor of the network's prediction.
    pub(super) prediction: f64,
}

/// The log variance of p is `lower + (v + 1) / 2 width` for the network's v; a fixed variance has width 0 and no v.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LogVarianceRange {
    pub(super) lower: LogVariance,
    pub(super) width: f64,
}

impl DiffusionProcess {
    /// The process of a valid `config`.
    pub fn new(config: &DiffusionConfig) -> Result<Self, DiffusionError> {
        let schedule = Schedule::new(config)?;
        let network_timesteps = (0..schedule.len()).map(|t| schedule.timestep(t)).collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), schedule, network_timesteps })
    }

    /// The process that visits only `kept` (ascending) of this one's timesteps. Its t counts the kept steps; the
    /// network still sees the original ones, through [`network_timestep`](Self::network_timestep).
    pub fn respaced(&self, kept: &[Timestep]) -> Result<Self, DiffusionError> {
        let schedule = self.schedule.respaced(kept)?;
        let network_timesteps = kept.iter().map(|t| self.network_timesteps[t.index()]).collect();
        Ok(Self { config: self.config.clone(), schedule, network_timesteps })
    }

    /// The same process with samplers that do not clamp the predicted x_0. An inversion needs this, since a clamp cannot be
    /// undone.
    #[must_use]
    pub fn unclamped(&self) -> Self {
        let mut process = self.clone();
        process.config.clip_sample = false;
        process
    }

    /// The same process with another fixed variance of p(x_{t-1} | x_t): the network stays the same, sampling and the
    /// bound change.
    ///
    /// # Errors
    /// The variance is learned, or the new one would be: the network's output channels decide that.
    pub fn with_fixed_variance(&self, variance_type: VarianceType) -> Result<Self, DiffusionError> {
        if [self.config.variance_type, variance_type].contains(&VarianceType::LearnedRange) {
            let expected = "fixed_small or fixed_large, and only beside a model that does not learn its variance";
            let help = "leave it out: the model decides whether its variance is learned";
            return Err(DiffusionError::setting("variance", &variance_type.name(), expected, help));
        }
        let mut process = self.clone();
        process.config.variance_type = variance_type;
        Ok(process)
    }

    /// The settings that the process was made from.
    pub fn config(&self) -> &DiffusionConfig {
        &self.config
    }

    /// The tables.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The time that the network gets at `t`.
    pub fn network_timestep(&self, t: Timestep) -> Result<Timestep, DiffusionError> {
        Ok(self.network_timesteps[self.schedule.checked(t)?])
    }

    /// The constants of an image's noise and of its term of the bound at `t`.
    ///
    /// # Errors
    /// The process does not have the timestep.
    pub fn constants(&self, t: Timestep) -> Result<SampleConstants, DiffusionError> {
        let (schedule, t) = (&self.schedule, self.schedule.checked(t)?);
        let ((signal, noise), x_start) = (self.signal_and_noise(t), self.x_start_in_prediction(t));
        let LogVarianceRange { lower, width } = self.log_variance_range(t);
        Ok(SampleConstants {
            signal,
            noise,
            decoder: f64::from(u8::from(t == 0)),
            x_start_x_t: x_start.x_t,
            x_start_prediction: x_start.prediction,
            mean_coef1: schedule.posterior_mean_coef1()[t],
            mean_coef2: schedule.posterior_mean_coef2()[t],
            posterior_log_variance: schedule.posterior_log_variance_clipped()[t].0,
            log_variance_lower: lower.0,
            log_variance_width: width,
            ..SampleConstants::default()
        })
    }

    /// The constants of several samples.
    pub(super) fn constants_at(&self, t: &[Timestep]) -> Result<Vec<SampleConstants>, DiffusionError> {
        t.iter().map(|&t| self.constants(t)).collect()
    }

    /// x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, eq. 4: any amount of noise in one step.
    pub fn q_sample(&self, x_start: &Tensor, t: &[Timestep], noise: &Tensor) -> Result<Tensor, DiffusionError> {
        const NAME: &str = "q_sample";
        check_dims(NAME, "noise", noise, x_start.dims())?;
        check_count(NAME, "t", t.len(), x_start)?;
        let samples = SampleConstants::tensor(&self.constants_at(t)?, x_start.device())?;
        let images = NoisyImages { images: x_start, samples: &samples, noise: Noise::Given(noise) };
        Ok(q_sample(&images, x_start.dtype())?)
    }

    /// mu~_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0), eq. 7.
    pub fn q_posterior_mean(&self, x_start: &Tensor, x_t: &Tensor, t: &[Timestep]) -> Result<Tensor, DiffusionError> {
        let (coef1, coef2) = (self.schedule.posterior_mean_coef1(), self.schedule.posterior_mean_coef2());
        self.combine("q_posterior_mean", (x_start, |t| coef1[t]), (x_t, |t| coef2[t]), t)
    }

    /// The x_0 that the network's output stands for; not clamped. `[N, H, W, C]`, whatever the output's channels.
    pub fn predict_x_start(&self, output: &Tensor, x_t: &Tensor, t: &[Timestep]) -> Result<Tensor, DiffusionError> {
        let prediction = self.prediction(output, x_t.dims())?;
        let of = |t| self.x_start_in_prediction(t);
        self.combine("predict_x_start", (x_t, |t| of(t).x_t), (&prediction, |t| of(t).prediction), t)
    }

    /// The eps that the network's output stands for. `[N, H, W, C]`, whatever the output's channels.
    pub fn predict_noise(&self, output: &Tensor, x_t: &Tensor, t: &[Timestep]) -> Result<Tensor, DiffusionError> {
        let prediction = self.prediction(output, x_t.dims())?;
        let of = |t| self.noise_in_prediction(t);
        self.combine("predict_noise", (x_t, |t| of(t).x_t), (&prediction, |t| of(t).prediction), t)
    }

    /// log of the variance of p(x_{t-1} | x_t): `[N, 1, 1, 1]` where it is fixed, `[N, H, W, C]` where the output's
    /// second C channels say where between its bounds it lies (Nichol & Dhariwal 2021, eq. 15). `image_dims` are
    /// those of x_t.
    pub fn model_log_variance(
        &self,
        output: &Tensor,
        image_dims: &[usize],
        t: &[Timestep],
    ) -> Result<Tensor, DiffusionError> {
        const NAME: &str = "model_log_variance";
        self.check_output(NAME, output, image_dims)?;
        let lower = self.coefficients(NAME, output, t, |t| self.log_variance_range(t).lower.0)?;
        if self.config.variance_type != VarianceType::LearnedRange {
            return Ok(lower);
        }
        let channels = image_dims[image_dims.len() - 1];
        let fraction = output.narrow(D::Minus1, channels, channels)?.affine(0.5, 0.5)?;
        let width = self.coefficients(NAME, output, t, |t| self.log_variance_range(t).width)?;
        Ok(fraction.broadcast_mul(&width)?.broadcast_add(&lower)?)
    }

    /// x_0 as a function of x_t and the network's prediction at index `t`.
    pub(super) fn x_start_in_prediction(&self, t: usize) -> Linear {
        let (signal, noise) = self.signal_and_noise(t);
        match self.config.prediction_type {
            PredictionType::Epsilon => Linear { x_t: 1.0 / signal, prediction: -noise / signal },
            PredictionType::Sample => Linear { x_t: 0.0, prediction: 1.0 },
            PredictionType::VPrediction => Linear { x_t: signal, prediction: -noise },
        }
    }

    /// eps as a function of x_t and the network's prediction at index `t`.
    pub(super) fn noise_in_prediction(&self, t: usize) -> Linear {
        let (signal, noise) = self.signal_and_noise(t);
        match self.config.prediction_type {
            PredictionType::Epsilon => Linear { x_t: 0.0, prediction: 1.0 },
            PredictionType::Sample => Linear { x_t: 1.0 / noise, prediction: -signal / noise },
            PredictionType::VPrediction => Linear { x_t: noise, prediction: signal },
        }
    }

    /// What the network should predict, as factors of (x_0, eps) at index `t`.
    pub(super) fn target(&self, t: usize) -> (f64, f64) {
        let (signal, noise) = self.signal_and_noise(t);
        match self.config.prediction_type {
            PredictionType::Epsilon => (0.0, 1.0),
            PredictionType::Sample => (1.0, 0.0),
            PredictionType::VPrediction => (-noise, signal),
        }
    }

    /// The range of the log of p's variance at index `t`.
    pub(super) fn log_variance_range(&self, t: usize) -> LogVarianceRange {
        let small = self.schedule.posterior_log_variance_clipped()[t];
        let (lower, width) = match self.config.variance_type {
            VarianceType::FixedSmall => (small, 0.0),
            VarianceType::FixedLarge => (self.schedule.fixed_large_log_variance()[t], 0.0),
            VarianceType::LearnedRange => (small, LogVariance::of(self.schedule.betas()[t]).0 - small.0),
        };
        LogVarianceRange { lower, width }
    }

    /// (sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)).
    pub(super) fn signal_and_noise(&self, t: usize) -> (f64, f64) {
        let bar = self.schedule.alphas_cumprod()[t];
        (bar.sqrt(), (1.0 - bar).sqrt())
    }

    /// The first C channels of the network's output.
    fn prediction(&self, output: &Tensor, image_dims: &[usize]) -> Result<Tensor, DiffusionError> {
        self.check_output("prediction", output, image_dims)?;
        Ok(output.narrow(D::Minus1, 0, image_dims[image_dims.len() - 1])?)
    }

    /// Refuses an output whose channels do not fit the image and the variance type.
    pub(super) fn check_output(
        &self,
        operation: &'static str,
        output: &Tensor,
        image_dims: &[usize],
    ) -> Result<(), DiffusionError> {
        let mut expected = image_dims.to_vec();
        if let Some(channels) = expected.last_mut() {
            *channels = self.config.variance_type.out_channels(*channels);
        }
        check_dims(operation, "model_output", output, &expected)
    }

    /// `a(t) x + b(t) y`, sample by sample.
    fn combine(
        &self,
        operation: &'static str,
        (x, a): (&Tensor, impl Fn(usize) -> f64),
        (y, b): (&Tensor, impl Fn(usize) -> f64),
        t: &[Timestep],
    ) -> Result<Tensor, DiffusionError> {
        check_dims(operation, "the second tensor", y, x.dims())?;
        let a = self.coefficients(operation, x, t, a)?;
        let b = self.coefficients(operation, y, t, b)?;
        Ok((x.broadcast_mul(&a)? + y.broadcast_mul(&b)?)?)
    }

    /// One coefficient per sample, shaped `[N, 1, ...]` to multiply `like`, in its type and on its device.
    fn coefficients(
        &self,
        operation: &'static str,
        like: &Tensor,
        t: &[Timestep],
        coefficient: impl Fn(usize) -> f64,
    ) -> Result<Tensor, DiffusionError> {
        check_count(operation, "t", t.len(), like)?;
        let values = t.iter().map(|&t| Ok(coefficient(self.schedule.checked(t)?)));
        let values = values.collect::<Result<Vec<f64>, DiffusionError>>()?;
        let mut dims = vec![1; like.rank()];
        dims[0] = values.len();
        Ok(Tensor::from_vec(values, dims, like.device())?.to_dtype(like.dtype())?)
    }
}

pub(super) fn check_dims(
    operation: &'static str,
    name: &'static str,
    tensor: &Tensor,
    expected: &[usize],
) -> Result<(), DiffusionError> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(DiffusionError::Shape { operation, name, found: tensor.dims().to_vec(), expected: expected.to_vec() })
}

/// Refuses a list that does not have one entry for each sample of `batch`.
pub(super) fn check_count(
    operation: &'static str,
    name: &'static str,
    found: usize,
    batch: &Tensor,
) -> Result<(), DiffusionError> {
    match batch.dims().first() {
        Some(&n) if n == found => Ok(()),
        n => Err(DiffusionError::Shape {
            operation,
            name,
            found: vec![found],
            expected: n.into_iter().copied().collect(),
        }),
    }
}
