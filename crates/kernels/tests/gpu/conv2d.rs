//! Convolutions: cuDNN's engines, what is done in parts where they cannot fuse, and our own plain kernels.

use candle_core::DType;
use ddpm_kernels::buffer::{DeferredSums, NarrowGradients, ParamGrads};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::conv2d::{self, Algorithm, Conv2d};

use crate::common::{FORMATS, Slots, assert_close, exactly, normals, tolerance};

fn check(dtype: DType, conv: Conv2d, [n, h, w, ci, co]: [usize; 5], with_residual: bool) {
    let what = format!("{conv:?} {dtype:?} [{n}, {h}, {w}, {ci}] to {co}, residual {with_residual}");
    let k = conv.kernel;
    let (x, weight) = (normals(1, &[n, h, w, ci], dtype), normals(2, &[co, k, k, ci], dtype));
    let bias = normals(3, &[co], dtype);
    let side = |side: usize| (side + conv.pad_before + conv.pad_after - k) / conv.stride + 1;
    let out = [n, side(h), side(w), co];
    let dy = normals(5, &out, dtype);
    let residual = with_residual.then(|| normals(4, &out, dtype));
    let (y, grads) = exactly(
        &[&x.exact, &weight.exact, &bias.exact],
        |_| dy.exact.clone(),
        |t| conv2d::reference::forward(&conv, &t[0], &t[1], &t[2], residual.as_ref().map(|r| &r.exact)),
    );
    let residual = residual.as_ref().map(|r| &r.device);
    let found = conv2d::forward(&conv, &x.device, &weight.device, &bias.device, residual).unwrap();
    assert_close(&what, &found, &y, tolerance(dtype));
    for (write, need_dx, gap) in [(Write::Assign, true, 8), (Write::Add, true, 8), (Write::Assign, false, 5)] {
        let slots = Slots::new(co * k * k * ci, co, gap);
        let grads_to = slots.grads(write);
        let dx = conv2d::backward(&conv, &x.device, &weight.device, &dy.device, need_dx, &grads_to).unwrap();
        slots.check(&what, write, &grads[1], &grads[2], tolerance(dtype));
        assert_eq!(dx.is_some(), need_dx);
        if let Some(dx) = dx {
            assert_close(&format!("{what}: dx"), &dx, &grads[0], tolerance(dtype));
        }
    }
}

fn shapes(check: impl Fn(Conv2d, [usize; 5], bool)) {
    for residual in [false, true] {
        check(Conv2d::same(3), [2, 8, 8, 16, 32], residual);
        check(Conv2d::same(3), [1, 5, 7, 3, 8], residual);
        check(Conv2d::same(3), [3, 4, 4, 24, 3], residual);
        check(Conv2d::same(1), [2, 5, 3, 16, 24], residual);
        check(Conv2d::downsample(0), [2, 8, 8, 16, 16], residual);
        check(Conv2d::downsample(1), [2, 6, 6, 8, 16], residual);
    }
    check(Conv2d::same(3), [1, 1, 1, 8, 8], false);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_conv2d() {
    for dtype in FORMATS {
        shapes(|conv, sizes, residual| check(dtype, conv, sizes, residual));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_conv2d_by_our_own_kernels() {
    for dtype in FORMATS {
        shapes(|conv, sizes, residual| {
            check(dtype, Conv2d { algorithm: Algorithm::Exact, ..conv }, sizes, residual);
        });
    }
}

/// Images of few channels beside such of many: rows shorter and longer than a warp takes, more pixels than a block, channels
/// that fill the kernels' tiles and such that do not.
#[test]
#[ignore = "needs a GPU"]
fn gpu_conv2d_of_few_channels() {
    for dtype in FORMATS {
        few_channels(|[n, h, w, ci, co]| check(dtype, Conv2d::same(3), [n, h, w, ci, co], false));
    }
}

fn few_channels(check: impl Fn([usize; 5])) {
    for (few, many) in [(1, 32), (3, 128), (3, 96), (4, 64), (6, 160)] {
        for [n, h, w] in [[1, 1, 1], [3, 5, 7], [2, 19, 16], [1, 21, 35]] {
            check([n, h, w, few, many]);
            check([n, h, w, many, few]);
        }
    }
}

/// As in a pass, where they wait for those of other layers; twice, for the second pass finds what the first left.
#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_of_few_channels_are_summed_with_others() {
    let conv = Conv2d::same(3);
    for dtype in [DType::BF16, DType::F16] {
        few_channels(|[n, h, w, inputs, outputs]| {
            let (x, dy) = (normals(1, &[n, h, w, inputs], dtype), normals(2, &[n, h, w, outputs], dtype));
            let (weight, bias) = (normals(3, &[outputs, 3, 3, inputs], dtype), normals(4, &[outputs], dtype));
            let (_, exact) = exactly(
                &[&x.exact, &weight.exact, &bias.exact],
                |_| dy.exact.clone(),
                |t| conv2d::reference::forward(&conv, &t[0], &t[1], &t[2], None),
            );
            let sums = DeferredSums::default();
            for write in [Write::Assign, Write::Add] {
                let slots = Slots::new(weight.exact.elem_count(), outputs, 3);
                let places = ParamGrads { sums: Some(&sums), ..slots.grads(write) };
                conv2d::backward(&conv, &x.device, &weight.device, &dy.device, false, &places).unwrap();
                sums.settle(slots.buffer()).unwrap();
                // Summed in f32 from what was rounded before, so nothing is rounded to 16 bits.
                slots.check(
                    &format!("{dtype:?} {inputs} to {outputs}"),
                    write,
                    &exact[1],
                    &exact[2],
                    tolerance(DType::F32),
                );
            }
        });
    }
}

/// In every format, overwriting and adding; twice, for the second pass finds what the first left.
#[test]
#[ignore = "needs a GPU"]
fn gpu_weight_gradients_that_wait_are_settled_together() {
    let conv = Conv2d::same(3);
    for dtype in FORMATS {
        // Longer than a block's piece; of a length that no wide load divides; at a place where none fits.
        for (inputs, outputs, gap) in [(64, 64, 8), (3, 7, 8), (8, 16, 5)] {
            let (x, dy) = (normals(1, &[2, 5, 6, inputs], dtype), normals(2, &[2, 5, 6, outputs], dtype));
            let weight = normals(3, &[outputs, 3, 3, inputs], dtype);
            let bias = normals(4, &[outputs], dtype);
            let (_, exact) = exactly(
                &[&x.exact, &weight.exact, &bias.exact],
                |_| dy.exact.clone(),
                |t| conv2d::reference::forward(&conv, &t[0], &t[1], &t[2], None),
            );
            let narrow = NarrowGradients::default();
            for write in [Write::Assign, Write::Add, Write::Assign] {
                let slots = Slots::new(weight.exact.elem_count(), outputs, gap);
                let places = ParamGrads { narrow: Some(&narrow), bias_summed: true, ..slots.grads(write) };
                conv2d::backward(&conv, &x.device, &weight.device, &dy.device, false, &places).unwrap();
                narrow.settle(slots.buffer()).unwrap();
                let what = format!("{dtype:?} {inputs} to {outputs}");
                slots.check_weight(&what, write, &exact[1], tolerance(dtype));
            }
        }
    }
}

/// A layer that is used twice in a pass, and one that was forgotten.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_gradient_waits_once_and_may_be_forgotten() {
    let (conv, dtype) = (Conv2d::same(3), DType::BF16);
    let (x, dy) = (normals(1, &[1, 4, 4, 8], dtype), normals(2, &[1, 4, 4, 8], dtype));
    let weight = normals(3, &[8, 3, 3, 8], dtype);
    let narrow = NarrowGradients::default();
    let backward = |slots: &Slots, write| {
        let places = ParamGrads { narrow: Some(&narrow), ..slots.grads(write) };
        conv2d::backward(&conv, &x.device, &weight.device, &dy.device, false, &places).unwrap();
    };
    let once = Slots::new(8 * 9 * 8, 8, 8);
    backward(&once, Write::Assign);
    narrow.settle(once.buffer()).unwrap();
    let twice = Slots::new(8 * 9 * 8, 8, 8);
    backward(&twice, Write::Add);
    backward(&twice, Write::Add);
    narrow.settle(twice.buffer()).unwrap();
    let forgotten = Slots::new(8 * 9 * 8, 8, 8);
    let before = forgotten.buffer().to_vec().unwrap();
    backward(&forgotten, Write::Assign);
    narrow.forget();
    narrow.settle(forgotten.buffer()).unwrap();
    let (once, twice) = (once.buffer().to_vec().unwrap(), twice.buffer().to_vec().unwrap());
    for i in 8..8 + 8 * 9 * 8 {
        let expected = before[i] + 2.0 * once[i];
        assert!((twice[i] - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{i}: {} for {expected}", twice[i]);
    }
    assert_eq!(forgotten.buffer().to_vec().unwrap()[8..8 + 8 * 9 * 8], before[8..8 + 8 * 9 * 8]);
}
