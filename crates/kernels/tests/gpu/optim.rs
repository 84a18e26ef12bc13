//! The norm and AdamW against the CPU's, and the step that decides on its own: divergence, loss scale.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::KernelError;
use ddpm_kernels::buffer::{FlatBuffer, NarrowGradients, NarrowPart, ParamGrads};
use ddpm_kernels::cuda::{Gpu, Upload};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::optim::{AdamW, AdamWBuffers, JudgedStep, StepBuffers, StepSettings, StepState, adamw_step, norm};

use crate::common::{download, gpu, normals};

/// No multiple of a wide load, and more than a block.
const LEN: usize = 10_007;
const DECAYS: [f64; 2] = [0.75, 0.9];
/// Numbers are about 1: a few roundings of f32 in five steps.
const TOLERANCE: f64 = 2e-6;

fn gradient(step: u64) -> Vec<f32> {
    (0..LEN).map(|i| ((i as f32 + step as f32 * 3.0) * 0.11).cos()).collect()
}

fn scaled(values: &[f32], factor: f32) -> Vec<f32> {
    values.iter().map(|v| v * factor).collect()
}

/// A step's settings, as the GPU finds them.
fn settings(step: u64, clip_grad_norm: f64) -> Vec<f64> {
    settings_of(step, clip_grad_norm, 0, 0.0).words()
}

fn settings_of(step: u64, clip_grad_norm: f64, max_bad_steps: u64, spike_factor: f64) -> StepSettings {
    let decays = DECAYS.to_vec();
    StepSettings {
        lr: 0.01,
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.1,
        clip_grad_norm,
        step,
        max_bad_steps,
        spike_factor,
        decays,
    }
}

/// A training's buffers on one device.
struct Training {
    parameters: FlatBuffer,
    exp_avg: FlatBuffer,
    exp_avg_sq: FlatBuffer,
    averages: [(FlatBuffer, f64); 2],
    compute: Option<Tensor>,
}

impl Training {
    fn new(device: &Device) -> Self {
        let start: Vec<f32> = (0..LEN).map(|i| (i as f32 * 0.37).sin()).collect();
        let buffer = || FlatBuffer::from_vec(start.clone(), device).unwrap();
        let zeros = || FlatBuffer::zeros(LEN, device).unwrap();
        let averages = DECAYS.map(|decay| (buffer(), decay));
        Self { parameters: buffer(), exp_avg: zeros(), exp_avg_sq: zeros(), averages, compute: None }
    }

    fn with_copy(dtype: DType, device: &Device) -> Self {
        // Of any values: the step writes all of them.
        let compute = Some(Tensor::zeros(LEN, dtype, device).unwrap());
        Self { compute, ..Self::new(device) }
    }

    /// A step whose scalars the host knows.
    fn step(&self, step: u64, gradient: &[f32], gradient_scale: f64) {
        let gradients = FlatBuffer::from_vec(gradient.to_vec(), self.parameters.device()).unwrap();
        let adamw = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step, gradient_scale };
        let buffers = AdamWBuffers {
            parameters: &self.parameters,
            gradients: &gradients,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
            averages: &self.averages,
        };
        adamw_step(&adamw, &buffers).unwrap();
    }

    /// The same step, decided by the GPU.
    fn queue(&self, memory: &JudgedStep, step: u64, gradient: &[f32], clip: f64) {
        let gradients = FlatBuffer::from_vec(gradient.to_vec(), gpu()).unwrap();
        let settings = Tensor::new(settings(step, clip), gpu()).unwrap();
        self.queue_at(memory, &settings, &gradients, None).unwrap();
    }

    /// The same, wherever settings and gradients lie.
    fn queue_at(
        &self,
        memory: &JudgedStep,
        settings: &Tensor,
        gradients: &FlatBuffer,
        narrow: Option<&NarrowPart>,
    ) -> Result<(), KernelError> {
        let averages = [&self.averages[0].0, &self.averages[1].0];
        let buffers = StepBuffers {
            parameters: &self.parameters,
            gradients,
            narrow,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
            averages: &averages,
            compute: self.compute.as_ref(),
        };
        memory.step(settings, &buffers)
    }

    fn all(&self) -> Vec<f32> {
        let buffers = [&self.parameters, &self.exp_avg, &self.exp_avg_sq, &self.averages[0].0, &self.averages[1].0];
        buffers.iter().flat_map(|buffer| buffer.to_vec().unwrap()).collect()
    }
}

#[track_caller]
fn assert_same(found: &Training, want: &Training) {
    for (i, (f, w)) in found.all().iter().zip(want.all()).enumerate() {
        assert!(f64::from((f - w).abs()) <= TOLERANCE, "number {i}: {f}, on the CPU {w}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_norm_is_the_cpus_and_sees_what_is_not_finite() {
    for len in [1, 3, 4, LEN, 200_001] {
        let data: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).cos() * 1e25).collect();
        let of = |data: &[f32], device: &Device| norm(&FlatBuffer::from_vec(data.to_vec(), device).unwrap()).unwrap();
        let (found, want) = (of(&data, gpu()), of(&data, &Device::Cpu));
        assert!((found / want - 1.0).abs() < 1e-12, "{len}: {found}, {want}");
        assert_eq!(found, of(&data, gpu()));
        let mut data = data;
        data[len - 1] = f32::NAN;
        assert!(of(&data, gpu()).is_nan());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_adamw_is_the_cpus() {
    let (found, want) = (Training::new(gpu()), Training::new(&Device::Cpu));
    for step in 1..=5 {
        found.step(step, &gradient(step), 0.5);
        want.step(step, &gradient(step), 0.5);
        assert_same(&found, &want);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_device_steps_clip_as_the_cpu_does_and_write_the_copy() {
    for dtype in [DType::BF16, DType::F16] {
        let (found, want) = (Training::with_copy(dtype, gpu()), Training::new(&Device::Cpu));
        let memory = JudgedStep::new(gpu(), &StepState::unscaled()).unwrap();
        for step in 1..=5 {
            let gradient = gradient(step);
            let norm = norm(&FlatBuffer::from_vec(gradient.clone(), &Device::Cpu).unwrap()).unwrap();
            // The first steps are clipped, the others not.
            let clip = if step < 3 { 0.5 * norm } else { 2.0 * norm };
            found.queue(&memory, step, &gradient, clip);
            want.step(step, &gradient, (clip / norm).min(1.0));
            assert_same(&found, &want);
            assert!((memory.state().unwrap().norm / norm - 1.0).abs() < 1e-12);
        }
        let parameters = Tensor::new(found.parameters.to_vec().unwrap(), &Device::Cpu).unwrap();
        let rounded = download(&parameters.to_dtype(dtype).unwrap());
        assert_eq!(download(found.compute.as_ref().unwrap()), rounded);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_recorded_step_reads_its_settings_when_it_is_replayed() {
    // A stream of its own: what other tests queue meanwhile is not to be recorded.
    let device = ddpm_kernels::cuda::open(0).unwrap();
    let (found, want) = (Training::with_copy(DType::BF16, &device), Training::new(&Device::Cpu));
    let memory = JudgedStep::new(&device, &StepState::unscaled()).unwrap();
    let gpu = Gpu::of(&device).unwrap();
    let mut upload = Upload::new(&gpu, &[(DType::F64, vec![StepSettings::len(DECAYS.len())])]).unwrap();
    let gradients = FlatBuffer::from_vec(gradient(1), found.parameters.device()).unwrap();
    // The first step is taken as it is queued, the others are replayed.
    let settings = |step| Tensor::new(settings(step, 0.0), &Device::Cpu).unwrap();
    upload.send(&[&settings(1)]).unwrap();
    found.queue_at(&memory, upload.tensor(0), &gradients, None).unwrap();
    let mut recording = gpu.record(|| found.queue_at(&memory, upload.tensor(0), &gradients, None)).unwrap();
    want.step(1, &gradient(1), 1.0);
    for step in 2..=5 {
        upload.send(&[&settings(step)]).unwrap();
        recording.replay().unwrap();
        want.step(step, &gradient(1), 1.0);
        assert_same(&found, &want);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_divergence_is_kept_until_the_host_has_seen_it() {
    let training = Training::with_copy(DType::BF16, gpu());
    let memory = JudgedStep::new(gpu(), &StepState::unscaled()).unwrap();
    training.queue(&memory, 1, &gradient(1), 0.0);
    let before = training.all();
    let mut bad = gradient(2);
    bad[LEN - 1] = f32::INFINITY;
    training.queue(&memory, 2, &bad, 1.0);
    training.queue(&memory, 3, &gradient(3), 1.0);
    assert_eq!(training.all(), before);
    let state = memory.state().unwrap();
    assert_eq!((state.diverged, state.norm), (Some(2), f64::INFINITY));

    memory.set_state(&StepState::unscaled()).unwrap();
    training.queue(&memory, 2, &gradient(2), 0.0);
    let want = Training::new(&Device::Cpu);
    (1..=2).for_each(|step| want.step(step, &gradient(step), 1.0));
    assert_same(&training, &want);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_scale_halves_on_overflow_and_doubles_after_a_while() {
    let (training, want) = (Training::with_copy(DType::F16, gpu()), Training::new(&Device::Cpu));
    let memory = JudgedStep::new(gpu(), &StepState::scaled(1024.0)).unwrap();
    // An overflow in the first step: it does not count, so the second one's bias is that of a first step.
    training.queue(&memory, 1, &[f32::INFINITY; LEN], 1.0);
    let state = memory.state().unwrap();
    assert_eq!((state.loss_scale, state.skipped, state.diverged), (512.0, 1, None));
    training.queue(&memory, 2, &scaled(&gradient(1), 512.0), 0.0);
    want.step(1, &gradient(1), 1.0);
    assert_same(&training, &want);

    memory.set_state(&StepState { steady_steps: 1_999, ..memory.state().unwrap() }).unwrap();
    training.queue(&memory, 3, &scaled(&gradient(2), 512.0), 0.0);
    want.step(2, &gradient(2), 1.0);
    assert_same(&training, &want);
    let state = memory.state().unwrap();
    assert_eq!((state.loss_scale, state.steady_steps), (1024.0, 0));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_scale_of_one_cannot_be_blamed() {
    let training = Training::with_copy(DType::F16, gpu());
    let memory = JudgedStep::new(gpu(), &StepState::scaled(1.5)).unwrap();
    for step in 1..=3 {
        training.queue(&memory, step, &[f32::NAN; LEN], 1.0);
    }
    let state = memory.state().unwrap();
    assert_eq!((state.loss_scale, state.skipped, state.diverged), (1.0, 1, Some(2)));
}

/// A step whose gradient is in part a convolution's, in 16 bits: all buffers, and the norm.
fn step_with_narrow_part(dtype: DType, settled: bool) -> (Vec<f32>, Vec<f64>, f64) {
    const WEIGHT: std::ops::Range<usize> = 40..40 + 3 * 9 * 4;
    let training = Training::with_copy(dtype, gpu());
    let memory = JudgedStep::new(gpu(), &StepState::unscaled()).unwrap();
    let gradients = FlatBuffer::from_vec(gradient(1), gpu()).unwrap();
    gradients.fill_zero(WEIGHT.end..WEIGHT.end.next_multiple_of(8)).unwrap();
    let (x, dy) = (normals(1, &[1, 4, 4, 4], dtype), normals(2, &[1, 4, 4, 3], dtype));
    let (weight, narrow) = (normals(3, &[3, 3, 3, 4], dtype), NarrowGradients::default());
    let places = ParamGrads {
        narrow: Some(&narrow),
        bias_summed: true,
        ..ParamGrads::new(&gradients, WEIGHT, 200..203, Write::Assign)
    };
    conv2d::backward(&Conv2d::same(3), &x.device, &weight.device, &dy.device, false, &places).unwrap();
    let part = if settled {
        narrow.settle(&gradients).unwrap();
        None
    } else {
        narrow.hand_over(&gradients).unwrap()
    };
    assert_eq!(part.is_some(), !settled, "the convolution left no gradient of 16 bits");
    let settings = Tensor::new(&settings(1, 1.0)[..], gpu()).unwrap();
    training.queue_at(&memory, &settings, &gradients, part.as_ref()).unwrap();
    let copy = training.compute.as_ref().map(download).unwrap_or_default();
    (training.all(), copy, memory.state().unwrap().norm)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_gradient_of_16_bits_counts_as_if_it_were_in_the_buffer() {
    for dtype in [DType::BF16, DType::F16] {
        assert_eq!(step_with_narrow_part(dtype, false), step_with_narrow_part(dtype, true), "{dtype:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_buffers_of_other_lengths_are_refused() {
    let training = Training::new(gpu());
    let memory = JudgedStep::new(gpu(), &StepState::unscaled()).unwrap();
    let short = FlatBuffer::zeros(3, gpu()).unwrap();
    let settings = Tensor::zeros(StepSettings::len(0), DType::F64, gpu()).unwrap();
    let buffers = StepBuffers {
        parameters: &training.parameters,
        gradients: &short,
        narrow: None,
        exp_avg: &training.exp_avg,
        exp_avg_sq: &training.exp_avg_sq,
        averages: &[],
        compute: None,
    };
    let error = memory.step(&settings, &buffers).unwrap_err().to_string();
    assert_eq!(error, "optimizer step: gradients has shape [3], expected [10007]");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_more_averages_than_a_step_keeps_are_refused() {
    let training = Training::new(gpu());
    let memory = JudgedStep::new(gpu(), &StepState::unscaled()).unwrap();
    let settings = Tensor::zeros(StepSettings::len(5), DType::F64, gpu()).unwrap();
    let buffers = StepBuffers {
        parameters: &training.parameters,
        gradients: &training.parameters,
        narrow: None,
        exp_avg: &training.exp_avg,
        exp_avg_sq: &training.exp_avg_sq,
        averages: &[&training.averages[0].0; 5],
        compute: None,
    };
    let error = memory.step(&settings, &buffers).unwrap_err().to_string();
    assert_eq!(error, "adamw: averages has shape [5], expected [4]");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_range_of_a_buffer_is_zeroed() {
    let buffer = FlatBuffer::from_vec(vec![1.0; 9], gpu()).unwrap();
    buffer.fill_zero(2..7).unwrap();
    buffer.fill_zero(9..9).unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_bad_steps_and_spikes_are_judged_as_on_the_cpu() {
    let device = &Device::Cpu;
    let (on_gpu, on_cpu) = (Training::new(gpu()), Training::new(device));
    let memories = [gpu(), device].map(|device| JudgedStep::new(device, &StepState::unscaled()).unwrap());
    for (step, factor) in
        (1..).zip([1.0, f32::NAN, 1.0, 9.0, f32::INFINITY, 1.0, 9.0, 9.0, 9.0, f32::NAN, f32::NAN, f32::NAN, 1.0])
    {
        let gradient = scaled(&gradient(step), factor);
        for (training, memory) in [&on_gpu, &on_cpu].into_iter().zip(&memories) {
            let device = training.parameters.device();
            let gradients = FlatBuffer::from_vec(gradient.clone(), device).unwrap();
            let settings = Tensor::new(settings_of(step, 0.0, 2, 5.0).words(), device).unwrap();
            training.queue_at(memory, &settings, &gradients, None).unwrap();
        }
        let [found, want] = memories.each_ref().map(|memory| memory.state().unwrap());
        assert_eq!(
            (found.skipped, found.bad_steps, found.diverged),
            (want.skipped, want.bad_steps, want.diverged),
            "step {step}"
        );
        assert!((found.usual_norm / want.usual_norm - 1.0).abs() < 1e-12, "step {step}: {found:?}, {want:?}");
    }
    assert_eq!(memories[0].state().unwrap().diverged, Some(12));
    assert_same(&on_gpu, &on_cpu);
}
