//! Numbers far from 1.

use candle_core::{Device, Tensor};
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::ops::group_norm::GroupNorm;
use ddpm_kernels::ops::{attention, elementwise, linear};

use crate::common::{Tolerance, assert_close, f64s, gaussian, largest, normal, parameter_gradients, widen};
use crate::group_norm::{self, Setting};

#[track_caller]
fn assert_finite(what: &str, x: &Tensor) {
    assert!(f64s(x).iter().all(|v| v.is_finite()), "{what}");
}

/// In f32 the mean square minus the squared mean has an error of 6 here, six times the variance itself.
#[test]
fn group_norm_survives_a_mean_of_ten_thousand_spreads() {
    for (silu, mean) in [(false, 1e4), (true, 1e4), (false, -1e4)] {
        group_norm::check(&Setting {
            norm: GroupNorm { groups: 4, eps: 1e-5, silu },
            shape: vec![2, 13, 9, 24],
            modulated: true,
            extra: false,
            input: (mean, 1.0),
        });
    }
}

/// At the smallest of these, `eps` is a thousand times the variance.
#[test]
fn group_norm_is_right_for_large_and_small_spreads() {
    for spread in [1e-4, 1e-2, 1e2, 1e4] {
        let norm = GroupNorm { groups: 2, eps: 1e-5, silu: false };
        let shape = vec![1, 5, 7, 6];
        group_norm::check(&Setting { norm, shape, modulated: false, extra: true, input: (0.0, spread) });
    }
}

#[test]
fn group_norm_of_a_constant_or_tiny_image_is_its_bias() {
    let norm = GroupNorm { groups: 2, eps: 1e-5, silu: false };
    let (weight, bias) = (normal(2, &[6]), normal(3, &[6]));
    for x in [gaussian(1, &[1, 5, 7, 6], 7.25, 0.0), gaussian(1, &[1, 5, 7, 6], 0.0, 1e-30)] {
        let (y, statistics) = ddpm_kernels::ops::group_norm::forward(&norm, &x, &weight, &bias, None).unwrap();
        let want = widen(&bias).broadcast_as(x.dims()).unwrap().contiguous().unwrap();
        // The mean, times 316 = 1 / sqrt(eps), is rounded twice.
        assert_close("group_norm", &y, &want, &Tolerance::sum(4).condition(7.25 * 316.3));
        let dy = normal(4, x.dims());
        let grads = parameter_gradients(&weight, &bias, |g| {
            ddpm_kernels::ops::group_norm::backward(&norm, &x, &weight, &bias, None, &statistics, &dy, None, g).unwrap()
        });
        assert_finite("dx", &grads.returned.dx);
        assert_finite("dweight", &grads.weight);
    }
}

/// Queries and keys whose scores are +-1e4: the probabilities are 0 and 1, or shared between equal scores.
#[test]
fn attention_survives_scores_of_ten_thousand() {
    let (tokens, d) = (6, 4);
    let size = (1e4 / 2.0f64).sqrt() as f32;
    let mut qkv = Vec::new();
    for token in 0..tokens {
        let sign = if token % 2 == 0 { size } else { -size };
        qkv.extend([sign; 4].into_iter().chain([sign; 4]).chain([token as f32 + 1.0; 4]));
    }
    let qkv = Tensor::from_vec(qkv, (1, tokens, 3 * d), &Device::Cpu).unwrap();
    let (y, probabilities) = attention::forward(&qkv, 1).unwrap();
    let want = widen(&Tensor::new(&[3.0f32, 4.0, 3.0, 4.0, 3.0, 4.0], &Device::Cpu).unwrap());
    let want = want.reshape((1, tokens, 1)).unwrap().broadcast_as((1, tokens, d)).unwrap().contiguous().unwrap();
    assert_close("attention", &y, &want, &Tolerance::sum(tokens + 16));
    let dqkv = attention::backward(&qkv, 1, &probabilities, &normal(2, &[1, tokens, d])).unwrap();
    assert_finite("dqkv", &dqkv);
}

#[test]
fn attention_with_random_scores_in_the_ten_thousands_agrees_with_its_twin() {
    let qkv = normal(1, &[2, 16, 24]).affine(100.0, 0.0).unwrap();
    let (y, probabilities) = attention::forward(&qkv, 2).unwrap();
    let want = attention::reference::forward(&widen(&qkv), 2).unwrap();
    assert_close("attention", &y, &want, &Tolerance::sum(2 * 16 + 2 * 4).condition(1e4));
    assert_finite("dqkv", &attention::backward(&qkv, 2, &probabilities, &normal(2, &[2, 16, 8])).unwrap());
}

/// The truth for `|x|` beyond 88 is below 1e-36, and the exponential stops there.
#[test]
fn silu_is_right_from_the_smallest_number_to_the_largest_activation() {
    let magnitudes = [0.0f32, f32::MIN_POSITIVE, 1e-20, 1e-6, 0.5, 1.278, 10.0, 17.0, 50.0, 87.0, 88.5, 1e4, 1e10];
    let x: Vec<f32> = magnitudes.iter().flat_map(|&m| [m, -m]).collect();
    let truth = |f: fn(f64) -> f64| {
        Tensor::from_vec(x.iter().map(|&v| f(f64::from(v))).collect(), x.len(), &Device::Cpu).unwrap()
    };
    let x = Tensor::new(&x[..], &Device::Cpu).unwrap();
    let (y, slope) = (truth(|x| x / (1.0 + (-x).exp())), truth(silu_slope));
    let got = elementwise::silu(&x).unwrap();
    let of_y = Tolerance::sum(16).of(&(y.abs().unwrap() + 1e-20).unwrap());
    assert_close("silu", &got, &y, &of_y);
    let got = elementwise::silu_backward(&x, &x.ones_like().unwrap()).unwrap();
    // The terms `s` and `x s (1 - s)` cancel near -1.278.
    let terms = truth(|x| {
        let s = 1.0 / (1.0 + (-x).exp());
        s * (1.0 + x.abs() * (1.0 - s)) + 1e-20
    });
    assert_close("silu'", &got, &slope, &Tolerance::sum(32).of(&terms));
}

fn silu_slope(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s + x * s / (1.0 + x.exp())
}

#[test]
fn convolutions_and_linear_layers_scale_with_their_input() {
    for scale in [1e-30, 1e-15, 1e15, 1e30] {
        let x = normal(1, &[1, 16, 16, 16]).affine(scale, 0.0).unwrap();
        let (weight, bias) = (normal(2, &[16, 3, 3, 16]), normal(3, &[16]).affine(scale, 0.0).unwrap());
        let conv = Conv2d::same(3);
        let y = conv2d::forward(&conv, &x, &weight, &bias, None).unwrap();
        let twin =
            |f: fn(&Tensor) -> Tensor| conv2d::reference::forward(&conv, &f(&x), &f(&weight), &f(&bias), None).unwrap();
        let magnitude = twin(|t| widen(t).sqr().unwrap()).sqrt().unwrap();
        assert_close("conv2d", &y, &twin(widen), &Tolerance::winograd(9 * 16 + 1, &magnitude));

        let x = x.reshape((256, 16)).unwrap();
        let weight = normal(4, &[16, 16]);
        let y = linear::forward(&x, &weight, &bias, None).unwrap();
        let want = linear::reference::forward(&widen(&x), &widen(&weight), &widen(&bias), None).unwrap();
        assert!(largest(&want) > 0.0);
        assert_close("linear", &y, &want, &Tolerance::sum(17));
    }
}
