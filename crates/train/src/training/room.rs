//! A step on a GPU whose memory may be full. On a CPU this cannot be detected.
//!
//! The memory kept for later use is freed first: a recording, and blocks of dropped tensors. Then the step computes half as
//! many images at once, unless the configuration sets their number; the update is the same. A recording that does not fit costs
//! only speed: the steps are queued operation by operation.

use ddpm_kernels::cuda::Gpu;
use ddpm_model::ModelError;
use ddpm_run::memory::format_bytes;

use super::gpu_memory::GpuEstimate;
use super::step::{Learner, StepInputs};
use crate::config::TrainPlan;
use crate::config::types::TrainConfig;
use crate::engine::Engine;
use crate::error::Error;

/// Steps without a recording after one did not fit into memory: it may be free again later.
const UNRECORDED: u64 = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    /// Whether the number of images computed at once may be made smaller.
    may_halve: bool,
    /// For the advice on what would fit.
    config: TrainConfig,
    /// Messages for the user.
    pub(super) notices: Vec<String>,
}

impl Room {
    /// A room for the steps of `plan`.
    pub(super) fn new(plan: &TrainPlan) -> Self {
        Self { may_halve: plan.micro_batch().is_none(), config: plan.config().clone(), notices: Vec::new() }
    }

    /// Makes a step on `engine`.
    ///
    /// # Errors
    /// The step's own errors, or too little memory for any step.
    pub(super) fn step(
        &mut self,
        engine: &mut Engine,
        learner: &mut Learner,
        inputs: &StepInputs,
    ) -> Result<(), Error> {
        if !engine.will_replay() {
            return self.step_as_it_is(engine, learner, inputs);
        }
        let mut replay = |engine: &mut Engine| engine.replay(&mut |clock| learner.step(inputs, clock));
        let mut replayed = replay(engine);
        // The memory may only be held by blocks of dropped tensors, such as a picture's.
        if replayed.as_ref().is_err_and(ModelError::is_out_of_memory) && engine.give_back_memory()? {
            replayed = replay(engine);
        }
        match replayed {
            Err(error) if error.is_out_of_memory() => {
                // No part of the step has run: the driver allocates a recording's memory before it starts.
                engine.give_back_memory()?;
                if !self.halve(learner) {
                    engine.pause_recording(UNRECORDED);
                    self.notices.push(format!(
                        "a recorded step does not fit into the GPU's memory: the next {UNRECORDED} steps are queued operation \
                         by operation, which may be slower"
                    ));
                }
                self.step_as_it_is(engine, learner, inputs)
            }
            replayed => Ok(replayed?),
        }
    }

    /// Makes a step operation by operation, with fewer images at once as long as memory is too small.
    fn step_as_it_is(&mut self, engine: &mut Engine, learner: &mut Learner, inputs: &StepInputs) -> Result<(), Error> {
        let mut given_back = false;
        loop {
            let ran = engine.run_as_it_is(&mut |clock| learner.step(inputs, clock));
            match ran.and_then(|()| Ok(engine.finish()?)) {
                Err(error) if error.is_out_of_memory() => {
                    engine.give_back_memory()?;
                    let tried_with_all = std::mem::replace(&mut given_back, true);
                    if tried_with_all && !self.halve(learner) {
                        return Err(self.does_not_fit(learner, error));
                    }
                }
                ran => return Ok(ran?),
            }
        }
    }

    /// Halves the number of images computed at once, if there are at least two and the configuration does not set their number;
    /// returns whether it did.
    fn halve(&mut self, learner: &mut Learner) -> bool {
        if !self.may_halve || learner.micro_batch <= 1 {
            return false;
        }
        let (all, half) = (learner.micro_batch, learner.micro_batch.div_ceil(2));
        self.notices.push(format!("{all} images at once do not fit into the GPU's memory: {half} at a time"));
        learner.micro_batch = half;
        true
    }

    /// The error of a step that does not fit: the memory it needs, the memory there is, and what would fit.
    fn does_not_fit(&self, learner: &Learner, error: ModelError) -> Error {
        let (images, cause) = (learner.micro_batch, Some(Box::new(error)));
        let plural = if images == 1 { "" } else { "s" };
        let mut message = format!("a step with {images} image{plural} at once does not fit into the GPU's memory");
        let room = Gpu::of(learner.params.buffer().device()).and_then(|gpu| gpu.memory());
        let (Ok(room), Ok(estimate)) = (room, GpuEstimate::new(&self.config)) else {
            return Error::StepTooLarge { message, advice: None, cause };
        };
        // The failed step holds no memory any more, so all free memory can hold activations: the lasting parts are already
        // allocated.
        let needs = estimate.of(images);
        let there = room.free + needs.total_bytes - needs.activations_bytes;
        message += &format!(
            ": it takes about {}; there are {}, of {} in all",
            needs.describe(),
            format_bytes(there),
            format_bytes(room.total)
        );
        Error::StepTooLarge { message, advice: Some(estimate.advice(images, there)), cause }
    }
}
