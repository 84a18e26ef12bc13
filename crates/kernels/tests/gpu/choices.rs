//! Every way that the libraries propose for a computation, not only the one that was fastest here; and that a process
//! which is told the ways of another takes them. And f32 with shortened factors, which has ways of its own.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::cuda::{Choices, Gpu};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::ops::linear;

use crate::common::{FORMATS, assert_close, normals, tolerance};

/// A convolution and a product there and back, on a GPU that is told `choices`: results, and what it knows then.
fn compute(dtype: DType, tf32: bool, choices: Choices) -> (Vec<Tensor>, Choices) {
    let device = ddpm_kernels::cuda::open(0).unwrap();
    let gpu = Gpu::of(&device).unwrap();
    gpu.choose(choices);
    gpu.set_tf32(tf32);
    let on =
        |seed, shape: &[usize]| normals(seed, shape, dtype).exact.to_dtype(dtype).unwrap().to_device(&device).unwrap();
    let (n, side, ci, co) = (2, 8, 16, 32);
    let conv = Conv2d::same(3);
    let (x, weight, bias) = (on(1, &[n, side, side, ci]), on(2, &[co, 3, 3, ci]), on(3, &[co]));
    let dy = on(4, &[n, side, side, co]);
    let y = conv2d::forward(&conv, &x, &weight, &bias, Some(&dy)).unwrap();
    let (weights, all) = (co * 9 * ci, co * 9 * ci + co);
    let buffer = FlatBuffer::from_vec(vec![0.0; all], &device).unwrap();
    let grads = ParamGrads::new(&buffer, 0..weights, weights..all, Write::Assign);
    let dx = conv2d::backward(&conv, &x, &weight, &dy, true, &grads).unwrap().unwrap();
    let (w, b) = (on(5, &[24, co]), on(6, &[24]));
    let z = linear::forward(&y, &w, &b, None).unwrap();
    let written = Tensor::from_vec(buffer.to_vec().unwrap(), all, &Device::Cpu).unwrap();
    let results = [y, dx, z, written];
    let results = results.iter().map(|t| t.to_device(&Device::Cpu).unwrap()).collect();
    (results, gpu.choices())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_every_proposed_way_computes_the_same() {
    for dtype in FORMATS {
        let (expected, found) = compute(dtype, false, BTreeMap::new());
        assert!(found.values().any(|(_, of)| *of > 1), "nothing to choose from: {found:?}");
        for way in 0..found.values().map(|(_, of)| *of).max().unwrap() {
            let told: Choices = found.iter().map(|(k, (_, of))| (k.clone(), (way.min(of - 1), *of))).collect();
            let (results, known) = compute(dtype, false, told.clone());
            assert_eq!(known, told, "what was told was looked for again");
            for (number, (result, expected)) in results.iter().zip(&expected).enumerate() {
                assert_close(&format!("{dtype:?}, way {way}, result {number}"), result, expected, tolerance(dtype));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_ways_of_another_process_give_its_bits() {
    let (expected, found) = compute(DType::BF16, false, BTreeMap::new());
    let (results, _) = compute(DType::BF16, false, found);
    for (result, expected) in results.iter().zip(&expected) {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert!(bits(result).iter().zip(bits(expected)).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_tf32_rounds_the_factors_of_f32_and_no_more() {
    const TF32: f64 = 2e-3;
    let (expected, exact) = compute(DType::F32, false, BTreeMap::new());
    let (results, rounded) = compute(DType::F32, true, BTreeMap::new());
    assert!(exact.keys().all(|computation| !rounded.contains_key(computation)), "{rounded:?}");
    for (number, (result, expected)) in results.iter().zip(&expected).enumerate() {
        assert_close(&format!("result {number}"), result, expected, TF32);
    }
}
