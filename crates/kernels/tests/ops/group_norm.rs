//! Group normalisation: with and without SiLU, modulation and a gradient from elsewhere.

use candle_core::Tensor;
use ddpm_kernels::ops::group_norm::{self, GroupNorm};
use proptest::prelude::*;

use crate::common::{Case, Tolerance, f64s, gaussian, largest, normal, parameter_gradients};

/// What a check varies.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) norm: GroupNorm,
    pub(crate) shape: Vec<usize>,
    pub(crate) modulated: bool,
    pub(crate) extra: bool,
    /// Mean and spread of the input.
    pub(crate) input: (f64, f64),
}

fn setting(shape: &[usize], groups: usize) -> Setting {
    let norm = GroupNorm { groups, eps: 1e-5, silu: false };
    Setting { norm, shape: shape.to_vec(), modulated: false, extra: false, input: (0.0, 1.0) }
}

/// The largest `|mean| rstd` over images and groups: so many times larger than the result are the two numbers whose
/// difference it is.
fn condition(setting: &Setting, x: &Tensor) -> f64 {
    let (n, c) = (setting.shape[0], setting.shape[setting.shape.len() - 1]);
    let (groups, x) = (setting.norm.groups, f64s(x));
    let (per_image, per_group) = (x.len() / n, c / groups);
    let mut worst = 0f64;
    for (image, group) in (0..n).flat_map(|i| (0..groups).map(move |g| (i, g))) {
        let members = || {
            let image = x[image * per_image..][..per_image].chunks(c);
            image.flat_map(move |pixel| &pixel[group * per_group..][..per_group])
        };
        let count = members().count() as f64;
        let mean = members().sum::<f64>() / count;
        let variance = members().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        worst = worst.max(mean.abs() / (variance + setting.norm.eps).sqrt());
    }
    worst
}

/// The root mean square.
fn rms(x: &Tensor) -> f64 {
    let x = f64s(x);
    (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64).sqrt()
}

/// Bounds: sums over a group (output, `dx`) or over an image's or the batch's pixels (the rest), sixteen more
/// roundings for the affine map and SiLU, and the condition number. `n` terms have a root sum of squares of
/// `sqrt(n)` times their size, which is that of `dy` times what it is multiplied by (`x^` has size 1).
#[track_caller]
pub(crate) fn check(setting: &Setting) {
    let Setting { norm, shape, .. } = setting;
    let op = format!("group_norm {setting:?}");
    let (n, c) = (shape[0], shape[shape.len() - 1]);
    let x = gaussian(1, shape, setting.input.0, setting.input.1);
    let (weight, bias) = (normal(2, &[c]), normal(3, &[c]));
    let modulation = setting.modulated.then(|| normal(4, &[n, 2 * c]));
    let twin = |t: &[Tensor]| group_norm::reference::forward(norm, &t[0], &t[1], &t[2], t.get(3));
    let mut operands = vec![("x", &x), ("weight", &weight), ("bias", &bias)];
    operands.extend(modulation.as_ref().map(|m| ("modulation", m)));
    let case = Case::new(&op, &operands, &twin);
    let want = case.want();

    let (y, statistics) = group_norm::forward(norm, &x, &weight, &bias, modulation.as_ref()).unwrap();
    let backward = |extra: Option<&Tensor>| {
        parameter_gradients(&weight, &bias, |grads| {
            group_norm::backward(norm, &x, &weight, &bias, modulation.as_ref(), &statistics, &case.dy, extra, grads)
                .unwrap()
        })
    };
    let condition = condition(setting, &x);
    let pixels = x.elem_count() / n / c;
    let sum = |terms: usize| Tolerance::sum(terms + 16).condition(condition);
    let sum_of_dy = |terms: usize, factor: f64| sum(terms).of_all((terms as f64).sqrt() * rms(&case.dy) * factor);
    let group = sum(pixels * c / norm.groups);
    let image = sum_of_dy(pixels, largest(&weight) + largest(&bias));
    let batch = sum_of_dy(pixels * n, 1.0 + modulation.as_ref().map_or(0.0, largest));
    let plain = backward(None);
    assert_eq!(plain.returned.modulation.is_some(), setting.modulated, "{op}: the modulation's gradient");
    let mut grads =
        vec![(&plain.returned.dx, group.clone()), (&plain.weight, batch.clone()), (&plain.bias, batch.clone())];
    grads.extend(plain.returned.modulation.as_ref().map(|m| (m, image)));
    case.check(&want, (&y, &group), &grads);
    plain.check_added(&op, [(&want.grads[1], batch.clone()), (&want.grads[2], batch)]);

    if setting.extra {
        let extra = normal(5, shape);
        let with_extra = backward(Some(&extra));
        with_extra.assert_same_bits(&plain);
        let sum = (&want.grads[0] + crate::common::widen(&extra)).unwrap();
        let op = format!("{op}: gradient of x with another added");
        let tolerance = group.added_to(&want.grads[0], &extra);
        crate::common::assert_close(&op, &with_extra.returned.dx, &sum, &tolerance);
    }
    assert!(largest(&y) > 0.0);
}

#[test]
fn every_combination_of_silu_modulation_and_extra_gradient_is_right() {
    for flags in 0..8 {
        let [silu, modulated, extra] = [1, 2, 4].map(|bit| flags & bit != 0);
        let base = setting(&[2, 5, 7, 24], 8);
        check(&Setting { norm: GroupNorm { silu, ..base.norm }, modulated, extra, ..base });
    }
}

#[test]
fn odd_sizes_and_any_grouping_are_right() {
    for (shape, groups) in [
        ([1, 13, 9, 3], 1),
        ([1, 5, 7, 3], 3),
        ([2, 5, 7, 17], 17),
        ([3, 4, 4, 17], 1),
        ([1, 3, 3, 64], 32),
        ([2, 2, 2, 16], 4),
    ] {
        let base = setting(&shape, groups);
        check(&base);
        check(&Setting { norm: GroupNorm { silu: true, eps: 1e-6, ..base.norm }, modulated: true, ..base });
    }
}

#[test]
fn tokens_are_normalised_as_pixels_are() {
    check(&Setting { modulated: true, extra: true, ..setting(&[2, 35, 24], 4) });
}

fn any_setting() -> impl Strategy<Value = Setting> {
    let groups = (1usize..=6, 1usize..=6);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (1usize..=3, 3usize..=12, 3usize..=12, groups, flags, -3.0..3.0, 0.1..4.0).prop_map(
        |(n, h, w, (groups, per_group), (silu, modulated, extra), mean, spread)| {
            let base = setting(&[n, h, w, groups * per_group], groups);
            let norm = GroupNorm { silu, ..base.norm };
            Setting { norm, modulated, extra, input: (mean, spread), ..base }
        },
    )
}

proptest! {
    #![proptest_config(crate::common::few_cases())]

    #[test]
    fn any_group_norm_is_right(setting in any_setting()) {
        check(&setting);
    }
}
