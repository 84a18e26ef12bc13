//! The same bits every time, however the threads were scheduled.

use candle_core::{Device, Tensor};
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::conv2d::{self, Algorithm, Conv2d};
use ddpm_kernels::ops::group_norm::{self, GroupNorm};
use ddpm_kernels::ops::{attention, elementwise, linear};

use crate::common::{bits, normal};

/// Large enough for both cores to have something to do.
const IMAGES: [usize; 4] = [4, 18, 22, 32];

#[track_caller]
fn assert_repeats(run: impl Fn(&ParamGrads<'_>) -> Vec<Tensor>) {
    let once = || {
        let buffer = FlatBuffer::zeros(32 * 9 * 32 + 32, &Device::Cpu).unwrap();
        let bias = buffer.len() - 32..buffer.len();
        let results = run(&ParamGrads::new(&buffer, 0..bias.start, bias, Write::Assign));
        let mut all: Vec<Vec<u32>> = results.iter().map(bits).collect();
        all.push(bits(&buffer.view(0, &[buffer.len()]).unwrap()));
        all
    };
    let first = once();
    for run in 1..4 {
        assert!(once() == first, "run {run} differs from the first");
    }
}

/// The same places for a weight of `len` elements.
fn narrowed<'a>(grads: &ParamGrads<'a>, len: usize) -> ParamGrads<'a> {
    ParamGrads { weight: 0..len, ..grads.clone() }
}

#[test]
fn convolutions_repeat() {
    let (x, weight, bias) = (normal(1, &IMAGES), normal(2, &[32, 3, 3, 32]), normal(3, &[32]));
    for algorithm in [Algorithm::Fastest, Algorithm::Exact] {
        let conv = Conv2d { algorithm, ..Conv2d::same(3) };
        assert_repeats(|grads| {
            let y = conv2d::forward(&conv, &x, &weight, &bias, Some(&x)).unwrap();
            let dx = conv2d::backward(&conv, &x, &weight, &y, true, grads).unwrap().unwrap();
            vec![y, dx]
        });
    }
}

#[test]
fn group_norm_repeats() {
    let norm = GroupNorm { groups: 8, eps: 1e-5, silu: true };
    let (x, weight, bias, modulation) = (normal(1, &IMAGES), normal(2, &[32]), normal(3, &[32]), normal(4, &[4, 64]));
    assert_repeats(|grads| {
        let grads = narrowed(grads, 32);
        let (y, statistics) = group_norm::forward(&norm, &x, &weight, &bias, Some(&modulation)).unwrap();
        let got = group_norm::backward(&norm, &x, &weight, &bias, Some(&modulation), &statistics, &y, Some(&x), &grads)
            .unwrap();
        vec![y, got.dx, got.modulation.unwrap()]
    });
}

#[test]
fn linear_layers_attention_and_sums_over_pixels_repeat() {
    let (x, weight, bias) = (normal(1, &[4, 396, 32]), normal(2, &[32, 32]), normal(3, &[32]));
    let qkv = normal(4, &[4, 99, 96]);
    assert_repeats(|grads| {
        let grads = narrowed(grads, 32 * 32);
        let y = linear::forward(&x, &weight, &bias, None).unwrap();
        let dx = linear::backward(&x, &weight, &y, true, None, &grads).unwrap().unwrap();
        let (out, probabilities) = attention::forward(&qkv, 4).unwrap();
        let dqkv = attention::backward(&qkv, 4, &probabilities, &out).unwrap();
        let offset = elementwise::add_channels_backward(&y.reshape(&IMAGES).unwrap()).unwrap();
        vec![y, dx, out, dqkv, offset]
    });
}
