//! Doubling and halving an image's sides.

use candle_core::Tensor;
use ddpm_kernels::ops::resample;

use crate::common::{Case, Tolerance, normal};

#[test]
fn upsampling_repeats_each_pixel_and_its_gradient_sums_the_copies() {
    for shape in [[1, 5, 7, 3], [2, 13, 9, 17], [3, 1, 1, 24]] {
        let x = normal(1, &shape);
        let twin = |t: &[Tensor]| resample::reference::upsample(&t[0]);
        let case = Case::new(format!("upsample {shape:?}"), &[("x", &x)], &twin);
        let y = resample::upsample(&x).unwrap();
        let dx = resample::upsample_backward(&case.dy).unwrap();
        let four_copies = Tolerance::sum(4).of(&case.magnitude().grads[0]);
        case.check(&case.want(), (&y, &Tolerance::exact()), &[(&dx, four_copies)]);
    }
}

#[test]
fn downsampling_averages_each_square_and_its_gradient_spreads_evenly() {
    for shape in [[1, 6, 14, 3], [2, 26, 18, 17], [3, 2, 2, 24]] {
        let x = normal(1, &shape);
        let twin = |t: &[Tensor]| resample::reference::downsample(&t[0]);
        let case = Case::new(format!("downsample {shape:?}"), &[("x", &x)], &twin);
        let y = resample::downsample(&x).unwrap();
        let dx = resample::downsample_backward(&case.dy).unwrap();
        let four_pixels = Tolerance::sum(4).of(&case.magnitude().y);
        case.check(&case.want(), (&y, &four_pixels), &[(&dx, Tolerance::exact())]);
    }
}
