//! Every candidate that the libraries name for a computation, not only the one that was fastest here; and that a process
//! which is given the choices of another takes them. And f32 with shortened factors, which has candidates of its own.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::cuda::{Choices, Gpu};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::ops::linear;

use crate::common::{FORMATS, assert_close, normals, tolerance};

/// A convolution and a layer of products there and back, on a GPU that is given `choices`: results, and what it knows then.
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
    let (of_linear, dz) = (FlatBuffer::from_vec(vec![0.0; 24 * co + 24], &device).unwrap(), on(7, z.dims()));
    let places = ParamGrads::new(&of_linear, 0..24 * co, 24 * co..24 * co + 24, Write::Assign);
    let dy2 = linear::backward(&y, &w, &dz, true, None, &places).unwrap().unwrap();
    let written = |buffer: &FlatBuffer| {
        let numbers = buffer.to_vec().unwrap();
        Tensor::from_vec(numbers.clone(), numbers.len(), &Device::Cpu).unwrap()
    };
    let results = [y, dx, z, dy2, written(&buffer), written(&of_linear)];
    let results = results.iter().map(|t| t.to_device(&Device::Cpu).unwrap()).collect();
    (results, gpu.choices())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_every_candidate_computes_the_same() {
    for dtype in FORMATS {
        let (expected, found) = compute(dtype, false, BTreeMap::new());
        assert!(found.values().any(|(_, of)| *of > 1), "nothing to choose from: {found:?}");
        let bias = found.iter().filter(|(computation, _)| computation.starts_with("BiasGradient"));
        assert_eq!(bias.map(|(_, (_, of))| *of).collect::<Vec<_>>(), [2], "apart and together: {found:?}");
        for number in 0..found.values().map(|(_, of)| *of).max().unwrap() {
            let given: Choices = found.iter().map(|(k, (_, of))| (k.clone(), (number.min(of - 1), *of))).collect();
            let (results, known) = compute(dtype, false, given.clone());
            assert_eq!(known, given, "a given choice was timed again");
            for (result_number, (result, expected)) in results.iter().zip(&expected).enumerate() {
                assert_close(
                    &format!("{dtype:?}, candidate {number}, result {result_number}"),
                    result,
                    expected,
                    tolerance(dtype),
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_choices_of_another_process_give_its_bits() {
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

/// cuDNN names its tensor cores' engines first, of which none keeps all of f32.
#[test]
#[ignore = "needs a GPU"]
fn gpu_exact_f32_has_more_convolutions_to_choose_from_than_one_fallback() {
    let (_, found) = compute(DType::F32, false, BTreeMap::new());
    let counts: Vec<usize> = found.iter().filter(|(key, _)| key.contains("request")).map(|(_, (_, of))| *of).collect();
    assert!(counts.len() >= 3 && counts.iter().all(|of| *of > 1), "{found:?}");
}

/// No clock may decide between two sums, and what is chosen must be the same in every process.
#[test]
#[ignore = "needs a GPU"]
fn gpu_where_bits_must_be_the_same_a_bias_is_summed_apart() {
    let device = ddpm_kernels::cuda::open(0).unwrap();
    let gpu = Gpu::of(&device).unwrap();
    gpu.set_deterministic(true);
    let on = |seed, shape: &[usize]| normals(seed, shape, DType::F32).exact.to_dtype(DType::F32).unwrap();
    let [x, weight, dy] = [on(1, &[40, 16]), on(2, &[8, 16]), on(3, &[40, 8])].map(|t| t.to_device(&device).unwrap());
    let buffer = FlatBuffer::zeros(8 * 16 + 8, &device).unwrap();
    let places = ParamGrads::new(&buffer, 0..128, 128..136, Write::Assign);
    linear::backward(&x, &weight, &dy, false, None, &places).unwrap();
    assert!(gpu.choices().is_empty(), "{:?}", gpu.choices());
}
