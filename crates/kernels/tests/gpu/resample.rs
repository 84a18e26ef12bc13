//! Doubling and halving images.

use candle_core::Tensor;
use ddpm_kernels::ops::resample;

use crate::common::{FORMATS, assert_close, exactly, normals, tolerance};

#[test]
#[ignore = "needs a GPU"]
fn gpu_upsample() {
    for dtype in FORMATS {
        for shape in [[1, 1, 1, 1], [2, 5, 7, 3], [3, 4, 2, 24], [1, 8, 8, 64]] {
            let [n, h, w, c] = shape;
            let (x, dy) = (normals(1, &shape, dtype), normals(2, &[n, 2 * h, 2 * w, c], dtype));
            let twin = |t: &[Tensor]| resample::reference::upsample(&t[0]);
            let (y, grads) = exactly(&[&x.exact], |_| dy.exact.clone(), twin);
            assert_close("upsample", &resample::upsample(&x.device).unwrap(), &y, 0.0);
            let dx = resample::upsample_backward(&dy.device).unwrap();
            assert_close("upsample: dx", &dx, &grads[0], tolerance(dtype));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_downsample() {
    for dtype in FORMATS {
        for shape in [[1, 2, 2, 1], [2, 6, 14, 3], [3, 4, 2, 24], [1, 16, 16, 64]] {
            let [n, h, w, c] = shape;
            let (x, dy) = (normals(1, &shape, dtype), normals(2, &[n, h / 2, w / 2, c], dtype));
            let twin = |t: &[Tensor]| resample::reference::downsample(&t[0]);
            let (y, grads) = exactly(&[&x.exact], |_| dy.exact.clone(), twin);
            assert_close("downsample", &resample::downsample(&x.device).unwrap(), &y, tolerance(dtype));
            let dx = resample::downsample_backward(&dy.device).unwrap();
            assert_close("downsample: dx", &dx, &grads[0], tolerance(dtype));
        }
    }
}
