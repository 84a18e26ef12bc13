//! The linear layer: three products, bias and residual, in every number format.

use candle_core::{DType, Tensor};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::linear;

use crate::common::{FORMATS, Slots, assert_close, exactly, normals, tolerance};

fn check(dtype: DType, leading: &[usize], inputs: usize, outputs: usize, with_residual: bool) {
    let what = format!("linear {dtype:?} {leading:?}, {inputs} to {outputs}, residual {with_residual}");
    let with = |last: usize| [leading, &[last]].concat();
    let (x, weight) = (normals(1, &with(inputs), dtype), normals(2, &[outputs, inputs], dtype));
    let (bias, dy) = (normals(3, &[outputs], dtype), normals(5, &with(outputs), dtype));
    let residual = with_residual.then(|| normals(4, &with(outputs), dtype));
    let (y, grads) = exactly(
        &[&x.exact, &weight.exact, &bias.exact],
        |_| dy.exact.clone(),
        |t| linear::reference::forward(&t[0], &t[1], &t[2], residual.as_ref().map(|r| &r.exact)),
    );
    let residual = residual.as_ref().map(|r| &r.device);
    let found = linear::forward(&x.device, &weight.device, &bias.device, residual).unwrap();
    assert_close(&what, &found, &y, tolerance(dtype));
    for (write, need_dx, gap) in [(Write::Assign, true, 8), (Write::Add, true, 8), (Write::Assign, false, 5)] {
        let slots = Slots::new(outputs * inputs, outputs, gap);
        let run = |extra: Option<&Tensor>| {
            let places = slots.grads(write);
            linear::backward(&x.device, &weight.device, &dy.device, need_dx, extra, &places).unwrap()
        };
        let dx = run(None);
        slots.check(&what, write, &grads[1], &grads[2], tolerance(dtype));
        assert_eq!(dx.is_some(), need_dx);
        if let Some(dx) = dx {
            assert_close(&format!("{what}: dx"), &dx, &grads[0], tolerance(dtype));
            let extra = normals(6, &with(inputs), dtype);
            let sum = (&grads[0] + &extra.exact).unwrap();
            let what = format!("{what}: dx and a gradient from elsewhere");
            assert_close(&what, &run(Some(&extra.device)).unwrap(), &sum, tolerance(dtype));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_linear() {
    for dtype in FORMATS {
        for residual in [false, true] {
            check(dtype, &[1], 3, 17, residual);
            check(dtype, &[5, 7], 24, 3, residual);
            check(dtype, &[2, 33], 64, 192, residual);
            check(dtype, &[4], 64, 256, residual);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_another_number_format_is_refused() {
    let x = normals(1, &[4, 8], DType::BF16).device;
    let weight: Tensor = normals(2, &[8, 8], DType::F32).device;
    let error = linear::forward(&x, &weight, &normals(3, &[8], DType::BF16).device, None).unwrap_err();
    assert!(error.to_string().contains("linear"), "{error}");
}

/// Whoever made dy has summed it.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_bias_that_has_its_gradient_is_left_alone() {
    for dtype in FORMATS {
        let (x, weight) = (normals(1, &[5, 24], dtype), normals(2, &[16, 24], dtype));
        let dy = normals(3, &[5, 16], dtype);
        for write in [Write::Assign, Write::Add] {
            let slots = Slots::new(16 * 24, 16, 8);
            let places = slots.grads(write).with_bias_summed(true);
            linear::backward(&x.device, &weight.device, &dy.device, false, None, &places).unwrap();
            let exact = dy.exact.t().unwrap().matmul(&x.exact).unwrap();
            slots.check_weight(&format!("{dtype:?}"), write, &exact, tolerance(dtype));
        }
    }
}
