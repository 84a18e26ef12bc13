//! One optimizer step: Algorithm 1 of Ho et al. 2020, line by line in `Trainer::micro_batch`.
//!
//! Everything random is a function of the seed, the step and the sample's place in the batch, so a step needs nothing
//! from the steps before it but the weights and the optimizer's state.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use ddpm_data::Batch;
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DiffusionProcess, Loss, LossInputs, TimestepSampler};
use ddpm_model::optim::{AdamWConfig, LrConfig, Optimizer};
use ddpm_model::params::{Gradients, Params};
use ddpm_model::tape::{DropoutStream, Tape};
use ddpm_model::unet::UNet;
use ddpm_run::memory::format_bytes;

#[cfg(feature = "cuda")]
use super::gpu::GpuSteps;
use super::outcome::{Phases, SampleLosses, StepOutcome};
use super::telling::Phase;
use crate::config::{TrainPlan, set_arithmetic};
use crate::error::Error;
use crate::exchange::Imported;
use crate::memory;
use crate::noise::normals;
use crate::pixels::normalise;

/// Everything a step reads and changes.
#[derive(Debug)]
pub struct Trainer {
    pub(super) unet: UNet,
    pub(crate) params: Params,
    pub(super) optimizer: Optimizer,
    pub(super) gradients: Gradients,
    pub(super) process: Arc<DiffusionProcess>,
    pub(super) loss: Loss,
    pub(super) timestep_sampler: TimestepSampler,
    pub(super) lr: LrConfig,
    label_dropout: Option<LabelDropout>,
    pub(super) noise: Philox,
    pub(super) seed: u64,
    pub(super) micro_batch: usize,
    pub(super) checkpointing: bool,
    device: Device,
    /// What steps did that nobody has asked about.
    pub(super) finished: VecDeque<StepOutcome>,
    #[cfg(feature = "cuda")]
    pub(super) gpu: Option<Box<GpuSteps>>,
    /// What the run was imported from; goes into every checkpoint.
    pub(super) imported: Option<Imported>,
}

/// Replaces labels by the class "none", for classifier-free guidance.
#[derive(Clone, Copy, Debug)]
struct LabelDropout {
    probability: f64,
    none: u32,
}

impl Trainer {
    /// A fresh model for `plan` on `device`.
    ///
    /// # Errors
    /// A setting or a device that cannot be.
    pub fn new(plan: &TrainPlan, device: &Device) -> Result<Self, Error> {
        let unet = UNet::new(&plan.config().model)?;
        require_room(unet.layout().len(), plan.config().train.ema_decays.len(), device)?;
        let params = Params::initialise(unet.layout(), plan.config().run.seed, device)?;
        let optimizer = Optimizer::new(adamw_config(plan), &params)?;
        Self::from_parts(plan, device, unet, &params, optimizer)
    }

    /// A trainer around weights and an optimizer that exist.
    pub(super) fn from_parts(
        plan: &TrainPlan,
        device: &Device,
        unet: UNet,
        params: &Params,
        optimizer: Optimizer,
    ) -> Result<Self, Error> {
        let config = plan.config();
        let params = params.computing_in(set_arithmetic(&config.train, device)?)?;
        let process = Arc::new(DiffusionProcess::new(&config.diffusion)?);
        let timesteps = config.diffusion.num_train_timesteps;
        let label_dropout = plan
            .classes()
            .filter(|_| config.loss.label_dropout > 0.0)
            .map(|classes| LabelDropout { probability: config.loss.label_dropout, none: classes as u32 - 1 });
        Ok(Self {
            gradients: Gradients::new(unet.layout(), device)?,
            loss: Loss::new(&config.loss, &config.diffusion)?,
            timestep_sampler: TimestepSampler::new(&config.loss, config.run.seed, timesteps)?,
            lr: LrConfig {
                lr: config.train.lr,
                schedule: config.train.lr_schedule,
                warmup_steps: config.train.warmup_steps,
                total_steps: config.train.steps,
            },
            label_dropout,
            noise: Philox::new(config.run.seed, Purpose::Noise),
            seed: config.run.seed,
            micro_batch: plan.micro_batch().map_or(config.train.batch_size, usize::from),
            checkpointing: config.train.gradient_checkpointing,
            device: device.clone(),
            finished: VecDeque::new(),
            #[cfg(feature = "cuda")]
            gpu: if device.is_cuda() { Some(Box::new(GpuSteps::new(plan, &unet, device)?)) } else { None },
            unet,
            params,
            optimizer,
            process,
            imported: None,
        })
    }

    /// Steps taken.
    pub fn steps_taken(&self) -> u64 {
        self.optimizer.steps_taken()
    }

    /// The diffusion process.
    pub fn process(&self) -> &DiffusionProcess {
        &self.process
    }

    /// The network.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// The weights that pictures are drawn with: the first moving average, or without one the raw weights; in the format
    /// that the network computes in.
    ///
    /// # Errors
    /// A device that fails.
    pub fn sampling_params(&self) -> Result<Params, ModelError> {
        match self.optimizer.averages().first() {
            Some(average) => average.params.computing_in(self.params.dtype()),
            None => Ok(self.params.clone()),
        }
    }

    /// Learns from `batch`, the batch of this step: on a GPU by queueing what is to be computed. See
    /// [`outcomes`](Self::outcomes).
    ///
    /// # Errors
    /// The loss or the gradient is not finite; the weights are then those of the step before.
    pub fn step(&mut self, batch: &Batch) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some(mut gpu) = self.gpu.take() {
            let queued = self.queue_step(&mut gpu, batch);
            self.gpu = Some(gpu);
            return queued;
        }
        let outcome = self.learn(batch)?;
        self.finished.push_back(outcome);
        Ok(())
    }

    /// What the steps did since this was asked last, oldest first; with `all`, also those that a GPU is still computing.
    ///
    /// # Errors
    /// As [`step`](Self::step), found out only now.
    pub fn outcomes(&mut self, all: bool) -> Result<Vec<StepOutcome>, Error> {
        #[cfg(feature = "cuda")]
        if all && let Some(mut gpu) = self.gpu.take() {
            let read = self.read_steps(&mut gpu, 0);
            self.gpu = Some(gpu);
            read?;
        }
        let _ = all;
        Ok(self.finished.drain(..).collect())
    }

    /// Learns from `batch` part by part; on a GPU, where a step's parts are not seen otherwise, gives their times, and if
    /// `profiled` shows the step to a profiler.
    pub(crate) fn time_step(&mut self, batch: &Batch, profiled: bool) -> Result<Phases, Error> {
        #[cfg(feature = "cuda")]
        if let Some(mut gpu) = self.gpu.take() {
            let timed = self.queue_timed_step(&mut gpu, batch, profiled);
            self.gpu = Some(gpu);
            return timed;
        }
        let _ = profiled;
        let outcome = self.learn(batch)?;
        let phases = outcome.phases;
        self.finished.push_back(outcome);
        Ok(phases)
    }

    /// Gives back the memory that a GPU's recorded step keeps; the next step records it anew. Whether there was any.
    ///
    /// # Errors
    /// A step queued before has failed.
    pub fn give_back_memory(&mut self) -> Result<bool, Error> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            return gpu.give_back_recording();
        }
        Ok(false)
    }

    /// Images computed at once: as configured, or as many as turned out to fit.
    pub fn images_at_once(&self) -> usize {
        self.micro_batch
    }

    /// What happened that a user should know, since this was asked last.
    pub fn take_notices(&mut self) -> Vec<String> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            return std::mem::take(&mut gpu.notices);
        }
        Vec::new()
    }

    fn learn(&mut self, batch: &Batch) -> Result<StepOutcome, Error> {
        let step = self.steps_taken();
        let global_batch = batch.shape[0];
        let mut outcome = StepOutcome::new(self.lr.at(step), global_batch);
        self.gradients.reset();
        for first in (0..global_batch).step_by(self.micro_batch) {
            let samples = first..(first + self.micro_batch).min(global_batch);
            self.micro_batch(step, batch, samples, &mut outcome)?;
        }
        if let Some(loss) = outcome.losses.iter().find(|loss| !loss.is_finite()) {
            return Err(diverged(step, &format!("the loss is {loss}")));
        }
        let phase = Phase::optimizer();
        let report =
            self.optimizer.step(&self.params, &mut self.gradients, outcome.lr).map_err(|error| match error {
                ModelError::NotFinite { .. } => diverged(step, &error.to_string()),
                other => other.into(),
            })?;
        self.timestep_sampler.observe(&outcome.timesteps, &outcome.unweighted);
        outcome.grad_norm = report.grad_norm;
        outcome.phases.optimizer = phase.end();
        Ok(outcome)
    }

    /// Adds the gradient of some of the batch's samples.
    fn micro_batch(
        &mut self,
        step: u64,
        batch: &Batch,
        samples: Range<usize>,
        outcome: &mut StepOutcome,
    ) -> Result<(), Error> {
        let phase = Phase::forward();
        let x_start = self.x_start(batch, &samples)?;
        let labels = self.labels(step, batch, &samples);
        let drawn = self.timestep_sampler.draw(step, samples.start, samples.len());
        let noise = normals(self.noise, step, samples.start, x_start.dims())?;
        let x_t = self.process.q_sample(&x_start, &drawn.timesteps, &noise)?;

        let dropout = DropoutStream { seed: self.seed, step, first_position: samples.start as u64 };
        let mut tape = Tape::training(&self.params, dropout).checkpointing(self.checkpointing);
        let timesteps: Vec<f32> = drawn.timesteps.iter().map(|t| t.index() as f32).collect();
        let output = self.unet.forward(&mut tape, &x_t, &timesteps, labels.as_deref())?;
        let loss = self.loss.compute(
            &self.process,
            &LossInputs {
                model_output: output.value(),
                x_start: &x_start,
                t: &drawn.timesteps,
                noise: &noise,
                weights: &drawn.weights,
                global_batch: batch.shape[0],
            },
        )?;
        outcome.phases.forward += phase.end();

        let phase = Phase::backward();
        tape.backward(output, loss.grad, &mut self.gradients)?;
        outcome.phases.backward += phase.end();

        let losses = SampleLosses { per_sample: loss.per_sample, mse: loss.mse, vlb: loss.vlb };
        outcome.take_in(drawn, losses, self.process.schedule().len());
        Ok(())
    }

    /// Some of the batch's images.
    fn x_start(&self, batch: &Batch, samples: &Range<usize>) -> Result<Tensor, ModelError> {
        let [_, height, width, channels] = batch.shape;
        let image = height * width * channels;
        let bytes = &batch.images[samples.start * image..samples.end * image];
        normalise(bytes, [samples.len(), height, width, channels], &self.device)
    }

    /// The labels, some of them dropped where guidance is to be learned.
    pub(super) fn labels(&self, step: u64, batch: &Batch, samples: &Range<usize>) -> Option<Vec<u32>> {
        let mut labels = batch.labels.as_ref()?[samples.clone()].to_vec();
        if let Some(dropout) = self.label_dropout {
            let philox = Philox::new(self.seed, Purpose::LabelDropout);
            for (position, label) in samples.clone().zip(&mut labels) {
                if philox.uniform(step, position as u64) < dropout.probability {
                    *label = dropout.none;
                }
            }
        }
        Some(labels)
    }
}

pub(super) fn adamw_config(plan: &TrainPlan) -> AdamWConfig {
    let train = &plan.config().train;
    AdamWConfig {
        betas: train.betas,
        eps: train.eps,
        weight_decay: train.weight_decay,
        clip_grad_norm: train.clip_grad_norm,
        ema_decays: train.ema_decays.clone(),
    }
}

/// Refuses a network of which the machine, or the GPU, cannot even hold weights, gradient, moments and averages: a machine's
/// kernel would hand out the memory all the same, and end some process when it is used.
fn require_room(parameters: usize, averages: usize, device: &Device) -> Result<(), Error> {
    let needed = (parameters as u64).saturating_mul(size_of::<f32>() as u64 * (4 + averages as u64));
    match memory::room_on(device)? {
        Some(room) if needed > room => {
            let (needed, room) = (format_bytes(needed), format_bytes(room));
            let whose = if device.is_cpu() { "memory" } else { "the GPU's memory" };
            Err(Error::NetworkTooLarge { parameters, needed, whose, room })
        }
        _ => Ok(()),
    }
}

pub(super) fn diverged(step: u64, what: &str) -> Error {
    Error::Diverged { step: step + 1, what: what.to_owned() }
}
