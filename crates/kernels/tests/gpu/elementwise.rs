//! Sums, multiples, casts, offsets, concatenation, activations.

use candle_core::Tensor;
use ddpm_kernels::ops::activation::{self, Activation};
use ddpm_kernels::ops::elementwise::{self, reference};

use crate::common::{FORMATS, assert_close, both, download, exactly, gpu, normals, tolerance};

/// One element, odd sizes, whole packs, more than one block.
const SHAPES: [&[usize]; 4] = [&[1, 1, 1, 1], &[3, 5, 7, 11], &[2, 8, 8, 64], &[1, 33, 61, 3]];

#[test]
#[ignore = "needs a GPU"]
fn gpu_add() {
    for dtype in FORMATS {
        for shape in SHAPES {
            let (a, b) = (normals(1, shape, dtype), normals(2, shape, dtype));
            let y = elementwise::add(&a.device, &b.device).unwrap();
            assert_close("add", &y, &(&a.exact + &b.exact).unwrap(), tolerance(dtype));
        }
    }
}

/// A view that begins in the middle of sixteen bytes.
#[test]
#[ignore = "needs a GPU"]
fn gpu_unaligned_views() {
    for dtype in FORMATS {
        let (a, b) = (normals(1, &[5, 1, 1, 17], dtype), normals(2, &[2, 1, 1, 17], dtype));
        let cut = |t: &Tensor| t.narrow(0, 1, 2).unwrap();
        let y = elementwise::add(&cut(&a.device), &b.device).unwrap();
        assert_close("add", &y, &(cut(&a.exact) + &b.exact).unwrap(), tolerance(dtype));
        let wide = normals(3, &[3, 1, 1, 40], dtype);
        let joined = elementwise::concat(&wide.device.narrow(0, 1, 2).unwrap(), &b.device).unwrap();
        let exact = Tensor::cat(&[&wide.exact.narrow(0, 1, 2).unwrap(), &b.exact], 3).unwrap();
        assert_close("concat", &joined, &exact, 0.0);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_scale() {
    for dtype in FORMATS {
        for shape in SHAPES {
            let x = normals(1, shape, dtype);
            let y = elementwise::scale(&x.device, -0.37).unwrap();
            assert_close("scale", &y, &(&x.exact * -0.37).unwrap(), tolerance(dtype));
        }
    }
}

/// The same roundings as the CPU's, from and to every format.
#[test]
#[ignore = "needs a GPU"]
fn gpu_cast() {
    for from in FORMATS {
        for to in FORMATS {
            for shape in SHAPES {
                let x = normals(1, shape, from);
                let y = elementwise::cast(&x.device, to).unwrap();
                assert_eq!(y.dtype(), to);
                let expected = x.exact.to_dtype(from).unwrap().to_dtype(to).unwrap();
                assert_eq!(download(&y), download(&expected), "{from:?} to {to:?} {shape:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_silu() {
    for dtype in FORMATS {
        for shape in SHAPES {
            let x = both(&(normals(1, shape, dtype).exact * 4.0).unwrap(), dtype);
            let dy = normals(2, shape, dtype);
            let (y, grads) = exactly(&[&x.exact], |_| dy.exact.clone(), |t| reference::silu(&t[0]));
            assert_close("silu", &elementwise::silu(&x.device).unwrap(), &y, tolerance(dtype));
            let dx = elementwise::silu_backward(&x.device, &dy.device).unwrap();
            assert_close("silu: dx", &dx, &grads[0], tolerance(dtype));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_far_from_zero_silu_is_the_identity_or_nothing() {
    let x = Tensor::new(&[-1e30f32, -1e4, -89.0, 0.0, 89.0, 1e4, 1e30], gpu()).unwrap();
    let y = download(&elementwise::silu(&x).unwrap());
    assert!(y[..3].iter().all(|v| v.abs() < 1e-30) && y[3..] == [0.0, 89.0, 1e4, f64::from(1e30f32)], "{y:?}");
    let dx = download(&elementwise::silu_backward(&x, &x.ones_like().unwrap()).unwrap());
    assert!(dx[..2].iter().all(|v| v.abs() < 1e-30) && dx[3] == 0.5 && dx[4..] == [1.0; 3], "{dx:?}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_activation() {
    for f in [Activation::Relu, Activation::Gelu, Activation::Mish] {
        for dtype in FORMATS {
            for shape in SHAPES {
                // Away from ReLU's kink.
                let x = (normals(1, shape, dtype).exact * 3.0).unwrap();
                let x = both(&(&x + (x.sign().unwrap() * 0.1).unwrap()).unwrap(), dtype);
                let dy = normals(2, shape, dtype);
                let (y, grads) =
                    exactly(&[&x.exact], |_| dy.exact.clone(), |t| activation::reference::forward(f, &t[0]));
                let what = format!("{f:?} {dtype:?}");
                assert_close(&what, &activation::forward(f, &x.device).unwrap(), &y, tolerance(dtype));
                let dx = activation::backward(f, &x.device, &dy.device).unwrap();
                assert_close(&format!("{what}: dx"), &dx, &grads[0], tolerance(dtype));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_add_channels() {
    for dtype in FORMATS {
        // The last one is long enough for several blocks to share a sum.
        for shape in [[1, 1, 1, 1], [3, 5, 7, 11], [2, 8, 8, 64], [2, 4, 4, 328], [1, 70, 70, 24]] {
            let what = format!("add_channels {dtype:?} {shape:?}");
            let (x, offset) = (normals(1, &shape, dtype), normals(2, &[shape[0], shape[3]], dtype));
            let dy = normals(3, &shape, dtype);
            let twin = |t: &[Tensor]| reference::add_channels(&t[0], &t[1]);
            let (y, grads) = exactly(&[&x.exact, &offset.exact], |_| dy.exact.clone(), twin);
            let found = elementwise::add_channels(&x.device, &offset.device).unwrap();
            assert_close(&what, &found, &y, tolerance(dtype));
            let d_offset = elementwise::add_channels_backward(&dy.device).unwrap();
            assert_close(&format!("{what}: gradient"), &d_offset, &grads[1], tolerance(dtype));
            let again = elementwise::add_channels_backward(&dy.device).unwrap();
            assert_eq!(download(&d_offset), download(&again), "{what}: the same bits every time");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_concat() {
    for dtype in FORMATS {
        for ([n, h, w], (ca, cb)) in
            [([1, 1, 1], (1, 1)), ([2, 5, 7], (3, 8)), ([2, 4, 4], (64, 24)), ([3, 3, 2], (8, 17))]
        {
            let (a, b) = (normals(1, &[n, h, w, ca], dtype), normals(2, &[n, h, w, cb], dtype));
            let y = elementwise::concat(&a.device, &b.device).unwrap();
            assert_close("concat", &y, &Tensor::cat(&[&a.exact, &b.exact], 3).unwrap(), 0.0);
            let (da, db) = elementwise::concat_backward(&y, ca).unwrap();
            assert_close("concat: da", &da, &a.exact, 0.0);
            assert_close("concat: db", &db, &b.exact, 0.0);
        }
    }
}
