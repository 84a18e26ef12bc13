//! A step of our optimizer under candle's trait beside one of `candle_nn::AdamW`, over the variables of the default network
//! and over as many numbers in one piece, in turn. `cargo bench -p ddpm-model --bench optimizer` prints medians and ratios.

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};
use ddpm_kernels::image_size::ImageSize;
use ddpm_model::optim::AdamWConfig;
use ddpm_model::plain::{AdamW, AdamWSettings, UNet2DModel};
use ddpm_model::unet::UNetConfig;

const ROUNDS: usize = 31;

fn main() -> Result<(), Box<dyn Error>> {
    let variables = VarMap::new();
    let config = UNetConfig {
        sample_size: Some(ImageSize::square(32)),
        in_channels: Some(3),
        out_channels: Some(3),
        ..UNetConfig::default()
    };
    UNet2DModel::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    compare("the default network", &variables.all_vars())?;
    compare("10 million in one piece", &[Var::randn(0f32, 1.0, 10_000_000, &Device::Cpu)?])
}

fn compare(name: &str, vars: &[Var]) -> Result<(), Box<dyn Error>> {
    let adamw = AdamWConfig {
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        clip_grad_norm: 0.0,
        ema_decays: Vec::new(),
        ema_warmup: true,
        max_bad_steps: 0,
        spike_factor: 0.0,
    };
    let mut ours = AdamW::new(vars.to_vec(), AdamWSettings { lr: 1e-4, adamw })?;
    let mut candles = candle_nn::AdamW::new(vars.to_vec(), candle_nn::ParamsAdamW::default())?;
    let products = vars.iter().map(|var| var.sqr()?.sum_all()).collect::<candle_core::Result<Vec<_>>>()?;
    let grads = Tensor::stack(&products, 0)?.sum_all()?.backward()?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        ours.step(&grads)?;
        times[0].push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        candles.step(&grads)?;
        times[1].push(start.elapsed().as_secs_f64() * 1e3);
    }
    let [ours, candles] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    let numbers: usize = vars.iter().map(|var| var.elem_count()).sum();
    println!(
        "{name}: {numbers} numbers in {} variables: ours {ours:.2} ms, candle's {candles:.2} ms, {:.2}x",
        vars.len(),
        candles / ours
    );
    Ok(())
}
