//! Attention with one head and with several.

use candle_core::Tensor;
use ddpm_kernels::ops::attention;

use crate::common::{Case, Tolerance, f64s, normal};

/// The largest score, `max |q k| / sqrt(d)`, by Cauchy and Schwarz: an error in a score is a relative error of the
/// probability, so this is the condition number.
fn largest_score(qkv: &Tensor, heads: usize) -> f64 {
    let triple = qkv.dim(2).unwrap();
    let d = triple / 3 / heads;
    let norms: Vec<f64> = f64s(qkv).chunks(d).map(|v| v.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
    norms.iter().fold(0.0, |a: f64, &v| a.max(v)).powi(2) / (d as f64).sqrt()
}

#[track_caller]
fn check(n: usize, tokens: usize, channels: usize, heads: usize) {
    let op = format!("attention [{n}, {tokens}, {channels}], {heads} heads");
    let qkv = normal(1, &[n, tokens, 3 * channels]);
    let twin = |t: &[Tensor]| attention::reference::forward(&t[0], heads);
    let case = Case::new(&op, &[("qkv", &qkv)], &twin);
    let (y, probabilities) = attention::forward(&qkv, heads).unwrap();
    let dqkv = attention::backward(&qkv, heads, &probabilities, &case.dy).unwrap();
    // Two sums over a head's channels, two over the tokens, and the exponential's roundings.
    let tolerance = Tolerance::sum(2 * channels / heads + 2 * tokens + 16).condition(largest_score(&qkv, heads));
    case.check(&case.want(), (&y, &tolerance), &[(&dqkv, tolerance.clone())]);
}

#[test]
fn one_head_is_right() {
    check(1, 35, 24, 1);
    check(2, 16, 17, 1);
    check(3, 2, 3, 1);
}

#[test]
fn several_heads_are_right() {
    check(2, 35, 24, 2);
    check(1, 16, 24, 8);
    check(2, 5, 6, 6);
    check(1, 65, 64, 4);
}

#[test]
fn a_single_token_attends_to_itself() {
    let qkv = normal(1, &[2, 1, 9]);
    let (y, probabilities) = attention::forward(&qkv, 3).unwrap();
    assert_eq!(f64s(&y), f64s(&qkv.narrow(2, 6, 3).unwrap()));
    let d_out = normal(2, &[2, 1, 3]);
    let dqkv = attention::backward(&qkv, 3, &probabilities, &d_out).unwrap();
    assert_eq!(f64s(&dqkv.narrow(2, 6, 3).unwrap()), f64s(&d_out));
    assert!(f64s(&dqkv.narrow(2, 0, 6).unwrap()).iter().all(|&v| v == 0.0));
}
