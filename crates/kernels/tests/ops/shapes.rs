//! Operands that do not fit are refused, each with a message that names the operation, the tensor and both shapes.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::KernelError;
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::activation::{self, Activation};
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::ops::dropout::{self, Dropout};
use ddpm_kernels::ops::group_norm::{self, GroupNorm};
use ddpm_kernels::ops::{attention, elementwise, linear, resample};

use crate::common::normal;

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[track_caller]
fn refuses<T>(result: Result<T, KernelError>, message: &str) {
    let Err(error) = result else { panic!("accepted, want {message}") };
    assert!(matches!(error, KernelError::Shape { .. }), "{error:?}");
    assert_eq!(error.to_string(), message);
}

fn places(buffer: &FlatBuffer, weight: usize, bias: usize) -> ParamGrads<'_> {
    ParamGrads::new(buffer, 0..weight, weight..weight + bias, Write::Assign)
}

#[test]
fn conv2d_refuses_operands_that_do_not_fit() {
    let conv = Conv2d::same(3);
    let (x, weight, bias) = (zeros(&[2, 5, 7, 3]), zeros(&[4, 3, 3, 3]), zeros(&[4]));
    let forward = |x: &Tensor, w: &Tensor, b: &Tensor, r: Option<&Tensor>| conv2d::forward(&conv, x, w, b, r);
    refuses(forward(&zeros(&[2, 5, 7]), &weight, &bias, None), "conv2d: x has shape [2, 5, 7], expected [0, 0, 0, 0]");
    refuses(
        forward(&zeros(&[0, 5, 7, 3]), &weight, &bias, None),
        "conv2d: x has shape [0, 5, 7, 3], expected [1, 5, 7, 3]",
    );
    refuses(
        forward(&x, &zeros(&[4, 3, 3, 5]), &bias, None),
        "conv2d: weight has shape [4, 3, 3, 5], expected [4, 3, 3, 3]",
    );
    refuses(
        forward(&x, &zeros(&[4, 1, 1, 3]), &bias, None),
        "conv2d: weight has shape [4, 1, 1, 3], expected [4, 3, 3, 3]",
    );
    refuses(forward(&x, &weight, &zeros(&[5]), None), "conv2d: bias has shape [5], expected [4]");
    refuses(
        forward(&x, &weight, &bias, Some(&zeros(&[2, 7, 5, 4]))),
        "conv2d: residual has shape [2, 7, 5, 4], expected [2, 5, 7, 4]",
    );
    let unpadded = Conv2d { pad_before: 0, pad_after: 0, ..conv };
    refuses(
        conv2d::forward(&unpadded, &zeros(&[1, 2, 9, 3]), &weight, &bias, None),
        "conv2d: x has shape [1, 2, 9, 3], expected [1, 3, 3, 3]",
    );
    let buffer = FlatBuffer::zeros(200, &Device::Cpu).unwrap();
    let backward = |dy: &Tensor, grads: &ParamGrads<'_>| conv2d::backward(&conv, &x, &weight, dy, true, grads);
    refuses(
        backward(&zeros(&[2, 5, 7, 3]), &places(&buffer, 108, 4)),
        "conv2d: dy has shape [2, 5, 7, 3], expected [2, 5, 7, 4]",
    );
    let dy = zeros(&[2, 5, 7, 4]);
    refuses(backward(&dy, &places(&buffer, 107, 4)), "conv2d: gradient of weight has shape [107], expected [108]");
    refuses(backward(&dy, &places(&buffer, 108, 5)), "conv2d: gradient of bias has shape [5], expected [4]");
    let short = FlatBuffer::zeros(111, &Device::Cpu).unwrap();
    refuses(backward(&dy, &places(&short, 108, 4)), "conv2d: gradient buffer has shape [111], expected [112]");
}

#[test]
fn group_norm_refuses_operands_that_do_not_fit() {
    let norm = GroupNorm { groups: 4, eps: 1e-5, silu: false };
    let (x, c, buffer) = (zeros(&[2, 5, 7, 8]), zeros(&[8]), FlatBuffer::zeros(16, &Device::Cpu).unwrap());
    let forward = |x: &Tensor, w: &Tensor, b: &Tensor, m: Option<&Tensor>| group_norm::forward(&norm, x, w, b, m);
    refuses(
        forward(&zeros(&[2, 5, 7, 6]), &c, &c, None),
        "group_norm: x has shape [2, 5, 7, 6], expected [2, 0, 0, 8]",
    );
    refuses(forward(&zeros(&[2, 8]), &c, &c, None), "group_norm: x has shape [2, 8], expected [2, 0, 0, 8]");
    refuses(
        forward(&zeros(&[2, 0, 7, 8]), &c, &c, None),
        "group_norm: x has shape [2, 0, 7, 8], expected [2, 1, 7, 8]",
    );
    refuses(forward(&x, &zeros(&[7]), &c, None), "group_norm: weight has shape [7], expected [8]");
    refuses(forward(&x, &c, &zeros(&[9]), None), "group_norm: bias has shape [9], expected [8]");
    refuses(forward(&x, &c, &c, Some(&zeros(&[2, 8]))), "group_norm: modulation has shape [2, 8], expected [2, 16]");
    let (_, statistics) = forward(&x, &c, &c, None).unwrap();
    let (_, others) = forward(&zeros(&[1, 5, 7, 8]), &c, &c, None).unwrap();
    let backward = |statistics, dy: &Tensor, extra: Option<&Tensor>, grads: &ParamGrads<'_>| {
        group_norm::backward(&norm, &x, &c, &c, None, statistics, dy, extra, grads)
    };
    let (wrong, fits) = (zeros(&[2, 7, 5, 8]), places(&buffer, 8, 8));
    refuses(backward(&statistics, &wrong, None, &fits), "group_norm: dy has shape [2, 7, 5, 8], expected [2, 5, 7, 8]");
    refuses(
        backward(&statistics, &x, Some(&wrong), &fits),
        "group_norm: extra has shape [2, 7, 5, 8], expected [2, 5, 7, 8]",
    );
    refuses(backward(&others, &x, None, &fits), "group_norm: statistics has shape [1, 2, 4], expected [2, 2, 4]");
    refuses(
        backward(&statistics, &x, None, &places(&buffer, 7, 8)),
        "group_norm: gradient of weight has shape [7], expected [8]",
    );
}

#[test]
fn attention_refuses_operands_that_do_not_fit() {
    let qkv = zeros(&[2, 5, 24]);
    refuses(attention::forward(&qkv, 3), "attention: qkv has shape [2, 5, 24], expected [2, 5, 27]");
    refuses(attention::forward(&qkv, 0), "attention: qkv has shape [2, 5, 24], expected [2, 5, 24]");
    refuses(attention::forward(&zeros(&[5, 24]), 2), "attention: qkv has shape [5, 24], expected [0, 0, 0]");
    let (_, probabilities) = attention::forward(&qkv, 2).unwrap();
    refuses(
        attention::backward(&qkv, 2, &probabilities, &qkv),
        "attention: d_out has shape [2, 5, 24], expected [2, 5, 8]",
    );
    refuses(
        attention::backward(&qkv, 4, &probabilities, &zeros(&[2, 5, 8])),
        "attention: probabilities has shape [2, 2, 5, 5], expected [2, 4, 5, 5]",
    );
}

#[test]
fn linear_refuses_operands_that_do_not_fit() {
    let (x, weight, bias) = (zeros(&[2, 5, 3]), zeros(&[4, 3]), zeros(&[4]));
    let buffer = FlatBuffer::zeros(16, &Device::Cpu).unwrap();
    refuses(
        linear::forward(&zeros(&[2, 5, 4]), &weight, &bias, None),
        "linear: x has shape [2, 5, 4], expected [0, 3]",
    );
    refuses(linear::forward(&x, &zeros(&[12]), &bias, None), "linear: weight has shape [12], expected [0, 0]");
    refuses(linear::forward(&x, &weight, &zeros(&[3]), None), "linear: bias has shape [3], expected [4]");
    refuses(linear::forward(&x, &weight, &bias, Some(&x)), "linear: residual has shape [2, 5, 3], expected [2, 5, 4]");
    refuses(
        linear::backward(&x, &weight, &x, true, None, &places(&buffer, 12, 4)),
        "linear: dy has shape [2, 5, 3], expected [2, 5, 4]",
    );
    refuses(
        linear::backward(&x, &weight, &zeros(&[2, 5, 4]), true, None, &places(&buffer, 12, 3)),
        "linear: gradient of bias has shape [3], expected [4]",
    );
}

#[test]
fn the_small_operations_refuse_operands_that_do_not_fit() {
    let x = zeros(&[2, 5, 7, 3]);
    refuses(resample::upsample(&zeros(&[5, 7, 3])), "upsample: x has shape [5, 7, 3], expected [0, 0, 0, 0]");
    refuses(resample::upsample_backward(&x), "upsample: dy has shape [2, 5, 7, 3], expected [2, 6, 8, 3]");
    refuses(resample::downsample(&x), "downsample: x has shape [2, 5, 7, 3], expected [2, 6, 8, 3]");
    refuses(
        resample::downsample_backward(&zeros(&[5, 7, 3])),
        "downsample: dy has shape [5, 7, 3], expected [0, 0, 0, 0]",
    );
    refuses(
        activation::backward(Activation::Gelu, &x, &zeros(&[2])),
        "activation: dy has shape [2], expected [2, 5, 7, 3]",
    );
    refuses(elementwise::add(&x, &zeros(&[2, 5, 3, 7])), "add: b has shape [2, 5, 3, 7], expected [2, 5, 7, 3]");
    refuses(elementwise::add_channels(&x, &zeros(&[2, 4])), "add_channels: offset has shape [2, 4], expected [2, 3]");
    refuses(
        elementwise::add_channels_backward(&zeros(&[2, 3])),
        "add_channels: dy has shape [2, 3], expected [0, 0, 0, 0]",
    );
    refuses(elementwise::concat(&x, &zeros(&[2, 7, 5, 4])), "concat: b has shape [2, 7, 5, 4], expected [2, 5, 7, 4]");
    refuses(elementwise::concat_backward(&x, 3), "concat: dy has shape [2, 5, 7, 3], expected [2, 5, 7, 4]");
    refuses(elementwise::concat_backward(&x, 0), "concat: dy has shape [2, 5, 7, 3], expected [2, 5, 7, 1]");
    refuses(elementwise::silu_backward(&x, &zeros(&[2])), "silu: dy has shape [2], expected [2, 5, 7, 3]");
}

#[test]
fn an_index_beyond_the_embedding_is_refused() {
    let (table, buffer) = (zeros(&[3, 4]), FlatBuffer::zeros(12, &Device::Cpu).unwrap());
    let backward = |dy: &[usize], indices: &[u32], offset| {
        elementwise::embedding_backward(&zeros(dy), indices, 3, &buffer, offset, Write::Add)
    };
    refuses(elementwise::embedding(&table, &[0, 5, 1]), "embedding: table has shape [3, 4], expected [6, 4]");
    refuses(backward(&[2, 4], &[0, 3], 0), "embedding: table has shape [3, 4], expected [4, 4]");
    refuses(backward(&[1, 4], &[0, 2], 0), "embedding: dy has shape [1, 4], expected [2, 4]");
    refuses(backward(&[1, 4], &[2], 1), "embedding: gradient buffer has shape [12], expected [13]");
}

#[test]
fn strided_views_and_other_dtypes_are_refused() {
    let strided = normal(1, &[2, 7, 5, 3]).transpose(1, 2).unwrap();
    let double = strided.contiguous().unwrap().to_dtype(DType::F64).unwrap();
    let dropout = Dropout { probability: 0.5, seed: 0, layer: 0, step: 0, first_position: 0 };
    let norm = GroupNorm { groups: 1, eps: 1e-5, silu: false };
    let one = zeros(&[3]);
    for x in [&strided, &double] {
        for result in [
            conv2d::forward(&Conv2d::same(1), x, &zeros(&[4, 1, 1, 3]), &zeros(&[4]), None),
            group_norm::forward(&norm, x, &one, &one, None).map(|(y, _)| y),
            linear::forward(x, &zeros(&[4, 3]), &zeros(&[4]), None),
            attention::forward(&x.flatten(1, 2).unwrap().to_dtype(DType::F64).unwrap(), 1).map(|(y, _)| y),
            resample::upsample(x),
            activation::forward(Activation::Relu, x),
            elementwise::scale(x, 2.0),
            elementwise::add(x, x),
            elementwise::silu(x),
            dropout::apply(&dropout, x),
        ] {
            assert!(matches!(result, Err(KernelError::Layout { .. })), "{result:?}");
        }
    }
}
