//! Comparing a kernel's result with the truth.

use std::fmt;

use candle_core::{DType, Tensor};

use super::widen;

/// How far a result may be from the truth: `allowed = 8 u (sqrt(terms) + condition) growth magnitude`.
///
/// `u` is the unit roundoff of the result's dtype (f32: 2^-24), `magnitude` the root of the sum of the terms' squares.
/// Adding `n` terms of random sign rounds partial sums of about `sqrt(k / n) magnitude`, and those errors add like a
/// random walk (Higham & Mary 2019; the worst case, `n u`, is not met): their standard deviation is
/// `0.3 u sqrt(n) magnitude`. The worst of ten thousand elements, one whose sum drifts far from zero, comes to
/// `2.5 u sqrt(n) magnitude`; the factor 8 leaves three times that, and still is 1e-5 of a sum of a thousand terms.
#[derive(Clone, Debug)]
pub(crate) struct Tolerance {
    terms: usize,
    condition: f64,
    growth: f64,
    magnitude: Magnitude,
}

#[derive(Clone, Debug)]
enum Magnitude {
    /// The largest of the values wanted.
    LargestWanted,
    /// This much for every element.
    All(f64),
    /// Its own for each element.
    Each(Vec<f64>),
}

impl Tolerance {
    /// A sum of `terms` terms (or as many roundings in a row), of the size of the largest value wanted.
    pub(crate) fn sum(terms: usize) -> Self {
        Self { terms, condition: 0.0, growth: 1.0, magnitude: Magnitude::LargestWanted }
    }

    /// Every bit.
    pub(crate) fn exact() -> Self {
        Self::sum(0)
    }

    /// Winograd F(4x4, 3x3): 32 times the bound of the direct sum, at the largest magnitude, for a tile mixes its
    /// pixels.
    ///
    /// For inputs and weights of variance 1 the six products of the one-dimensional transform have the variances
    /// 42/16, 34/12 (twice), 10 * 21/576 (twice) and 42; the fourth output sums them with squared factors 0, 1, 1,
    /// 64, 64, 1: 94 where the direct sum has 3. Two dimensions square the ratio, the root is taken of a variance:
    /// 94 / 3 = 31.4. The other outputs grow less, and so does the weight's gradient (24); the input's is such a
    /// convolution too.
    pub(crate) fn winograd(terms: usize, magnitude: &Tensor) -> Self {
        Self { growth: 32.0, ..Self::sum(terms).of_all(super::largest(magnitude)) }
    }

    /// With the terms' root sum of squares, element by element.
    pub(crate) fn of(self, magnitude: &Tensor) -> Self {
        Self { magnitude: Magnitude::Each(f64s(magnitude)), ..self }
    }

    /// With the same magnitude for every element.
    pub(crate) fn of_all(self, magnitude: f64) -> Self {
        Self { magnitude: Magnitude::All(magnitude), ..self }
    }

    /// With a condition number: an intermediate `condition` times as large as the result is rounded once.
    pub(crate) fn condition(self, condition: f64) -> Self {
        Self { condition, ..self }
    }

    /// The bound where the result is added to what was there `before`.
    pub(crate) fn added_to(self, want: &Tensor, before: &Tensor) -> Self {
        let sums = self.magnitudes(&f64s(want)).into_iter().zip(f64s(before)).map(|(m, b)| m + b.abs()).collect();
        Self { terms: self.terms + 2, magnitude: Magnitude::Each(sums), ..self }
    }

    fn magnitudes(&self, want: &[f64]) -> Vec<f64> {
        match &self.magnitude {
            Magnitude::LargestWanted => vec![want.iter().fold(0.0, |a: f64, v| a.max(v.abs())); want.len()],
            Magnitude::All(magnitude) => vec![*magnitude; want.len()],
            Magnitude::Each(magnitudes) => magnitudes.clone(),
        }
    }

    /// The error allowed in each element.
    pub(crate) fn allowed(&self, dtype: DType, want: &[f64]) -> Vec<f64> {
        let factor = 8.0 * unit_roundoff(dtype) * ((self.terms as f64).sqrt() + self.condition) * self.growth;
        self.magnitudes(want).into_iter().map(|m| factor * m).collect()
    }
}

fn unit_roundoff(dtype: DType) -> f64 {
    let digits = match dtype {
        DType::F64 => 53,
        DType::F32 => 24,
        DType::F16 => 11,
        DType::BF16 => 8,
        other => panic!("{other:?} does not round"),
    };
    0.5f64.powi(digits)
}

/// All elements in f64, row by row.
pub(crate) fn f64s(x: &Tensor) -> Vec<f64> {
    widen(x).flatten_all().unwrap().to_vec1().unwrap()
}

/// The element whose error is largest against what is allowed there.
struct Worst {
    index: Vec<usize>,
    got: f64,
    want: f64,
    allowed: f64,
}

impl Worst {
    fn ratio(&self) -> f64 {
        let error = (self.got - self.want).abs();
        match error / self.allowed {
            _ if error == 0.0 => 0.0,
            ratio if ratio.is_nan() => f64::INFINITY,
            ratio => ratio,
        }
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, got, want, allowed } = self;
        let error = (got - want).abs();
        write!(f, "worst at {index:?}: got {got:e}, want {want:e}, error {error:.2e} / allowed {allowed:.2e}")?;
        write!(f, " = {:.3}", self.ratio())
    }
}

fn unravel(mut flat: usize, dims: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = dims.iter().rev().map(|&d| (flat % d, flat /= d).0).collect();
    index.reverse();
    index
}

/// The complaint of [`assert_close`], if there is one.
fn compare(got: &Tensor, want: &Tensor, tolerance: &Tolerance) -> Result<(), String> {
    if got.dims() != want.dims() {
        return Err(format!("shape {:?}, want {:?}", got.dims(), want.dims()));
    }
    let (values, wanted) = (f64s(got), f64s(want));
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    if bad > 0 {
        return Err(format!("{bad} of {} values are not finite", values.len()));
    }
    let allowed = tolerance.allowed(got.dtype(), &wanted);
    let worst = (0..values.len())
        .map(|i| Worst { index: unravel(i, got.dims()), got: values[i], want: wanted[i], allowed: allowed[i] })
        .max_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    match worst {
        Some(worst) if worst.ratio() > 1.0 => Err(worst.to_string()),
        _ => Ok(()),
    }
}

/// Fails unless every element of `got` is finite and as close to `want` as `tolerance` says.
#[track_caller]
pub(crate) fn assert_close(op: &str, got: &Tensor, want: &Tensor, tolerance: &Tolerance) {
    if let Err(complaint) = compare(got, want, tolerance) {
        panic!("{op}: {complaint}");
    }
}

mod tests {
    use candle_core::{Device, Tensor};
    use ddpm_kernels::ops::conv2d::{self, Conv2d};

    use super::super::{normal, widen};
    use super::{Tolerance, compare};

    /// A right answer of a Winograd convolution with its truth and bound: the loosest check of the suite.
    fn convolution() -> (Tensor, Tensor, Tolerance) {
        let conv = Conv2d::same(3);
        let (x, weight) = (normal(1, &[1, 16, 16, 16]), normal(2, &[16, 3, 3, 16]));
        let bias = normal(3, &[16]);
        let got = conv2d::forward(&conv, &x, &weight, &bias, None).unwrap();
        let twin =
            |f: fn(&Tensor) -> Tensor| conv2d::reference::forward(&conv, &f(&x), &f(&weight), &f(&bias), None).unwrap();
        let magnitude = twin(|t| widen(t).sqr().unwrap()).sqrt().unwrap();
        (got, twin(widen), Tolerance::winograd(9 * 16 + 1, &magnitude))
    }

    fn with_element(x: &Tensor, flat: usize, change: impl Fn(f32) -> f32) -> Tensor {
        let mut data: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        data[flat] = change(data[flat]);
        Tensor::from_vec(data, x.dims(), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_right_result_passes() {
        let (got, want, tolerance) = convolution();
        compare(&got, &want, &tolerance).unwrap();
    }

    #[test]
    fn one_element_off_by_a_thousandth_of_the_spread_is_caught_and_named() {
        let (got, want, tolerance) = convolution();
        let planted = with_element(&got, 16 * 16 * 2 + 16 * 5 + 7, |v| v + 0.012);
        let complaint = compare(&planted, &want, &tolerance).unwrap_err();
        assert!(complaint.starts_with("worst at [0, 2, 5, 7]: got "), "{complaint}");
    }

    #[test]
    fn a_nan_or_an_infinity_is_caught_before_anything_is_compared() {
        let (got, want, tolerance) = convolution();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let complaint = compare(&with_element(&got, 9, |_| bad), &want, &tolerance).unwrap_err();
            assert_eq!(complaint, "1 of 4096 values are not finite");
        }
    }

    #[test]
    fn a_nan_in_the_truth_is_no_excuse() {
        let (got, _, tolerance) = convolution();
        let want = with_element(&got, 9, |_| f32::NAN);
        compare(&got, &want, &tolerance).unwrap_err();
    }

    #[test]
    fn a_transposed_result_is_caught() {
        let (got, want, tolerance) = convolution();
        let transposed = got.transpose(1, 2).unwrap().contiguous().unwrap();
        compare(&transposed, &want, &tolerance).unwrap_err();
    }

    #[test]
    fn another_shape_of_the_same_numbers_is_caught() {
        let (got, want, tolerance) = convolution();
        let flat = got.reshape((16, 16, 16)).unwrap();
        assert_eq!(compare(&flat, &want, &tolerance).unwrap_err(), "shape [16, 16, 16], want [1, 16, 16, 16]");
    }

    #[test]
    fn exact_means_every_bit() {
        let (got, ..) = convolution();
        compare(&got, &got, &Tolerance::exact()).unwrap();
        let off = with_element(&got, 3, f32::next_up);
        compare(&off, &got, &Tolerance::exact()).unwrap_err();
    }
}
