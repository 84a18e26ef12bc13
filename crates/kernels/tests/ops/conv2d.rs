//! Convolution: both algorithms, every geometry the networks use and some they do not.

use candle_core::Tensor;
use ddpm_kernels::ops::conv2d::{self, Algorithm, Conv2d};
use proptest::prelude::*;

use crate::common::{Answer, Case, Tolerance, bits, normal, parameter_gradients};

/// The sizes of a convolution's operands.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n: usize,
    h: usize,
    w: usize,
    ci: usize,
    co: usize,
}

const fn sizes(n: usize, h: usize, w: usize, ci: usize, co: usize) -> Sizes {
    Sizes { n, h, w, ci, co }
}

fn exact(conv: Conv2d) -> Conv2d {
    Conv2d { algorithm: Algorithm::Exact, ..conv }
}

/// Whether the kernel is expected to transform: only then is the wider bound allowed.
fn transforms(conv: &Conv2d, s: Sizes) -> bool {
    *conv == Conv2d::same(3)
        && s.ci.is_multiple_of(16)
        && s.co.is_multiple_of(16)
        && s.n * s.h.div_ceil(4) * s.w.div_ceil(4) >= 16
}

/// Output, input, weight, bias (and residual): the number of terms in each of their sums.
fn tolerances(conv: &Conv2d, s: Sizes, magnitude: &Answer) -> (Tolerance, Vec<Tolerance>) {
    let outputs = magnitude.y.elem_count() / s.co;
    let area = conv.kernel * conv.kernel;
    let product = |terms: usize, m: &Tensor| match transforms(conv, s) {
        true => Tolerance::winograd(terms, m),
        false => Tolerance::sum(terms).of(m),
    };
    let grads = [
        product(area * s.co, &magnitude.grads[0]),
        product(outputs, &magnitude.grads[1]),
        Tolerance::sum(outputs).of(&magnitude.grads[2]),
        Tolerance::exact(),
    ];
    (product(area * s.ci + 2, &magnitude.y), grads[..magnitude.grads.len()].to_vec())
}

#[track_caller]
fn check(conv: Conv2d, s: Sizes, with_residual: bool) {
    let op = format!("conv2d {conv:?} {s:?}");
    let x = normal(1, &[s.n, s.h, s.w, s.ci]);
    let weight = normal(2, &[s.co, conv.kernel, conv.kernel, s.ci]);
    let bias = normal(3, &[s.co]);
    let out = |side: usize| (side + conv.pad_before + conv.pad_after - conv.kernel) / conv.stride + 1;
    let residual = with_residual.then(|| normal(4, &[s.n, out(s.h), out(s.w), s.co]));
    let twin = |t: &[Tensor]| conv2d::reference::forward(&conv, &t[0], &t[1], &t[2], t.get(3));
    let mut operands = vec![("x", &x), ("weight", &weight), ("bias", &bias)];
    operands.extend(residual.as_ref().map(|r| ("residual", r)));
    let case = Case::new(&op, &operands, &twin);
    let (want, (y_tolerance, tolerances)) = (case.want(), tolerances(&conv, s, &case.magnitude()));

    let y = conv2d::forward(&conv, &x, &weight, &bias, residual.as_ref()).unwrap();
    let backward = |need_dx| {
        parameter_gradients(&weight, &bias, |g| conv2d::backward(&conv, &x, &weight, &case.dy, need_dx, g).unwrap())
    };
    let (with_dx, without_dx) = (backward(true), backward(false));
    assert!(without_dx.returned.is_none(), "{op}: no gradient of x was asked for");
    without_dx.assert_same_bits(&with_dx);
    let dx = with_dx.returned.as_ref().expect("the gradient of x was asked for");
    let grads: Vec<_> = [dx, &with_dx.weight, &with_dx.bias, &case.dy].into_iter().zip(tolerances.clone()).collect();
    case.check(&want, (&y, &y_tolerance), &grads);
    let [_, weight_tolerance, bias_tolerance, ..] = &tolerances[..] else { unreachable!("three operands at least") };
    with_dx.check_added(&op, [(&want.grads[1], weight_tolerance.clone()), (&want.grads[2], bias_tolerance.clone())]);
}

#[test]
fn a_3x3_convolution_of_stride_1_is_right_for_any_channels() {
    for s in [sizes(1, 5, 7, 3, 17), sizes(2, 13, 9, 24, 3), sizes(1, 1, 1, 17, 24), sizes(1, 5, 7, 1, 1)] {
        check(Conv2d::same(3), s, false);
        check(Conv2d::same(3), s, true);
    }
}

#[test]
fn a_3x3_convolution_of_stride_2_is_right_with_either_padding() {
    for padding in [0, 1] {
        for s in [sizes(1, 5, 7, 3, 17), sizes(2, 8, 6, 16, 32), sizes(1, 13, 9, 24, 3)] {
            check(Conv2d::downsample(padding), s, false);
        }
        check(Conv2d::downsample(padding), sizes(2, 6, 10, 3, 5), true);
    }
}

#[test]
fn a_1x1_convolution_is_right() {
    for s in [sizes(1, 5, 7, 3, 17), sizes(2, 13, 9, 24, 3), sizes(3, 4, 4, 16, 48)] {
        check(Conv2d::same(1), s, false);
        check(Conv2d::same(1), s, true);
    }
    check(Conv2d { stride: 2, ..Conv2d::same(1) }, sizes(2, 5, 7, 6, 4), false);
}

#[test]
fn uneven_and_wide_padding_is_right() {
    for (pad_before, pad_after) in [(0, 1), (2, 0), (1, 2), (0, 0), (3, 3)] {
        for stride in [1, 2] {
            let conv = Conv2d { pad_before, pad_after, stride, ..Conv2d::same(3) };
            check(conv, sizes(2, 5, 7, 16, 16), stride == 1);
        }
    }
}

#[test]
fn winograd_is_right_where_tiles_reach_over_the_edges() {
    for s in [
        sizes(2, 10, 14, 16, 32),
        sizes(2, 10, 14, 32, 16),
        sizes(1, 16, 16, 16, 16),
        sizes(4, 5, 7, 16, 16),
        sizes(1, 13, 17, 48, 16),
        sizes(16, 1, 1, 16, 16),
        sizes(1, 3, 61, 16, 16),
    ] {
        assert!(transforms(&Conv2d::same(3), s), "{s:?} does not test what it should");
        check(Conv2d::same(3), s, false);
    }
    check(Conv2d::same(3), sizes(2, 10, 14, 16, 32), true);
}

/// Several blocks of tiles for each thread, with images that end inside a block.
#[test]
fn winograd_is_right_over_many_blocks() {
    check(Conv2d::same(3), sizes(2, 42, 90, 16, 16), false);
}

#[test]
fn the_exact_algorithm_keeps_the_bound_of_the_direct_sum() {
    for s in [sizes(2, 10, 14, 16, 32), sizes(1, 16, 16, 32, 16)] {
        check(exact(Conv2d::same(3)), s, true);
    }
}

/// More output rows than fit in one tile of patches, and more than one thread's share.
#[test]
fn an_image_of_many_tiles_is_right() {
    check(exact(Conv2d::same(3)), sizes(1, 40, 40, 24, 3), false);
    check(Conv2d::same(1), sizes(1, 30, 300, 17, 2), false);
}

#[test]
fn fastest_is_exact_where_winograd_does_not_fit() {
    let fits = sizes(1, 16, 16, 16, 16);
    for (s, same) in [(sizes(1, 16, 16, 17, 16), true), (sizes(1, 12, 12, 16, 16), true), (fits, false)] {
        let (x, weight) = (normal(1, &[s.n, s.h, s.w, s.ci]), normal(2, &[s.co, 3, 3, s.ci]));
        let y = |conv| bits(&conv2d::forward(&conv, &x, &weight, &normal(3, &[s.co]), None).unwrap());
        assert_eq!(y(Conv2d::same(3)) == y(exact(Conv2d::same(3))), same, "{s:?}");
    }
}

fn any_convolution() -> impl Strategy<Value = (Conv2d, Sizes, bool)> {
    let conv = (prop_oneof![Just(1usize), Just(3)], 1usize..=2, 0usize..=2, 0usize..=2).prop_map(
        |(kernel, stride, pad_before, pad_after)| Conv2d {
            kernel,
            stride,
            pad_before,
            pad_after,
            algorithm: Algorithm::Fastest,
        },
    );
    let channels = || prop_oneof![1usize..=20, Just(16)];
    let conv = prop_oneof![conv, Just(Conv2d::same(3))];
    (conv, 1usize..=3, 3usize..=18, 3usize..=18, channels(), channels(), any::<bool>())
        .prop_map(|(conv, n, h, w, ci, co, residual)| (conv, sizes(n, h, w, ci, co), residual))
}

proptest! {
    #![proptest_config(crate::common::few_cases())]

    #[test]
    fn any_convolution_is_right((conv, sizes, residual) in any_convolution()) {
        check(conv, sizes, residual);
    }
}
