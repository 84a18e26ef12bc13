//! Bits per dimension: the variational bound of held-out images, with its parts (Ho et al. 2020, section 3.4).
//!
//! Every image is used at every timestep once, with noise that depends on (seed, t, image) alone. So two models are compared on
//! the same noise, and neither the batch size nor the number of images changes one image's result, except for rounding.

use std::time::Instant;

use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{BitsPerDim, Timestep};
use serde::Serialize;

use super::images::EvalImages;
use super::judge::Judge;
use crate::error::Error;
use crate::exchange::Model;

/// The means over all images.
#[derive(Clone, Debug, Serialize)]
pub struct Nll {
    /// The whole bound.
    pub bits_per_dim: f64,
    /// The standard error of that mean, from the spread over images; none for a single image.
    pub standard_error: Option<f64>,
    /// L_T, in bits per dimension.
    pub prior: f64,
    /// L_t of each step, in bits per dimension.
    pub vb: Vec<f64>,
    /// Mean squared error, at each step, of the eps that belongs to the clamped x_0: at the noisy end it is less than that of
    /// the network's own eps.
    pub mse: Vec<f64>,
    /// Mean squared error of the predicted x_0 at each step.
    pub xstart_mse: Vec<f64>,
    /// The bound of each image. Two models get the same images and noise, so the differences image by image say more than two
    /// standard errors.
    pub image_bits_per_dim: Vec<f64>,
    /// How many images.
    pub images: usize,
    /// How many timesteps.
    pub steps: usize,
    /// The timesteps, as the network gets them.
    pub timesteps: Vec<usize>,
    /// The duration.
    pub seconds: f64,
    /// The share of that time in the network; unknown on a GPU, which does all of the work.
    pub network_share: Option<f64>,
}

/// How to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct NllRequest<'a> {
    /// Visited timesteps, ascending.
    pub kept: &'a [Timestep],
    /// Images computed at once.
    pub batch_size: usize,
    /// Seed of the noise.
    pub seed: u64,
}

/// Evaluates `model` on `images`. `progress` gets the number of passes of a batch through the network so far, and the bits per
/// dimension of the finished images.
///
/// # Errors
/// The data cannot be read, or has labels that the model does not know: all of it is read once before the first pass.
pub fn evaluate(
    model: &Model,
    images: &EvalImages,
    request: &NllRequest<'_>,
    progress: &mut dyn FnMut(usize, Option<f64>),
) -> Result<Nll, Error> {
    let start = Instant::now();
    let process = model.process.respaced(request.kept)?;
    let philox = Philox::new(request.seed, Purpose::Evaluation);
    let mut judge = Judge::new(model, &process, images, request.batch_size, philox)?;
    // Reading takes seconds, the network hours; so unusable data is reported first.
    images.batches(judge.batch_size())?.try_for_each(|batch| batch.map(drop))?;
    let (mut sums, mut passes) = (Sums::new(request.kept.len()), 0);
    for batch in images.batches(judge.batch_size())? {
        let mut passed = || {
            passes += 1;
            progress(passes, sums.mean());
        };
        let of_images = judge.evaluate(&batch?, &mut passed)?;
        sums.add(&of_images);
    }
    let seconds = start.elapsed().as_secs_f64();
    let timesteps = request.kept.iter().map(|t| t.index()).collect();
    let network_share = judge.in_network().map(|time| time.as_secs_f64() / seconds);
    Ok(sums.into_nll(timesteps, seconds, network_share))
}

/// Passes of a batch through the network that [`evaluate`] makes.
pub fn passes(images: &EvalImages, request: &NllRequest<'_>) -> usize {
    images.len().div_ceil(request.batch_size.max(1)) * request.kept.len()
}

/// Sums over images, so that memory does not grow with their number.
struct Sums {
    totals: Vec<f64>,
    prior: f64,
    vb: Vec<f64>,
    mse: Vec<f64>,
    xstart_mse: Vec<f64>,
}

impl Sums {
    fn new(steps: usize) -> Self {
        let zeros = || vec![0.0; steps];
        Self { totals: vec![], prior: 0.0, vb: zeros(), mse: zeros(), xstart_mse: zeros() }
    }

    fn add(&mut self, images: &[BitsPerDim]) {
        for image in images {
            self.totals.push(image.total());
            self.prior += image.prior;
            let add = |sums: &mut [f64], values: &[f64]| sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
            add(&mut self.vb, &image.vb);
            add(&mut self.mse, &image.mse);
            add(&mut self.xstart_mse, &image.xstart_mse);
        }
    }

    fn mean(&self) -> Option<f64> {
        (!self.totals.is_empty()).then(|| self.totals.iter().sum::<f64>() / self.totals.len() as f64)
    }

    fn into_nll(self, timesteps: Vec<usize>, seconds: f64, network_share: Option<f64>) -> Nll {
        let (images, bits_per_dim) = (self.totals.len(), self.mean().unwrap_or(f64::NAN));
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| sum / images as f64).collect::<Vec<_>>();
        Nll {
            bits_per_dim,
            standard_error: standard_error(&self.totals),
            prior: self.prior / images as f64,
            vb: mean(self.vb),
            mse: mean(self.mse),
            xstart_mse: mean(self.xstart_mse),
            image_bits_per_dim: self.totals,
            images,
            steps: timesteps.len(),
            timesteps,
            seconds,
            network_share,
        }
    }
}

/// Standard error of the mean of `values`; none for fewer than two.
fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        // Deviations 1, 0, 1; variance 2 / 2; over 3 values.
        let error = standard_error(&[1.0, 2.0, 3.0]).unwrap_or_default();
        assert!((error - (1.0f64 / 3.0).sqrt()).abs() < 1e-15, "{error}");
        assert_eq!(standard_error(&[1.0]), None);
    }

    #[test]
    fn sums_become_means_over_images() {
        let image = |x: f64| BitsPerDim { prior: x, vb: vec![x, 2.0 * x], mse: vec![x; 2], xstart_mse: vec![0.0; 2] };
        let mut sums = Sums::new(2);
        sums.add(&[image(1.0)]);
        sums.add(&[image(2.0)]);
        let nll = sums.into_nll(vec![0, 500], 1.0, Some(0.99));
        assert_eq!((nll.bits_per_dim, nll.prior, nll.images, nll.steps), (6.0, 1.5, 2, 2));
        assert_eq!((nll.vb, nll.mse), (vec![1.5, 3.0], vec![1.5, 1.5]));
    }
}
