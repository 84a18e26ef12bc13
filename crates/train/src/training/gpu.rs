//! The training step on a GPU: Algorithm 1 once more, as work that is queued, recorded and replayed.
//!
//! Everything that changes from step to step (images, timesteps, the step's number, the learning rate) is uploaded in one
//! piece to tensors that keep their places. All the rest reads those: noise is made where it is used, the loss and its
//! gradient are one kernel, the optimizer judges the gradient's norm itself. So the host never waits, and the whole step is
//! recorded once and replayed by one call.
//!
//! The first step runs as it is: it finds the fastest algorithms for its shapes, and whether its memory suffices. The
//! second is recorded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use ddpm_data::Batch;
use ddpm_kernels::KernelError;
use ddpm_kernels::cuda::switches::Family;
use ddpm_kernels::cuda::{Download, Gpu, IN_FLIGHT, Mark, Numbers, Recording, Upload};
use ddpm_kernels::ops::diffusion::{Noise, NoisyImages, SampleConstants, loss_and_grad, place, q_sample};
use ddpm_kernels::optim::{DeviceStep, StepSettings, StepState};
use ddpm_model::ModelError;
use ddpm_model::diffusion::DrawnTimesteps;
use ddpm_model::tape::{DropoutStream, Tape};
use ddpm_model::unet::{Condition, UNet};
use ddpm_run::memory::format_bytes;

use super::gpu_memory::GpuEstimate;
use super::outcome::{Phases, SampleLosses, StepOutcome};
use super::step::{Trainer, diverged};
use crate::config::TrainPlan;
use crate::config::types::{Precision, TrainConfig};
use crate::drawing::replay::{Labels, labels_dtype};
use crate::error::Error;

/// Where f16's loss scale starts, as PyTorch's.
const FIRST_LOSS_SCALE: f64 = 65_536.0;
/// Results of a sample: its loss, its mean squared error, its term of the bound.
const RESULTS: usize = 3;

/// Steps without a recording after one did not fit into memory.
const UNRECORDED: u64 = 1000;

/// The parts of an upload, in their order; labels come last, where there are any.
const IMAGES: usize = 0;
const SAMPLES: usize = 1;
const TIMESTEPS: usize = 2;
const PLACE: usize = 3;
const SETTINGS: usize = 4;
const LABELS: usize = 5;

/// What a trainer needs besides to train on a GPU.
#[derive(Debug)]
pub(super) struct GpuSteps {
    gpu: Arc<Gpu>,
    upload: Upload,
    /// Of the whole batch, f64 `[N, RESULTS]`.
    results: Tensor,
    download: Download,
    pub(super) device_step: DeviceStep,
    recording: Option<Recording>,
    /// Steps until the next one can be recorded: one must have run before, and after one did not fit, memory may be free
    /// again later.
    unrecorded: u64,
    /// While a step is timed: where its parts begin and end.
    marks: Option<Vec<(Part, Mark)>>,
    /// Steps whose results have not been read, oldest first.
    pending: VecDeque<Pending>,
    /// Whether the number of images computed at once may be made smaller where memory does not suffice.
    may_halve: bool,
    /// To say what would fit.
    config: TrainConfig,
    /// The format of labels, where there are any.
    labels: Option<DType>,
    vlb: bool,
    last: Instant,
    /// What happened that a user should know.
    pub(super) notices: Vec<String>,
}

/// What lies before a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Before,
    Forward,
    Backward,
    Optimizer,
}

/// A step that was queued.
#[derive(Debug)]
struct Pending {
    drawn: DrawnTimesteps,
    lr: f64,
    phases: Phases,
}

impl GpuSteps {
    /// Marks the end of `part`, while a step is timed; what is before all parts begins it anew.
    fn mark(&mut self, part: Part) -> Result<(), KernelError> {
        if let Some(marks) = &mut self.marks {
            if part == Part::Before {
                marks.clear();
            }
            marks.push((part, self.gpu.mark()?));
        }
        Ok(())
    }

    /// For a run of `plan` on a GPU.
    pub(super) fn new(plan: &TrainPlan, unet: &UNet, device: &Device) -> Result<Self, Error> {
        let gpu = Gpu::of(device)?;
        let data = &plan.config().data;
        let n = plan.config().train.batch_size;
        let mut shapes = vec![
            (DType::U8, vec![n, data.image_size, data.image_size, data.channels]),
            (DType::F64, vec![n, SampleConstants::WORDS]),
            (DType::F32, vec![n]),
            (DType::U32, vec![4]),
            (DType::F64, vec![StepSettings::WORDS]),
        ];
        let labels = plan.classes().map(|_| labels_dtype(unet, &[0])).transpose()?.flatten();
        shapes.extend(labels.map(|dtype| (dtype, vec![n])));
        let state = match plan.config().train.precision {
            Precision::F16 => StepState::scaled(FIRST_LOSS_SCALE),
            Precision::F32 | Precision::Bf16 => StepState::unscaled(),
        };
        let device_step = DeviceStep::new(device, &state)?;
        let results = Tensor::zeros((n, RESULTS), DType::F64, device).map_err(ModelError::from)?;
        let lens = [results.elem_count(), device_step.state_tensor().elem_count()];
        Ok(Self {
            upload: Upload::new(&gpu, &shapes)?,
            download: Download::new(&gpu, &lens)?,
            gpu,
            results,
            device_step,
            recording: None,
            unrecorded: 1,
            marks: None,
            pending: VecDeque::new(),
            may_halve: plan.micro_batch().is_none(),
            config: plan.config().clone(),
            labels,
            vlb: plan.config().loss.kind.has_bound(),
            last: Instant::now(),
            notices: Vec::new(),
        })
    }

    /// Gives back all memory that is kept for later, the recording's too; whether there was one.
    pub(super) fn give_back_recording(&mut self) -> Result<bool, Error> {
        let there = self.recording.take().is_some();
        self.gpu.give_back_unused()?;
        Ok(there)
    }

    /// Why a step with so many images at once cannot be: what it needs, what there is, what would fit.
    fn does_not_fit(&self, images: usize, error: ModelError) -> Error {
        let cause = Box::new(error);
        let plural = if images == 1 { "" } else { "s" };
        let mut message = format!("a step with {images} image{plural} at once does not fit into the GPU's memory");
        let (Ok(room), Ok(estimate)) = (self.gpu.memory(), GpuEstimate::new(&self.config)) else {
            return Error::StepTooLarge { message, advice: None, cause };
        };
        // Nothing of the step is left, so what is free is there for activations: what lasts has its place already.
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

impl Trainer {
    /// Queues the step that learns from `batch`.
    pub(super) fn queue_step(&mut self, gpu: &mut GpuSteps, batch: &Batch) -> Result<(), Error> {
        // A sampler that learns from the losses must have seen those of the step before.
        let (step, n) = (self.steps_taken(), batch.shape[0]);
        let most = if self.timestep_sampler.history().is_some() { 0 } else { IN_FLIGHT - 1 };
        self.read_steps(gpu, most)?;
        let drawn = self.timestep_sampler.draw(step, 0, n);
        let labels = self.labels(step, batch, &(0..n));
        let samples = self.loss.constants(&self.process, &drawn.timesteps, &drawn.weights, n)?;
        let samples: Vec<f64> = samples.iter().flat_map(SampleConstants::words).collect();
        let timesteps: Vec<f32> = drawn.timesteps.iter().map(|t| t.index() as f32).collect();
        let lr = self.lr.at(step);
        let settings = self.optimizer.count_step(lr).words()?;
        let place = place(step, 0);
        let mut numbers = vec![
            Numbers::U8(&batch.images),
            Numbers::F64(&samples),
            Numbers::F32(&timesteps),
            Numbers::U32(&place),
            Numbers::F64(&settings),
        ];
        let labels = labels.zip(gpu.labels).map(|(labels, dtype)| Labels::new(labels, dtype));
        numbers.extend(labels.as_ref().map(Labels::numbers));
        let sent = gpu.upload.send(&numbers).map_err(Error::from);
        if let Err(error) = sent.and_then(|()| self.run_or_replay(gpu, n)) {
            self.optimizer.uncount_step();
            return Err(error);
        }
        gpu.download.ask(&[&gpu.results, gpu.device_step.state_tensor()])?;
        let phases = Phases { forward: gpu.last.elapsed(), ..Phases::default() };
        gpu.last = Instant::now();
        gpu.pending.push_back(Pending { drawn, lr, phases });
        Ok(())
    }

    /// Queues the step that learns from `batch` operation by operation, and waits for the times of its parts. A host that
    /// is slower than the GPU makes them longer than in a step that is replayed. If `profiled`, a profiler that waits for it
    /// sees this step.
    pub(super) fn queue_timed_step(
        &mut self,
        gpu: &mut GpuSteps,
        batch: &Batch,
        profiled: bool,
    ) -> Result<Phases, Error> {
        self.read_steps(gpu, 0)?;
        // A recording keeps its memory, and there may be none left for a step beside it.
        gpu.give_back_recording()?;
        gpu.marks = Some(Vec::new());
        let device = gpu.gpu.clone();
        let queued =
            if profiled { device.profiled(|| self.queue_step(gpu, batch)) } else { self.queue_step(gpu, batch) };
        let marks = gpu.marks.take().unwrap_or_default();
        queued?;
        self.read_steps(gpu, 0)?;
        let mut phases = Phases::default();
        for ((_, start), (part, end)) in marks.iter().zip(marks.iter().skip(1)) {
            let time = Duration::from_secs_f64(f64::from(end.milliseconds_since(start)?.max(0.0)) * 1e-3);
            match part {
                Part::Before => {}
                Part::Forward => phases.forward += time,
                Part::Backward => phases.backward += time,
                Part::Optimizer => phases.optimizer += time,
            }
        }
        Ok(phases)
    }

    fn run_or_replay(&mut self, gpu: &mut GpuSteps, n: usize) -> Result<(), Error> {
        let as_it_is = gpu.marks.is_some() || !gpu.gpu.uses(Family::Graph);
        if as_it_is || (gpu.recording.is_none() && gpu.unrecorded > 0) {
            self.run_as_it_is(gpu, n)?;
            gpu.unrecorded = gpu.unrecorded.saturating_sub(1);
            return Ok(());
        }
        let mut replayed = self.replay(gpu, n);
        // What is in the way may only be kept for tensors that are gone, such as a picture's.
        if replayed.as_ref().is_err_and(ModelError::is_out_of_memory) && gpu.give_back_recording()? {
            replayed = self.replay(gpu, n);
        }
        match replayed {
            Err(error) if error.is_out_of_memory() => {
                // Nothing of it has run: the driver looks for a recording's memory before it begins.
                gpu.give_back_recording()?;
                if !self.halve(gpu) {
                    gpu.unrecorded = UNRECORDED;
                    gpu.notices.push(format!(
                        "a recorded step does not fit into the GPU's memory: the next {UNRECORDED} steps are queued operation \
                         by operation, which may be slower"
                    ));
                }
                self.run_as_it_is(gpu, n)
            }
            replayed => Ok(replayed?),
        }
    }

    /// Replays the step, which is recorded first where it is not.
    fn replay(&mut self, gpu: &mut GpuSteps, n: usize) -> Result<(), ModelError> {
        if let Some(recording) = &mut gpu.recording {
            return Ok(recording.replay()?);
        }
        gpu.gpu.make_room_to_record()?;
        let device = gpu.gpu.clone();
        let mut recording = device.record(|| self.queue_work(gpu, n))?;
        recording.replay()?;
        gpu.recording = Some(recording);
        Ok(())
    }

    /// Goes on with half as many images at once, if there are two and nobody chose their number; whether it does.
    fn halve(&mut self, gpu: &mut GpuSteps) -> bool {
        if !gpu.may_halve || self.micro_batch <= 1 {
            return false;
        }
        let (all, half) = (self.micro_batch, self.micro_batch.div_ceil(2));
        gpu.notices.push(format!("{all} images at once do not fit into the GPU's memory: {half} at a time"));
        self.micro_batch = half;
        true
    }

    /// Runs a step as it is, with fewer images at once for as long as memory does not suffice.
    fn run_as_it_is(&mut self, gpu: &mut GpuSteps, n: usize) -> Result<(), Error> {
        let mut given_back = false;
        loop {
            let queued = self.queue_work(gpu, n).and_then(|()| Ok(gpu.gpu.synchronize()?));
            match queued {
                Err(error) if error.is_out_of_memory() => {
                    gpu.gpu.give_back_unused()?;
                    let tried_with_all = std::mem::replace(&mut given_back, true);
                    if tried_with_all && !self.halve(gpu) {
                        return Err(gpu.does_not_fit(self.micro_batch, error));
                    }
                }
                other => return Ok(other?),
            }
        }
    }

    /// One whole step, queued: Algorithm 1 of Ho et al. 2020, a micro-batch at a time.
    fn queue_work(&mut self, gpu: &mut GpuSteps, n: usize) -> Result<(), ModelError> {
        gpu.mark(Part::Before)?;
        self.gradients.reset();
        for first in (0..n).step_by(self.micro_batch) {
            self.queue_micro_batch(gpu, first..(first + self.micro_batch).min(n))?;
        }
        let settings = gpu.upload.tensor(SETTINGS);
        self.optimizer.queue(&gpu.device_step, settings, &self.params, &mut self.gradients)?;
        Ok(gpu.mark(Part::Optimizer)?)
    }

    fn queue_micro_batch(&mut self, gpu: &mut GpuSteps, samples: Range<usize>) -> Result<(), ModelError> {
        let part = |number: usize| gpu.upload.tensor(number).narrow(0, samples.start, samples.len());
        let (images, constants, place) = (part(IMAGES)?, part(SAMPLES)?, gpu.upload.tensor(PLACE));
        let first_position = samples.start as u64;
        let noise = Noise::Drawn { stream: self.noise, place, first_position };
        let noisy = NoisyImages { images: &images, samples: &constants, noise };
        let x_t = q_sample(&noisy, self.params.dtype())?;

        let dropout = DropoutStream { seed: self.seed, step: 0, first_position };
        let step = place.narrow(0, 0, 2)?;
        let mut tape = Tape::training(&self.params, dropout).stepping_at(&step).checkpointing(self.checkpointing);
        let labels = gpu.labels.map(|_| part(LABELS)).transpose()?;
        let condition = Condition { timesteps: part(TIMESTEPS)?, labels };
        let output = self.unet.forward_at(&mut tape, &x_t, &condition)?;
        let loss = loss_and_grad(&noisy, output.value(), Some(gpu.device_step.state_tensor()))?;
        gpu.gpu.copy(&loss.samples, &gpu.results.narrow(0, samples.start, samples.len())?)?;
        gpu.mark(Part::Forward)?;

        tape.backward(output, loss.grad, &mut self.gradients)?;
        Ok(gpu.mark(Part::Backward)?)
    }

    /// Reads the results of the oldest steps until `most` are left, waiting for them.
    pub(super) fn read_steps(&mut self, gpu: &mut GpuSteps, most: usize) -> Result<(), Error> {
        while gpu.download.pending() > most {
            let Some(results) = gpu.download.read()? else { break };
            let Some(Pending { drawn, lr, phases }) = gpu.pending.pop_front() else { break };
            let [samples, state] = results[..] else { break };
            let state = StepState::from_numbers(state)?;
            let column = |at: usize| samples.iter().skip(at).step_by(RESULTS).copied();
            if let Some(step) = state.diverged {
                let what = match column(0).find(|loss| !loss.is_finite()) {
                    Some(loss) => format!("the loss is {loss}"),
                    None => format!("the gradient's norm is {}", state.norm),
                };
                return Err(diverged(step - 1, &what));
            }
            let vlb = gpu.vlb.then(|| column(2).collect());
            let losses = SampleLosses { per_sample: column(0).collect(), mse: column(1).collect(), vlb };
            let mut outcome = StepOutcome::new(lr, drawn.timesteps.len());
            outcome.take_in(drawn, losses, self.process.schedule().len());
            (outcome.grad_norm, outcome.phases) = (state.norm, phases);
            self.timestep_sampler.observe(&outcome.timesteps, &outcome.unweighted);
            self.finished.push_back(outcome);
        }
        Ok(())
    }
}
