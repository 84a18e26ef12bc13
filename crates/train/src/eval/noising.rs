//! How fast images become noise, and whether T is large enough: `ddpm schedule --data`.
//!
//! Sampling starts from x ~ N(0, I), so x_T of real images should be almost indistinguishable from it. The forward process
//! needs no network, so this is measured before a run, on x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al.
//! 2020, eq. 4):
//!
//! | of the values of x_t | what it shows | for noise |
//! | --- | --- | --- |
//! | mean, variance | how much brightness and contrast are left | 0, 1 |
//! | neighbour correlation | whether shapes are left: images are smooth, noise is not | 0 |
//! | Kolmogorov-Smirnov distance | the largest difference between their distribution function and that of N(0, 1) | 0 |
//!
//! T is large enough if the distance at T - 1, the remaining signal and the prior term of the bound are all below their
//! [limits](Condition). Published schedules that fail this (Lin et al. 2023, arXiv 2305.08891) make models that cannot draw
//! very dark or very bright images.
//!
//! As everywhere, noise depends on (seed, t, image) alone.

use std::f64::consts::FRAC_1_SQRT_2;

use candle_core::Tensor;
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DiffusionProcess, Schedule, Timestep, prior_bits};
use rayon::prelude::*;
use serde::Serialize;

use super::images::{EvalBatch, EvalImages};
use crate::config::MAX_TERMINAL_SIGNAL;
use crate::error::Error;
use crate::noise::normals;

/// The most values held in memory: x_0 and x_t, 80 MB each. 6500 images of 32x32x3, 101 of 256x256x3.
const MAX_VALUES: usize = 20_000_000;
/// Images noised at once; it changes only the size of temporary allocations.
const BATCH: usize = 32;

/// Smirnov's critical value of sqrt(n) KS at 1 % (Smirnov 1948): noise exceeds it once in a hundred times.
const KS_CRITICAL: f64 = 1.63;
/// With many values even a harmless distance is significant. This limit is the distance of noise whose mean is 0.025 instead of
/// 0 (0.025 times the density at 0, 0.4): of images of mean 0.5, with the largest usual signal.
const KS_HARMLESS: f64 = 0.01;
/// Bits per dimension are published with two decimals: a prior term below this does not show in them.
const MAX_PRIOR_BITS: f64 = 0.01;

/// Statistics over all values of all images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValueStatistics {
    /// Their mean.
    pub mean: f64,
    /// Their variance.
    pub variance: f64,
    /// Pearson's correlation of values of one channel side by side or one above the other; none where there are no such
    /// pairs, or all values are equal.
    pub neighbour_correlation: Option<f64>,
    /// The Kolmogorov-Smirnov distance from N(0, 1), sup |F(x) - Phi(x)|.
    pub ks_distance: f64,
}

/// The values of x_t.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Noised {
    /// The timestep.
    pub t: usize,
    /// The values.
    #[serde(flatten)]
    pub values: ValueStatistics,
}

/// One quantity that must be small for T to be large enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Condition {
    /// Its name.
    pub quantity: &'static str,
    /// Its value.
    pub value: f64,
    /// Its limit.
    pub limit: f64,
}

impl Condition {
    /// Whether the value is small enough.
    pub fn holds(&self) -> bool {
        self.value <= self.limit
    }
}

/// The measurement; the fields of the JSON document.
#[derive(Clone, Debug, Serialize)]
pub struct Noising {
    /// How many images.
    pub images: usize,
    /// The images themselves, x_0, for comparison with a model's samples.
    pub images_statistics: ValueStatistics,
    /// Ascending in t.
    pub noised: Vec<Noised>,
    /// The prior term of the bound, L_T = KL(q(x_T | x_0) || N(0, I)): mean over the images.
    pub prior_bits_per_dim: f64,
    /// The conditions behind the verdict.
    pub conditions: [Condition; 3],
    /// The verdict on T: all conditions hold.
    pub large_enough: bool,
}

/// The timesteps to measure, ascending and distinct: `at`, or if that is empty a choice from the whole schedule; and always the
/// last one, which the verdict is about.
///
/// # Errors
/// A timestep is not in the schedule.
pub fn timesteps(schedule: &Schedule, at: &[usize]) -> Result<Vec<Timestep>, Error> {
    let (count, last) = (schedule.len(), schedule.len() - 1);
    // Most of the change is early.
    let spread = [0, count / 100, count / 50, count / 20, count / 10, count / 4, count / 2, 3 * count / 4];
    let chosen = if at.is_empty() { &spread[..] } else { at };
    let checked = chosen.iter().chain([&last]).map(|&t| {
        schedule.timestep(t).map_err(|error| {
            let help = error.help().map(str::to_owned);
            Error::NoTimestep { t, last, help }
        })
    });
    let mut timesteps = checked.collect::<Result<Vec<_>, _>>()?;
    timesteps.sort_unstable();
    timesteps.dedup();
    Ok(timesteps)
}

/// As many of `images` as may be held in memory; at least one.
#[must_use]
pub fn affordable(images: EvalImages) -> EvalImages {
    let count = MAX_VALUES / images.image_len().max(1);
    images.at_most(count)
}

/// Measures `images`, and x_t of them at each of `timesteps`, which [`timesteps`] gave. `progress` gets the number of finished
/// timesteps.
///
/// # Errors
/// The data cannot be read.
pub fn measure(
    process: &DiffusionProcess,
    images: &EvalImages,
    timesteps: &[Timestep],
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Noising, Error> {
    let philox = Philox::new(seed, Purpose::Evaluation);
    let batches = images.batches(BATCH)?.collect::<Result<Vec<EvalBatch>, Error>>()?;
    let images_statistics = statistics(&batches, |batch| Ok(batch.x_start.clone()))?;
    let mut noised = Vec::with_capacity(timesteps.len());
    for &t in timesteps {
        let values = statistics(&batches, |batch| x_t(process, batch, t, philox))?;
        noised.push(Noised { t: t.index(), values });
        progress(noised.len());
    }
    let mut prior: Vec<f64> = Vec::with_capacity(images.len());
    for batch in &batches {
        prior.extend(prior_bits(process, &batch.x_start)?);
    }
    let prior_bits_per_dim = prior.iter().sum::<f64>() / prior.len() as f64;
    let terminal_distance = noised.last().map_or(f64::NAN, |last| last.values.ks_distance);
    let values = images.len() * images.image_len();
    let conditions = [
        Condition { quantity: "KS distance of x_T from N(0, 1)", value: terminal_distance, limit: ks_limit(values) },
        Condition {
            quantity: "sqrt(alpha_bar_T)",
            value: process.schedule().terminal_signal(),
            limit: MAX_TERMINAL_SIGNAL,
        },
        Condition { quantity: "prior KL, bits/dim", value: prior_bits_per_dim, limit: MAX_PRIOR_BITS },
    ];
    let large_enough = conditions.iter().all(Condition::holds);
    Ok(Noising { images: images.len(), images_statistics, noised, prior_bits_per_dim, conditions, large_enough })
}

/// The largest allowed distance of x_T's values from N(0, 1): that of real noise by chance, or a harmless one.
fn ks_limit(values: usize) -> f64 {
    (KS_CRITICAL / (values as f64).sqrt()).max(KS_HARMLESS)
}

fn x_t(process: &DiffusionProcess, batch: &EvalBatch, t: Timestep, philox: Philox) -> Result<Tensor, Error> {
    let dims = batch.x_start.dims();
    let noise = normals(philox, t.index() as u64, batch.first, dims)?;
    Ok(process.q_sample(&batch.x_start, &vec![t; dims[0]], &noise)?)
}

/// Statistics of all values that `of` computes from each batch.
fn statistics(
    batches: &[EvalBatch],
    of: impl Fn(&EvalBatch) -> Result<Tensor, Error>,
) -> Result<ValueStatistics, Error> {
    let mut values = Vec::with_capacity(batches.iter().map(|batch| batch.x_start.elem_count()).sum());
    let mut shape = [1; 3];
    for batch in batches {
        shape = append(&mut values, &of(batch)?)?;
    }
    Ok(ValueStatistics::of(&mut values, shape))
}

/// Appends the values of `[N, H, W, C]`; `[H, W, C]`.
fn append(values: &mut Vec<f32>, images: &Tensor) -> Result<[usize; 3], ModelError> {
    let (_, height, width, channels) = images.dims4()?;
    values.extend(images.flatten_all()?.to_vec1::<f32>()?);
    Ok([height, width, channels])
}

impl ValueStatistics {
    /// Statistics of images of `shape` `[H, W, C]`, one after another; sorts the values.
    fn of(values: &mut [f32], shape: [usize; 3]) -> Self {
        let (len, n): (usize, _) = (shape.iter().product(), values.len() as f64);
        let mean = sum_over_images(values, len, |image| image.iter().map(|&x| f64::from(x)).sum()) / n;
        let deviation = |x: f32| f64::from(x) - mean;
        let variance = sum_over_images(values, len, |image| image.iter().map(|&x| deviation(x).powi(2)).sum()) / n;
        let products = sum_over_images(values, len, |image| {
            neighbours(image, shape).map(|(a, b)| deviation(a) * deviation(b)).sum()
        });
        let pairs = values.len() / len * pairs_of_neighbours(shape);
        let neighbour_correlation = (pairs > 0 && variance > 0.0).then(|| products / pairs as f64 / variance);
        Self { mean, variance, neighbour_correlation, ks_distance: ks_distance(values) }
    }
}

/// The sum of `of` over images of `len` values; added in order, so that the number of threads does not change it.
fn sum_over_images(values: &[f32], len: usize, of: impl Fn(&[f32]) -> f64 + Sync + Send) -> f64 {
    let sums: Vec<f64> = values.par_chunks_exact(len).map(of).collect();
    sums.iter().sum()
}

/// Pairs of neighbouring values in one channel: first side by side, then one above the other.
fn neighbours(image: &[f32], [_, width, channels]: [usize; 3]) -> impl Iterator<Item = (f32, f32)> {
    let row = width * channels;
    let beside = image.chunks_exact(row).flat_map(move |row| row.iter().zip(&row[channels..]));
    beside.chain(image.iter().zip(&image[row..])).map(|(&a, &b)| (a, b))
}

/// The number of pairs in an image.
fn pairs_of_neighbours([height, width, channels]: [usize; 3]) -> usize {
    channels * (height * (width - 1) + (height - 1) * width)
}

/// sup |F_n(x) - Phi(x)|, where F_n is the share of `values` up to x; sorts them. F_n jumps at a value, so both of its sides
/// count.
fn ks_distance(values: &mut [f32]) -> f64 {
    values.par_sort_unstable_by(f32::total_cmp);
    let n = values.len() as f64;
    let distances = values.par_iter().enumerate().map(|(below, &x)| {
        let phi = normal_cdf(f64::from(x));
        (phi - below as f64 / n).max((below + 1) as f64 / n - phi)
    });
    distances.reduce(|| 0.0, f64::max)
}

/// Phi, the distribution function of N(0, 1).
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;
    use ddpm_model::diffusion::DiffusionConfig;

    fn noise(count: usize) -> Vec<f32> {
        let mut noise = vec![0.0; count];
        Philox::new(7, Purpose::Noise).fill_normal(3, 5, &mut noise);
        noise
    }

    fn correlation(mut values: Vec<f32>, shape: [usize; 3]) -> Option<f64> {
        ValueStatistics::of(&mut values, shape).neighbour_correlation
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found}, expected {expected} +- {tolerance}");
    }

    /// Phi from tables: 0.841344746 at 1.
    #[test]
    fn the_distance_of_few_values_is_that_worked_out_by_hand() {
        assert_near(ks_distance(&mut [0.0]), 0.5, 1e-15);
        assert_near(ks_distance(&mut [0.0, 0.0]), 0.5, 1e-15);
        assert_near(ks_distance(&mut [1.0, -1.0]), 0.341_344_746, 1e-9);
        assert_near(ks_distance(&mut [1.0]), 0.841_344_746, 1e-9);
        assert_near(ks_distance(&mut [-9.0, -9.0, 9.0]), 2.0 / 3.0, 1e-15);
    }

    #[test]
    fn the_distance_tells_noise_from_almost_noise() {
        let mut noise = noise(100_000);
        let critical = KS_CRITICAL / (noise.len() as f64).sqrt();
        let mut shifted: Vec<f32> = noise.iter().map(|x| x + 0.05).collect();
        let mut narrow: Vec<f32> = noise.iter().map(|x| x * 0.95).collect();
        assert!(ks_distance(&mut noise) < critical);
        assert!(ks_distance(&mut shifted) > critical);
        assert!(ks_distance(&mut narrow) > critical);
    }

    #[test]
    fn the_limit_is_chance_for_few_values_and_harmlessness_for_many() {
        assert_near(ks_limit(100), 0.163, 1e-15);
        assert_near(ks_limit(1_000_000), 0.01, 0.0);
    }

    #[test]
    fn mean_and_variance_are_those_of_all_values() {
        let statistics = ValueStatistics::of(&mut [1.0, 2.0, 3.0, 6.0], [1, 2, 1]);
        assert_eq!((statistics.mean, statistics.variance), (3.0, 3.5));
    }

    /// -3, -1, 1, 3: variance 5; products of neighbours 3, -1, 3. No pair reaches from one image or row into the next.
    #[test]
    fn neighbours_correlate_as_worked_out_by_hand() {
        let line = vec![-3.0, -1.0, 1.0, 3.0];
        assert_near(correlation(line.clone(), [1, 4, 1]).unwrap(), 1.0 / 3.0, 1e-15);
        assert_near(correlation(line.clone(), [4, 1, 1]).unwrap(), 1.0 / 3.0, 1e-15);
        assert_near(correlation(line.clone(), [1, 2, 1]).unwrap(), 3.0 / 5.0, 1e-15);
        // Two channels, (-3, 1) and (-1, 3).
        assert_near(correlation(line.clone(), [1, 2, 2]).unwrap(), -3.0 / 5.0, 1e-15);
        // Beside: 3, 3; above: -3, -3.
        assert_near(correlation(line.clone(), [2, 2, 1]).unwrap(), 0.0, 1e-15);
        assert_eq!(correlation(line, [1, 1, 1]), None, "no neighbours");
        assert_eq!(correlation(vec![0.5; 16], [4, 4, 1]), None, "no variance");
    }

    #[test]
    fn gradients_correlate_checkerboards_oppose_and_noise_does_neither() {
        const SIDE: usize = 64;
        let image = |of: fn(usize, usize) -> f32| -> Vec<f32> {
            // The second channel is the negative: neighbours are looked for within a channel.
            let values = (0..SIDE * SIDE).map(|k| of(k / SIDE, k % SIDE));
            values.flat_map(|value| [value, -value]).collect()
        };
        let shape = [SIDE, SIDE, 2];
        let gradient = correlation(image(|y, x| (y + x) as f32 - (SIDE - 1) as f32), shape).unwrap();
        assert!((0.95..=1.0).contains(&gradient), "{gradient}");
        let checkerboard = correlation(image(|y, x| if (y + x).is_multiple_of(2) { 1.0 } else { -1.0 }), shape);
        assert_near(checkerboard.unwrap(), -1.0, 1e-12);
        // Products of independent values: the standard error of their mean is 1 / sqrt(pairs).
        let standard_error = 1.0 / (4.0 * pairs_of_neighbours(shape) as f64).sqrt();
        assert_near(correlation(noise(4 * SIDE * SIDE * 2), shape).unwrap(), 0.0, 5.0 * standard_error);
    }

    #[test]
    fn x_t_of_a_constant_image_has_the_mean_and_the_variance_of_the_forward_process() {
        let process = DiffusionProcess::new(&DiffusionConfig::default()).unwrap();
        let (value, dims) = (0.5f32, (8, 16, 16, 3));
        let batch = EvalBatch { x_start: Tensor::full(value, dims, &Device::Cpu).unwrap(), labels: None, first: 0 };
        let n = batch.x_start.elem_count() as f64;
        let batches = [batch];
        for t in [0, 100, 500, 999] {
            let bar = process.schedule().alphas_cumprod()[t];
            let t = process.schedule().timestep(t).unwrap();
            let philox = Philox::new(1, Purpose::Evaluation);
            let found = statistics(&batches, |batch| x_t(&process, batch, t, philox)).unwrap();
            assert_near(found.mean, bar.sqrt() * f64::from(value), 5.0 * ((1.0 - bar) / n).sqrt());
            assert_near(found.variance, 1.0 - bar, 5.0 * (1.0 - bar) * (2.0 / n).sqrt());
        }
    }

    #[test]
    fn timesteps_are_spread_over_the_schedule_and_end_with_its_last() {
        let of = |count, at: &[usize]| {
            let config = DiffusionConfig { num_train_timesteps: count, ..Default::default() };
            let chosen = timesteps(&Schedule::new(&config).unwrap(), at)?;
            Ok::<Vec<usize>, Error>(chosen.into_iter().map(Timestep::index).collect())
        };
        assert_eq!(of(1000, &[]).unwrap(), [0, 10, 20, 50, 100, 250, 500, 750, 999]);
        assert_eq!(of(4, &[]).unwrap(), [0, 1, 2, 3]);
        assert_eq!(of(1, &[]).unwrap(), [0]);
        assert_eq!(of(1000, &[7, 3, 7]).unwrap(), [3, 7, 999]);
        let refused = of(1000, &[1000]).unwrap_err();
        assert_eq!(refused.to_string(), "1000: expected timesteps from 0 to 999");
    }
}
