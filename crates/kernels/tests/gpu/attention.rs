//! Attention of one head and of several, whichever way the GPU takes.

use candle_core::{DType, Device, Tensor, Var};
use ddpm_kernels::ops::attention;

use crate::common::{Both, FORMATS, assert_close, both, download, normals, tolerance};

/// Images, tokens, heads, and the channels of each head.
type Sizes = (usize, usize, usize, usize);

/// The twin's result and gradient, given `dy`, in f64.
fn exact(qkv: &Both, heads: usize, dy: &Both) -> (Tensor, Tensor) {
    let variable = Var::from_tensor(&qkv.exact).unwrap();
    let y = attention::reference::forward(&variable, heads).unwrap();
    let gradients = (&y * &dy.exact).unwrap().sum_all().unwrap().backward().unwrap();
    (y.clone(), gradients.get(&variable).unwrap().clone())
}

#[track_caller]
fn check((n, tokens, heads, d): Sizes, dtype: DType) {
    let what = format!("attention [{n}, {tokens}, {heads} heads of {d}] {dtype:?}");
    let qkv = normals(1, &[n, tokens, 3 * heads * d], dtype);
    let dy = normals(2, &[n, tokens, heads * d], dtype);
    let (y, dqkv) = exact(&qkv, heads, &dy);
    let (found, kept) = attention::forward(&qkv.device, heads).unwrap();
    assert_close(&what, &found, &y, tolerance(dtype));
    let found = attention::backward(&qkv.device, heads, &kept, &dy.device).unwrap().to_device(&Device::Cpu).unwrap();
    // Queries, keys and values apart: one's gradient may be much smaller than another's.
    for (part, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
        let of = |t: &Tensor| t.narrow(2, part * heads * d, heads * d).unwrap().contiguous().unwrap();
        assert_close(&format!("{what}: {name}"), &of(&found), &of(&dqkv), tolerance(dtype));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_at_odd_sizes() {
    for dtype in FORMATS {
        for sizes in [(1, 1, 1, 8), (1, 65, 1, 40), (2, 65, 3, 8), (3, 16, 2, 64), (1, 7, 5, 12), (2, 130, 1, 128)] {
            check(sizes, dtype);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_of_one_wide_head() {
    for dtype in FORMATS {
        check((2, 64, 1, 512), dtype);
        check((1, 20, 1, 17), dtype);
        // Whole rows of scores in registers: all of them, and tokens and channels that fill no tile; and one row too long.
        for sizes in [(1, 256, 1, 256), (2, 72, 2, 136), (1, 8, 1, 200), (1, 264, 1, 136)] {
            check(sizes, dtype);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_survives_scores_that_would_overflow_an_exponential() {
    for dtype in FORMATS {
        for (tokens, heads, d) in [(33, 1, 16), (33, 1, 160), (40, 1, 160)] {
            let qkv = normals(3, &[1, tokens, 3 * heads * d], dtype);
            let large = both(&(qkv.exact * 30.0).unwrap(), dtype).device;
            let (y, kept) = attention::forward(&large, heads).unwrap();
            let dy = normals(4, &[1, tokens, heads * d], dtype).device;
            let dqkv = attention::backward(&large, heads, &kept, &dy).unwrap();
            assert!(download(&y).iter().chain(&download(&dqkv)).all(|v| v.is_finite()), "{dtype:?}, {d}");
        }
    }
}

/// Padding beyond the last token has the score 0: it must not count, though it is far above all that are there.
#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_ignores_what_pads_the_last_tile() {
    for dtype in FORMATS {
        for (heads, d) in [(1, 64), (2, 24), (1, 128)] {
            let shape = [1, 65, 3 * heads * d];
            let mut values = download(&normals(5, &shape, dtype).exact);
            for (i, value) in values.iter_mut().enumerate() {
                match i / (heads * d) % 3 {
                    0 => *value = 4.5 + value.abs(),
                    1 => *value = -4.5 - value.abs(),
                    _ => {}
                }
            }
            let qkv = both(&Tensor::from_vec(values, &shape, &Device::Cpu).unwrap(), dtype);
            let dy = normals(6, &[1, 65, heads * d], dtype);
            let (y, dqkv) = exact(&qkv, heads, &dy);
            let (found, kept) = attention::forward(&qkv.device, heads).unwrap();
            // Scores of -300 are rounded in f32, and so are the probabilities' logarithms.
            let tolerance = 3.0 * tolerance(dtype);
            assert_close(&format!("padded {d} {dtype:?}"), &found, &y, tolerance);
            let found = attention::backward(&qkv.device, heads, &kept, &dy.device).unwrap();
            assert_close(&format!("padded {d} {dtype:?}: gradient"), &found, &dqkv, tolerance);
        }
    }
}

/// The gradient may be a view that begins anywhere; what is read 16 bytes at a time may not.
#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_takes_a_gradient_that_is_not_aligned() {
    for dtype in FORMATS {
        for (n, tokens, d) in [(2, 20, 40), (1, 24, 136)] {
            let (qkv, dy) = (normals(7, &[n, tokens, 3 * d], dtype), normals(8, &[n * tokens * d + 1], dtype));
            let view = |of: &Tensor| of.narrow(0, 1, n * tokens * d).unwrap().reshape((n, tokens, d)).unwrap();
            let (_, dqkv) = exact(&qkv, 1, &Both { exact: view(&dy.exact), device: view(&dy.device) });
            let (_, kept) = attention::forward(&qkv.device, 1).unwrap();
            let found = attention::backward(&qkv.device, 1, &kept, &view(&dy.device)).unwrap();
            assert_close(&format!("unaligned {dtype:?}"), &found, &dqkv, tolerance(dtype));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_is_the_same_bits_every_time() {
    for dtype in FORMATS {
        let qkv = normals(1, &[2, 70, 3 * 64], dtype).device;
        let dy = normals(2, &[2, 70, 64], dtype).device;
        let run = || {
            let (y, kept) = attention::forward(&qkv, 1).unwrap();
            (download(&y), download(&attention::backward(&qkv, 1, &kept, &dy).unwrap()))
        };
        assert_eq!(run(), run());
    }
}
