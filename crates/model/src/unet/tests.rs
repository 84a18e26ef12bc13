//! The network against its oracles: published parameter counts, the one out of candle's own layers under candle's autograd in
//! f64, finite differences, and itself in micro-batches.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use ddpm_kernels::image_size::ImageSize;
use ddpm_kernels::philox::{Philox, Purpose};

use super::*;
use crate::params::{Gradients, Params};
use crate::plain::UNet2DModel;
use crate::tape::DropoutStream;
use crate::unet::naming::FileTensor;

fn shaped(config: UNetConfig, side: usize, channels: usize) -> UNetConfig {
    let size = ImageSize::square(side);
    UNetConfig { sample_size: Some(size), in_channels: Some(channels), out_channels: Some(channels), ..config }
}

/// A network with every kind of block, small enough for f64 under candle.
fn small(time: TimeScaleShift) -> UNetConfig {
    let config = UNetConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 1,
        down_block_types: vec![DownBlockType::DownBlock2D, DownBlockType::AttnDownBlock2D],
        up_block_types: vec![UpBlockType::AttnUpBlock2D, UpBlockType::UpBlock2D],
        attention_head_dim: Some(16),
        norm_num_groups: 4,
        attn_norm_num_groups: Some(8),
        resnet_time_scale_shift: time,
        num_class_embeds: Some(3),
        ..UNetConfig::default()
    };
    shaped(config, 16, 3)
}

/// With levels that resample in residual blocks, and every other option that changes what is computed.
fn small_resnet(time: TimeScaleShift, act_fn: Activation) -> UNetConfig {
    let config = UNetConfig {
        block_out_channels: vec![8, 16, 12],
        layers_per_block: 1,
        down_block_types: vec![
            DownBlockType::ResnetDownsampleBlock2D,
            DownBlockType::AttnDownBlock2D,
            DownBlockType::ResnetDownsampleBlock2D,
        ],
        up_block_types: vec![
            UpBlockType::ResnetUpsampleBlock2D,
            UpBlockType::AttnUpBlock2D,
            UpBlockType::ResnetUpsampleBlock2D,
        ],
        downsample_type: Resample::Resnet,
        upsample_type: Resample::Resnet,
        attention_head_dim: Some(4),
        norm_num_groups: 4,
        attn_norm_num_groups: Some(2),
        resnet_time_scale_shift: time,
        mid_block_scale_factor: 1.5,
        center_input_sample: true,
        time_embedding_dim: Some(20),
        class_embed_type: Some(ClassEmbedType::Timestep),
        num_class_embeds: Some(3),
        act_fn,
        ..UNetConfig::default()
    };
    shaped(config, 16, 3)
}

fn normal(shape: &[usize], position: u64) -> Tensor {
    let mut data = vec![0.0; shape.iter().product()];
    Philox::new(5, Purpose::Sample).fill_normal(0, position, &mut data);
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Every parameter nonzero, so that every gradient is.
fn random_params(unet: &UNet) -> Params {
    let mut data = Params::initialise(unet.layout(), 1, &Device::Cpu).unwrap().buffer().to_vec().unwrap();
    let mut noise = normal(&[unet.layout().parameters()], 99).to_vec1::<f32>().unwrap().into_iter();
    for spec in unet.layout().specs() {
        for (v, n) in data[spec.offset..][..spec.len()].iter_mut().zip(&mut noise) {
            *v += 0.05 * n;
        }
    }
    Params::from_vec(unet.layout(), data, &Device::Cpu).unwrap()
}

fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let difference: Vec<f64> = got.iter().zip(want).map(|(a, b)| a - b).collect();
    assert!(got.iter().all(|v| v.is_finite()));
    norm(&difference) / norm(want)
}

fn to_f64(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The network out of candle's own layers, in f64, with the same weights.
struct Oracle {
    network: UNet2DModel,
    /// Under diffusers' names.
    variables: HashMap<String, Var>,
}

impl Oracle {
    fn new(config: &UNetConfig, unet: &UNet, params: &Params) -> Self {
        Self::moved(config, unet, params, &vec![0.0; unet.layout().len()], 0.0)
    }

    /// With weights that are `step` away from `params` in this direction; in f64, for f32 would round a small step away.
    fn moved(config: &UNetConfig, unet: &UNet, params: &Params, direction: &[f32], step: f64) -> Self {
        let flat = params.buffer().to_vec().unwrap();
        let tensors = |flat| unet.layout().specs().iter().flat_map(move |spec| spec.to_file(flat));
        let wide = |FileTensor { shape, data, .. }: FileTensor| {
            Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
        };
        let variables: HashMap<_, _> = tensors(&flat)
            .zip(tensors(direction))
            .map(|(weight, direction)| {
                let key = weight.key.clone();
                let moved = (wide(weight) + (wide(direction) * step).unwrap()).unwrap();
                (key, Var::from_tensor(&moved).unwrap())
            })
            .collect();
        let tensors = variables.iter().map(|(key, var)| (key.clone(), var.as_tensor().clone())).collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu);
        Self { network: UNet2DModel::new(config, vb).unwrap(), variables }
    }

    /// `[N, H, W, C]` as the network takes it.
    fn turned(x: &Tensor) -> Tensor {
        x.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap().to_dtype(DType::F64).unwrap()
    }

    /// In our layouts: the output, and by parameter the gradient of its product with `dy`.
    fn output_and_gradients(
        &self,
        unet: &UNet,
        x: &Tensor,
        dy: &Tensor,
        timesteps: &[f32],
        labels: Option<&[u32]>,
    ) -> (Vec<f64>, Vec<Vec<f64>>) {
        let output = self.network.forward(&Self::turned(x), timesteps, labels).unwrap();
        let store = (&output * Self::turned(dy)).unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = |key: &str| {
            let gradient = store.get(&self.variables[key])?;
            let data = to_f64(gradient).into_iter().map(|g| g as f32).collect();
            Some(FileTensor { key: key.to_owned(), shape: gradient.dims().to_vec(), data })
        };
        let mut flat = vec![0.0; unet.layout().len()];
        let gradients = unet.layout().specs().iter().map(|spec| {
            spec.from_file(&mut flat, gradient).unwrap();
            flat[spec.offset..][..spec.len()].iter().map(|&g| f64::from(g)).collect()
        });
        let gradients = gradients.collect();
        (to_f64(&output.permute((0, 2, 3, 1)).unwrap()), gradients)
    }
}

#[test]
fn parameter_counts_equal_the_published_ones() {
    let attention_at = |at: &[usize], levels: usize| -> (Vec<_>, Vec<_>) {
        let down = (0..levels).map(|l| match at.contains(&l) {
            true => DownBlockType::AttnDownBlock2D,
            false => DownBlockType::DownBlock2D,
        });
        let up = (0..levels).rev().map(|l| match at.contains(&l) {
            true => UpBlockType::AttnUpBlock2D,
            false => UpBlockType::UpBlock2D,
        });
        (down.collect(), up.collect())
    };
    let (down_block_types, up_block_types) = attention_at(&[1], 4);
    let ho = UNetConfig {
        block_out_channels: vec![128, 256, 256, 256],
        down_block_types,
        up_block_types,
        ..UNetConfig::default()
    };
    assert_eq!(UNet::new(&shaped(ho, 32, 3)).unwrap().layout().parameters(), 35_746_307);
    let (down_block_types, up_block_types) = attention_at(&[1, 2], 4);
    let improved = UNetConfig {
        block_out_channels: vec![128, 256, 256, 256],
        layers_per_block: 3,
        down_block_types,
        up_block_types,
        attention_head_dim: Some(64),
        attn_norm_num_groups: Some(32),
        resnet_time_scale_shift: TimeScaleShift::ScaleShift,
        ..UNetConfig::default()
    };
    let improved = UNetConfig { out_channels: Some(6), ..shaped(improved, 32, 3) };
    assert_eq!(UNet::new(&improved).unwrap().layout().parameters(), 52_546_438);
}

#[test]
fn output_and_every_gradient_agree_with_candles_autograd_in_f64() {
    let (default, scale_shift) = (TimeScaleShift::Default, TimeScaleShift::ScaleShift);
    let configs = [
        small(default),
        small(scale_shift),
        small_resnet(default, Activation::Silu),
        small_resnet(scale_shift, Activation::Silu),
        small_resnet(default, Activation::Gelu),
        small_resnet(scale_shift, Activation::Mish),
        UNetConfig { class_embed_type: None, ..small_resnet(default, Activation::Relu) },
    ];
    for config in configs {
        let unet = UNet::new(&config).unwrap();
        let name = format!("{:?} {:?} {:?}", config.down_block_types, config.resnet_time_scale_shift, config.act_fn);
        let params = random_params(&unet);
        let (x, dy) = (normal(&[2, 16, 16, 3], 0), normal(&[2, 16, 16, 3], 1));
        let (timesteps, labels) = ([3.0, 700.0], Some(&[2, 0][..]));

        let oracle = Oracle::new(&config, &unet, &params);
        let (want, want_gradient) = oracle.output_and_gradients(&unet, &x, &dy, &timesteps, labels);

        for (exact, forward_tolerance, tolerance) in [(true, 2e-6, 1e-5), (false, 1e-5, 5e-5)] {
            let mut tape = Tape::gradients(&params);
            if exact {
                tape = tape.exact();
            }
            let mut gradients = Gradients::new(unet.layout(), &Device::Cpu).unwrap();
            let got = unet.forward(&mut tape, &x, &timesteps, labels).unwrap();
            let error = relative_error(&to_f64(got.value()), &want);
            assert!(error < forward_tolerance, "{name} exact {exact}: output off by {error}");
            tape.backward(got, dy.clone(), &mut gradients).unwrap();
            let flat = gradients.complete().unwrap().to_vec().unwrap();
            for (spec, want) in unet.layout().specs().iter().zip(&want_gradient) {
                let got: Vec<f64> = flat[spec.offset..][..spec.len()].iter().map(|&v| f64::from(v)).collect();
                let error = relative_error(&got, want);
                assert!(error < tolerance, "{name} exact {exact} {}: gradient off by {error}", spec.key);
            }
        }
    }
}

#[test]
fn the_gradient_agrees_with_finite_differences_in_f64() {
    let config = small(TimeScaleShift::ScaleShift);
    let unet = UNet::new(&config).unwrap();
    let params = random_params(&unet);
    let (x, dy) = (normal(&[1, 16, 16, 3], 0), normal(&[1, 16, 16, 3], 1));
    let mut tape = Tape::gradients(&params);
    let mut gradients = Gradients::new(unet.layout(), &Device::Cpu).unwrap();
    let y = unet.forward(&mut tape, &x, &[40.0], Some(&[1])).unwrap();
    tape.backward(y, dy.clone(), &mut gradients).unwrap();
    let flat = gradients.complete().unwrap().to_vec().unwrap();

    let direction = normal(&[unet.layout().len()], 7).to_vec1::<f32>().unwrap();
    let value = |step: f64| -> f64 {
        let oracle = Oracle::moved(&config, &unet, &params, &direction, step);
        let y = oracle.network.forward(&Oracle::turned(&x), &[40.0], Some(&[1])).unwrap();
        to_f64(&y).iter().zip(to_f64(&Oracle::turned(&dy))).map(|(y, d)| y * d).sum()
    };
    let step = 1e-5;
    let want = (value(step) - value(-step)) / (2.0 * step);
    let got: f64 = flat.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
    assert!(((got - want) / want).abs() < 1e-3, "{got} {want}");
}

#[test]
fn a_fresh_network_predicts_zero() {
    for config in [small(TimeScaleShift::Default), small_resnet(TimeScaleShift::ScaleShift, Activation::Mish)] {
        let unet = UNet::new(&config).unwrap();
        let params = Params::initialise(unet.layout(), 3, &Device::Cpu).unwrap();
        let y = unet.forward(&mut Tape::inference(&params), &normal(&[1, 16, 16, 3], 0), &[5.0], Some(&[0])).unwrap();
        assert!(to_f64(y.value()).iter().all(|&v| v == 0.0));
    }
}

#[test]
fn split_or_whole_a_batch_has_the_same_gradient_also_under_dropout() {
    let unet = UNet::new(&UNetConfig { dropout: 0.3, ..small(TimeScaleShift::ScaleShift) }).unwrap();
    let params = random_params(&unet);
    let (x, dy) = (normal(&[4, 16, 16, 3], 0), normal(&[4, 16, 16, 3], 1));
    let (timesteps, labels) = ([1.0, 20.0, 300.0, 999.0], [0, 1, 2, 1]);
    let gradient = |micro: usize| {
        let mut gradients = Gradients::new(unet.layout(), &Device::Cpu).unwrap();
        for first in (0..4).step_by(micro) {
            let stream = DropoutStream { seed: 1, step: 2, first_position: first as u64 };
            let mut tape = Tape::training(&params, stream);
            let part = |t: &Tensor| t.narrow(0, first, micro).unwrap().contiguous().unwrap();
            let range = first..first + micro;
            let y = unet.forward(&mut tape, &part(&x), &timesteps[range.clone()], Some(&labels[range])).unwrap();
            tape.backward(y, part(&dy), &mut gradients).unwrap();
        }
        let flat = gradients.complete().unwrap().to_vec().unwrap();
        flat.into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let error = relative_error(&gradient(2), &gradient(4));
    assert!(error < 1e-5, "{error}");
}

#[test]
fn checkpointing_changes_no_bit_of_any_gradient() {
    let configs = [
        small(TimeScaleShift::Default),
        small(TimeScaleShift::ScaleShift),
        small_resnet(TimeScaleShift::ScaleShift, Activation::Mish),
    ];
    for config in configs {
        let unet = UNet::new(&UNetConfig { dropout: 0.3, ..config }).unwrap();
        let params = random_params(&unet);
        let (x, dy) = (normal(&[2, 16, 16, 3], 0), normal(&[2, 16, 16, 3], 1));
        let (recorded, with, without) = {
            let run = |checkpointing: bool| {
                let mut gradients = Gradients::new(unet.layout(), &Device::Cpu).unwrap();
                let mut recorded = 0;
                // Twice, so that gradients are written over and added to.
                for step in 0..2 {
                    let stream = DropoutStream { seed: 1, step, first_position: 0 };
                    let mut tape = Tape::training(&params, stream).checkpointing(checkpointing);
                    let y = unet.forward(&mut tape, &x, &[3.0, 700.0], Some(&[2, 0])).unwrap();
                    recorded = tape.recorded();
                    tape.backward(y, dy.clone(), &mut gradients).unwrap();
                }
                (recorded, gradients.complete().unwrap().to_vec().unwrap())
            };
            let ((few, with), (many, without)) = (run(true), run(false));
            ((few, many), with, without)
        };
        assert!(recorded.0 * 3 < recorded.1, "{recorded:?} operations recorded");
        assert!(without.iter().any(|&g| g != 0.0));
        let bits = |flat: &[f32]| flat.iter().map(|g| g.to_bits()).collect::<Vec<_>>();
        assert!(bits(&with) == bits(&without), "{:?}", unet.layout().specs()[0].key);
    }
}

#[test]
fn labels_are_asked_for_refused_and_checked() {
    let unet = UNet::new(&small(TimeScaleShift::Default)).unwrap();
    let params = Params::initialise(unet.layout(), 3, &Device::Cpu).unwrap();
    let run = |labels: Option<&[u32]>| {
        unet.forward(&mut Tape::inference(&params), &normal(&[1, 16, 16, 3], 0), &[5.0], labels).err()
    };
    assert!(matches!(run(None), Some(ModelError::Labels { conditional: true })));
    assert!(run(Some(&[3])).unwrap().to_string().starts_with("class 3 does not exist"));
    assert!(run(Some(&[2])).is_none());
}

#[test]
fn classes_as_numbers_need_no_table_and_may_have_a_bound() {
    let numbers = small_resnet(TimeScaleShift::Default, Activation::Silu);
    for (num_class_embeds, refused) in [(Some(3), true), (None, false)] {
        let unet = UNet::new(&UNetConfig { num_class_embeds, ..numbers.clone() }).unwrap();
        let params = Params::initialise(unet.layout(), 3, &Device::Cpu).unwrap();
        let run = |labels: Option<&[u32]>| {
            unet.forward(&mut Tape::inference(&params), &normal(&[1, 16, 16, 3], 0), &[5.0], labels).err()
        };
        assert!(matches!(run(None), Some(ModelError::Labels { conditional: true })));
        assert_eq!(run(Some(&[3])).is_some(), refused);
        assert!(run(Some(&[2])).is_none());
    }
}

#[test]
fn a_sketch_has_every_operation_that_is_recorded_and_takes_less_where_blocks_are_computed_again() {
    let configs = [small(TimeScaleShift::ScaleShift), small_resnet(TimeScaleShift::Default, Activation::Mish)];
    for config in configs {
        let unet = UNet::new(&UNetConfig { dropout: 0.3, ..config }).unwrap();
        let params = random_params(&unet);
        let mut tape = Tape::training(&params, DropoutStream { seed: 1, step: 0, first_position: 0 });
        let x = normal(&[1, 16, 16, 3], 0);
        unet.forward(&mut tape, &x, &[3.0], unet.embedding.takes_labels().then_some(&[2][..])).unwrap();
        let sketch = unet.sketch(false).unwrap();
        let attention = sketch.operations().filter(|operation| operation.name() == "attention").count();
        // Around each attention two values get another shape, which is no operation.
        assert_eq!(sketch.operations().count() + 2 * attention, tape.recorded());
        let (one, two) = (sketch.peak_bytes(1, 4, false), sketch.peak_bytes(2, 4, false));
        assert!(one < two && two <= 2 * one, "{one} bytes for one image, {two} for two");
        let again = sketch.peak_bytes(2, 4, true);
        assert!(again * 5 < two * 4, "{again} bytes where blocks are computed again, {two} where not");
    }
}
