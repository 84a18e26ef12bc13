//! The cost of the loss and the diffusion process in a training step: steps with and without them, in turn.
//!
//! ```sh
//! cargo bench -p ddpm-train --bench process_share
//! ```
//! 'With' is a step as `training/step.rs` makes it: choose t, draw noise, noise the images, run the network, compute the loss
//! and its gradient, go back, update. 'Without' runs the same network back and forth on a ready x_t with a ready gradient. The
//! ratio is taken pair by pair, so that a drift of the machine's speed does not matter. It is still noisier than the difference
//! to be measured, so the time of process and loss is also measured directly, within the steps.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use ddpm_kernels::optim::{JudgedStep, StepState};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{DiffusionProcess, Loss, LossInputs, TimestepSampler};
use ddpm_model::optim::Optimizer;
use ddpm_model::params::{Gradients, Params};
use ddpm_model::tape::{DropoutStream, Tape};
use ddpm_model::unet::UNet;
use ddpm_train::config::{Resolved, Setting, TrainConfig, TrainPlan};
use ddpm_train::noise::normals;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WARM_UP: usize = 3;
const PAIRS: usize = 30;
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/quickstart.toml");

/// The losses that are measured: their name and their settings.
const LOSSES: [(&str, &[(&str, &str)]); 3] = [
    ("simple", &[]),
    ("hybrid, learned variance", &[("loss.kind", "hybrid"), ("diffusion.variance_type", "learned_range")]),
    (
        "vlb, learned variance, importance sampling of t",
        &[
            ("loss.kind", "vlb"),
            ("diffusion.variance_type", "learned_range"),
            ("loss.timestep_sampler", "loss_second_moment"),
        ],
    ),
];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    // `cargo test --benches` calls benchmarks with other arguments; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    println!("configs/quickstart.toml, {} threads, {PAIRS} pairs of steps, medians", rayon::current_num_threads());
    for (name, settings) in LOSSES {
        let setting = |(key, value): &(&str, &str)| Setting { key: (*key).to_owned(), value: (*value).to_owned() };
        let settings: Vec<Setting> = settings.iter().map(setting).collect();
        let plan = TrainPlan::new(&Resolved::load(Path::new(CONFIG), &settings)?)?;
        let mut step = Step::new(plan.config())?;
        let (mut with, mut within, mut without, mut ratios) = (vec![], vec![], vec![], vec![]);
        for pair in 0..WARM_UP + PAIRS {
            let ([whole, part], rest) = (step.with()?, step.without()?);
            if pair >= WARM_UP {
                with.push(whole);
                within.push(part);
                without.push(rest);
                ratios.push(whole / rest);
            }
        }
        let [with, within, without, ratio] = [with, within, without, ratios].map(median);
        let (more, share) = (100.0 * (ratio - 1.0), 100.0 * within / with);
        println!("{name}: with {with:.1} ms, without {without:.1} ms, pair by pair {more:+.2} %");
        println!("    in process and loss {within:.2} ms, {share:.2} % of the step");
    }
    Ok(())
}

struct Step {
    unet: UNet,
    params: Params,
    gradients: Gradients,
    optimizer: Optimizer,
    judged: JudgedStep,
    process: DiffusionProcess,
    loss: Loss,
    timestep_sampler: TimestepSampler,
    noise: Philox,
    /// `[N, H, W, C]`; any images cost the same.
    x_start: Tensor,
    /// A gradient of the output's shape, and timesteps: what 'without' has ready.
    ready: (Tensor, Vec<f32>),
    number: u64,
}

impl Step {
    fn new(config: &TrainConfig) -> Result<Self> {
        let device = Device::Cpu;
        let unet = UNet::new(&config.model)?;
        let params = Params::initialise(unet.layout(), config.run.seed, &device)?;
        let train = &config.train;
        let adamw = train.adamw();
        let (size, channels) = (config.data.image_size, config.data.channels);
        let dims = size.shape(train.batch_size, channels);
        let noise = Philox::new(config.run.seed, Purpose::Noise);
        let x_start = (normals(noise, u64::MAX, 0, &dims)? * 0.5)?;
        let out_channels = config.diffusion.variance_type.out_channels(channels);
        let gradient = Tensor::full(1e-4f32, &size.shape(dims[0], out_channels)[..], &device)?;
        let ready = (gradient, (0..dims[0]).map(|k| (k * 31) as f32).collect());
        Ok(Self {
            gradients: Gradients::new(unet.layout(), &device)?,
            optimizer: Optimizer::new(adamw, &params)?,
            judged: JudgedStep::new(&device, &StepState::unscaled())?,
            process: DiffusionProcess::new(&config.diffusion)?,
            loss: Loss::new(&config.loss, &config.diffusion)?,
            timestep_sampler: TimestepSampler::new(
                &config.loss,
                config.run.seed,
                config.diffusion.num_train_timesteps,
            )?,
            unet,
            params,
            noise,
            x_start,
            ready,
            number: 0,
        })
    }

    /// Milliseconds of a whole step, and of process and loss in it.
    fn with(&mut self) -> Result<[f64; 2]> {
        let start = Instant::now();
        self.number += 1;
        let count = self.x_start.dims()[0];
        let drawn = self.timestep_sampler.draw(self.number, 0, count);
        let noise = normals(self.noise, self.number, 0, self.x_start.dims())?;
        let x_t = self.process.q_sample(&self.x_start, &drawn.timesteps, &noise)?;
        let timesteps: Vec<f32> = drawn.timesteps.iter().map(|t| t.index() as f32).collect();
        let mut within = start.elapsed();
        let mut tape = Tape::training(&self.params, self.dropout());
        let output = self.unet.forward(&mut tape, &x_t, &timesteps, None)?;
        let losing = Instant::now();
        let inputs = LossInputs {
            model_output: output.value(),
            x_start: &self.x_start,
            t: &drawn.timesteps,
            noise: &noise,
            weights: &drawn.weights,
            global_batch: count,
        };
        let loss = self.loss.compute(&self.process, &inputs)?;
        within += losing.elapsed();
        self.gradients.reset();
        tape.backward(output, loss.grad, &mut self.gradients)?;
        self.update()?;
        let observing = Instant::now();
        self.timestep_sampler.observe(&drawn.timesteps, &loss.per_sample);
        within += observing.elapsed();
        Ok([start.elapsed(), within].map(|time| time.as_secs_f64() * 1e3))
    }

    /// Milliseconds of a step without process and loss.
    fn without(&mut self) -> Result<f64> {
        let start = Instant::now();
        let (gradient, timesteps) = &self.ready;
        let mut tape = Tape::training(&self.params, self.dropout());
        let output = self.unet.forward(&mut tape, &self.x_start, timesteps, None)?;
        self.gradients.reset();
        tape.backward(output, gradient.clone(), &mut self.gradients)?;
        self.update()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// A learning rate of 0: both kinds of step keep the same weights.
    fn update(&mut self) -> Result<()> {
        let settings = Tensor::new(self.optimizer.count_step(0.0).words(), &Device::Cpu)?;
        Ok(self.optimizer.step(&self.judged, &settings, &self.params, &mut self.gradients)?)
    }

    fn dropout(&self) -> DropoutStream {
        DropoutStream { seed: 0, step: self.number, first_position: 0 }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
