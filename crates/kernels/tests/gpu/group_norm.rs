//! Group normalisation: every combination of SiLU, modulation and a gradient from elsewhere; every way its work is split.

use candle_core::{DType, Tensor};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::group_norm::{self, GroupNorm};

use crate::common::{Both, FORMATS, Slots, assert_close, both, download, exactly, normals, tolerance};

/// What a check varies.
struct Setting<'a> {
    shape: &'a [usize],
    groups: usize,
    dtype: DType,
    silu: bool,
    modulated: bool,
    extra: bool,
    /// Added to the input's normals.
    mean: f64,
}

fn setting(shape: &[usize], groups: usize, dtype: DType) -> Setting<'_> {
    Setting { shape, groups, dtype, silu: true, modulated: true, extra: true, mean: 0.0 }
}

/// The operands of one check.
struct Operands {
    x: Both,
    weight: Both,
    bias: Both,
    modulation: Option<Both>,
    dy: Both,
    extra: Option<Both>,
}

impl Operands {
    fn new(s: &Setting<'_>) -> Self {
        let (n, c) = (s.shape[0], s.shape[s.shape.len() - 1]);
        let x = (normals(1, s.shape, DType::F32).exact + s.mean).unwrap();
        Self {
            x: both(&x.to_dtype(DType::F32).unwrap(), s.dtype),
            weight: normals(2, &[c], DType::F32),
            bias: normals(3, &[c], DType::F32),
            modulation: s.modulated.then(|| normals(4, &[n, 2 * c], s.dtype)),
            dy: normals(5, s.shape, s.dtype),
            extra: s.extra.then(|| normals(6, s.shape, s.dtype)),
        }
    }
}

fn device(operand: &Option<Both>) -> Option<&Tensor> {
    operand.as_ref().map(|o| &o.device)
}

#[track_caller]
fn check(s: &Setting<'_>) {
    let Setting { shape, groups, dtype, silu, .. } = *s;
    let what =
        format!("group_norm {dtype:?} {shape:?} {groups} silu {silu} modulated {} extra {}", s.modulated, s.extra);
    let norm = GroupNorm { groups, eps: 1e-5, silu };
    let o = Operands::new(s);
    let mut inputs = vec![&o.x.exact, &o.weight.exact, &o.bias.exact];
    inputs.extend(o.modulation.as_ref().map(|m| &m.exact));
    let twin = |t: &[Tensor]| group_norm::reference::forward(&norm, &t[0], &t[1], &t[2], t.get(3));
    let (y, grads) = exactly(&inputs, |_| o.dy.exact.clone(), twin);
    // What is rounded to f32 on the way is so many times larger than the result.
    let condition = 1.0 + s.mean.abs();
    let of_f32 = 1e-4 + condition * 4e-7;
    let close = tolerance(dtype).max(of_f32);

    let (weight, bias, modulation) = (&o.weight.device, &o.bias.device, device(&o.modulation));
    let (found, statistics) = group_norm::forward(&norm, &o.x.device, weight, bias, modulation).unwrap();
    assert_close(&what, &found, &y, close);
    let channels = weight.elem_count();
    let mut first: Option<Vec<f64>> = None;
    for (write, gap) in [(Write::Assign, 8), (Write::Add, 5)] {
        let slots = Slots::new(channels, channels, gap);
        let (x, dy, extra) = (&o.x.device, &o.dy.device, device(&o.extra));
        let found =
            group_norm::backward(&norm, x, weight, bias, modulation, &statistics, dy, extra, &slots.grads(write))
                .unwrap();
        let dx = o.extra.as_ref().map_or_else(|| grads[0].clone(), |e| (&grads[0] + &e.exact).unwrap());
        assert_close(&format!("{what}: dx"), &found.dx, &dx, close);
        // Sums of what both hold exactly: as good in any format.
        slots.check(&what, write, &grads[1], &grads[2], of_f32);
        assert_eq!(found.modulation.is_some(), s.modulated, "{what}");
        if let Some(dmodulation) = &found.modulation {
            assert_close(&format!("{what}: dmodulation"), dmodulation, &grads[3], close);
        }
        let bits = download(&found.dx);
        assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{what}: the same bits every time");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_group_norm_in_every_combination() {
    for dtype in FORMATS {
        for flags in 0..8 {
            let [silu, modulated, extra] = [1, 2, 4].map(|bit| flags & bit != 0);
            check(&Setting { silu, modulated, extra, ..setting(&[2, 5, 7, 24], 8, dtype) });
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_group_norm_at_odd_sizes() {
    for dtype in FORMATS {
        for (shape, groups) in [
            (&[1usize, 13, 9, 3][..], 1),
            (&[1, 5, 7, 3], 3),
            (&[2, 5, 7, 17], 17),
            (&[3, 4, 4, 17], 1),
            (&[2, 5, 7, 16], 16),
            (&[4, 1, 1, 32], 4),
            (&[2, 35, 24], 4),
            (&[1, 3, 2, 320], 1),
            (&[2, 3, 3, 80], 5),
        ] {
            check(&setting(shape, groups, dtype));
        }
    }
}

/// The layers of the real models, with fewer images.
#[test]
#[ignore = "needs a GPU"]
fn gpu_group_norm_of_real_layers() {
    for (shape, groups) in [([2, 32, 32, 128], 32), ([2, 16, 16, 384], 32), ([3, 8, 8, 256], 32), ([1, 4, 4, 512], 32)]
    {
        check(&Setting { modulated: false, ..setting(&shape, groups, DType::BF16) });
        check(&Setting { extra: false, ..setting(&shape, groups, DType::F32) });
    }
}

/// Too large for shared memory: the pixels are split, in two launches. In the second case only x fits, not dy.
#[test]
#[ignore = "needs a GPU"]
fn gpu_group_norm_of_large_images() {
    for dtype in FORMATS {
        check(&setting(&[1, 127, 129, 16], 4, dtype));
        check(&setting(&[1, 103, 101, 3], 1, dtype));
    }
    check(&Setting { modulated: false, ..setting(&[2, 61, 61, 264], 33, DType::F32) });
}

/// A plain sum of squares would lose the spread entirely.
#[test]
#[ignore = "needs a GPU"]
fn gpu_group_norm_of_a_large_mean() {
    for (shape, groups) in [([2, 13, 9, 24], 4), ([2, 5, 7, 17], 1), ([1, 127, 129, 16], 4)] {
        for mean in [1000.0, -1000.0] {
            check(&Setting { mean, ..setting(&shape, groups, DType::F32) });
        }
    }
}
