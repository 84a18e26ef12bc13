//! What a trainer is made of, from its plan.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ddpm_collective::Solo;
use ddpm_kernels::ops::diffusion::{SampleConstants, place};
use ddpm_kernels::optim::{JudgedStep, StepSettings, StepState};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::ModelError;
use ddpm_model::optim::Optimizer;
use ddpm_model::params::{Gradients, Params};
use ddpm_model::unet::UNet;
use ddpm_run::memory::format_bytes;

use super::super::step::{Learner, RESULTS, StepInputs};
use crate::config::{TrainPlan, set_arithmetic};
use crate::error::Error;
use crate::memory;

/// The initial loss scale of f16, as in PyTorch.
const FIRST_LOSS_SCALE: f64 = 65_536.0;

/// The learner for the steps of `plan`.
pub(super) fn learner(
    plan: &TrainPlan,
    device: &Device,
    unet: UNet,
    params: &Params,
    optimizer: Optimizer,
) -> Result<Learner, Error> {
    let config = plan.config();
    let params = params.computing_in(set_arithmetic(&config.train, device)?)?;
    let share = plan.share();
    let state = match params.dtype() {
        DType::F16 => StepState::scaled(FIRST_LOSS_SCALE),
        _ => StepState::unscaled(),
    };
    Ok(Learner {
        gradients: Gradients::new(unet.layout(), device)?,
        judged: JudgedStep::new(device, &state)?,
        losses: Tensor::zeros((share.of(), RESULTS), DType::F64, device).map_err(ModelError::from)?,
        noise: Philox::new(config.run.seed, Purpose::Noise),
        seed: config.run.seed,
        share,
        ranks: Arc::new(Solo),
        micro_batch: plan.at_once(),
        checkpointing: config.train.gradient_checkpointing,
        unet,
        params,
        optimizer,
    })
}

/// Inputs with the shapes and types of every step of `plan`; the values do not matter.
pub(super) fn any_inputs(plan: &TrainPlan, learner: &Learner) -> Result<StepInputs, ModelError> {
    let (n, data, host) = (learner.share.count(), &plan.config().data, Device::Cpu);
    let labels = plan.classes().map(|_| vec![0; n]);
    let settings = StepSettings::len(learner.optimizer.averages().len());
    Ok(StepInputs {
        images: Tensor::zeros(&data.image_size.shape(n, data.channels)[..], DType::U8, &host)?,
        samples: Tensor::zeros((n, SampleConstants::WORDS), DType::F64, &host)?,
        condition: learner.unet.condition(&vec![0.0; n], labels.as_deref(), &host)?,
        place: Tensor::new(&place(0, 0), &host)?,
        settings: Tensor::zeros(settings, DType::F64, &host)?,
    })
}

/// Refuses a network whose weights, gradient, moments and averages alone exceed the memory of the machine or the GPU: an
/// operating system would grant the memory all the same, and kill some process when it is used.
pub(super) fn require_room(parameters: usize, averages: usize, device: &Device) -> Result<(), Error> {
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
