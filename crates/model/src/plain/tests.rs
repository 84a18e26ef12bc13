#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};
use ddpm_kernels::image_size::ImageSize;

use super::*;
use crate::optim::AdamWConfig;

fn small() -> UNetConfig {
    UNetConfig {
        sample_size: Some(ImageSize::square(8)),
        in_channels: Some(1),
        out_channels: Some(1),
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        down_block_types: UNetConfig::default().down_block_types[1..].to_vec(),
        up_block_types: UNetConfig::default().up_block_types[1..].to_vec(),
        norm_num_groups: 4,
        ..UNetConfig::default()
    }
}

fn settings(ema_decays: Vec<f64>, clip_grad_norm: f64) -> AdamWSettings {
    let adamw = AdamWConfig {
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        clip_grad_norm,
        ema_decays,
        ema_warmup: true,
        max_bad_steps: 0,
        spike_factor: 0.0,
    };
    AdamWSettings { lr: 1e-2, adamw }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_network_of_candles_layers_learns_by_candles_autograd_and_our_optimizer() {
    let variables = VarMap::new();
    let unet = UNet2DModel::new(&small(), VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu)).unwrap();
    let mut optimizer = AdamW::new(variables.all_vars(), settings(vec![0.99], 1.0)).unwrap();
    let x_t = Tensor::randn(0f32, 1.0, (4, 1, 8, 8), &Device::Cpu).unwrap();
    let loss = || {
        let output = unet.forward_t(&x_t, &[1.0, 200.0, 500.0, 999.0], None, true).unwrap();
        (output - &x_t).unwrap().sqr().unwrap().mean_all().unwrap()
    };
    let first = loss();
    for _ in 0..20 {
        optimizer.backward_step(&loss()).unwrap();
    }
    let (first, last) = (first.to_scalar::<f32>().unwrap(), loss().to_scalar::<f32>().unwrap());
    assert!(last < 0.5 * first, "{first} became {last}");
}

#[test]
fn steps_are_those_of_candles_own_adamw_where_nothing_is_clipped() {
    let start = Tensor::arange(1f32, 36.0, &Device::Cpu).unwrap().reshape((5, 7)).unwrap();
    let (ours, theirs) = (Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap());
    let mut optimizer = AdamW::new(vec![ours.clone()], settings(vec![0.5], 0.0)).unwrap();
    let candles = candle_nn::ParamsAdamW { lr: 1e-2, ..candle_nn::ParamsAdamW::default() };
    let mut rival = candle_nn::AdamW::new(vec![theirs.clone()], candles).unwrap();
    let before = values(&start);
    for _ in 0..5 {
        optimizer.backward_step(&ours.sqr().unwrap().sum_all().unwrap()).unwrap();
        rival.backward_step(&theirs.sqr().unwrap().sum_all().unwrap()).unwrap();
    }
    let (got, want, average) = (values(&ours), values(&theirs), values(&optimizer.average(0).unwrap()[0]));
    for i in 0..got.len() {
        // Five roundings.
        assert!((got[i] - want[i]).abs() < 5.0 * f32::EPSILON * want[i], "{i}: {} {}", got[i], want[i]);
        assert!((got[i] - before[i]).abs() > 0.04, "{i} has not moved");
        // Between where it is and where it was.
        assert!((average[i] - got[i]) * (average[i] - before[i]) < 0.0, "{i}: {}", average[i]);
    }
    assert!(optimizer.average(1).is_err());
}

#[test]
fn a_gradient_is_clipped_by_the_norm_over_all_variables_and_one_that_is_not_finite_changes_nothing() {
    let one = |value: f32| Var::new(&[value], &Device::Cpu).unwrap();
    let (a, b, unused) = (one(3.0), one(4.0), one(1.0));
    let variables = vec![a.clone(), b.clone(), unused.clone()];
    let mut optimizer = AdamW::new(variables, settings(vec![], 1.0)).unwrap();
    // Gradients 3 and 4, norm 5: clipped to 0.6 and 0.8. The first step of Adam has size lr whatever the gradient is, but the
    // moments have not.
    let loss = |scale: f64| {
        let half = |v: &Var| (v.sqr().unwrap() * (0.5 * scale)).unwrap();
        (half(&a) + half(&b)).unwrap().sum_all().unwrap()
    };
    optimizer.backward_step(&loss(1.0)).unwrap();
    let moment = |slot: usize| optimizer.slots[slot].exp_avg.to_vec().unwrap()[0];
    assert!((moment(0) - 0.06).abs() < 1e-6 && (moment(1) - 0.08).abs() < 1e-6, "{} {}", moment(0), moment(1));
    let before = (values(&a), values(&b));
    assert!(optimizer.backward_step(&loss(f64::NAN)).unwrap_err().to_string().contains("not finite"));
    assert_eq!((values(&a), values(&b)), before);
    assert_eq!(values(&unused), [1.0]);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let zeros = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let unet = UNet2DModel::new(&small(), zeros.clone()).unwrap();
    let x_t = Tensor::zeros((2, 1, 8, 8), DType::F32, &Device::Cpu).unwrap();
    let refused = |timesteps: &[f32], labels| unet.forward(&x_t, timesteps, labels).unwrap_err().to_string();
    assert!(refused(&[1.0], None).contains("2 images, but 1 timesteps"));
    assert!(refused(&[1.0, 2.0], Some(&[0, 0][..])).contains("without classes"));
    let classes = UNetConfig { num_class_embeds: Some(3), ..small() };
    let unet = UNet2DModel::new(&classes, zeros.clone()).unwrap();
    let refused = |labels| unet.forward(&x_t, &[1.0, 2.0], labels).unwrap_err().to_string();
    assert!(refused(None).contains("needs a label"));
    assert!(refused(Some(&[0][..])).contains("2 images, but 1 labels"));
    let impossible = UNetConfig { norm_num_groups: 3, ..small() };
    assert!(UNet2DModel::new(&impossible, zeros).unwrap_err().to_string().contains("norm_num_groups"));
}

#[test]
fn mish_is_right_in_16_bits_from_where_it_is_nothing_to_where_it_is_the_identity() {
    let numbers: Vec<f32> = (-40..=40).map(|i| i as f32 * 0.5).collect();
    for (dtype, close) in [(DType::F16, 1e-3), (DType::BF16, 8e-3), (DType::F32, 1e-6)] {
        let x = Tensor::new(numbers.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let y = layers::activate(crate::unet::Activation::Mish, &x).unwrap().to_dtype(DType::F32).unwrap();
        for (x, y) in numbers.iter().map(|&x| f64::from(x)).zip(values(&y)) {
            let want = x * x.exp().ln_1p().tanh();
            assert!((f64::from(y) - want).abs() <= close * want.abs() + 2e-6, "{dtype:?}: of {x} {y}, not {want}");
        }
    }
}
