//! The loss and its gradient, and the bound that judges a model.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::diffusion::{LossAndGrad, Noise, NoisyImages, SampleConstants, bound, loss_and_grad, place};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{
    DiffusionConfig, DiffusionProcess, Loss, LossConfig, LossInputs, LossKind, LossValue, PredictionType, Timestep,
    VarianceType, bound_terms,
};

use crate::{gpu, numbers};

const STEP: u64 = 11;
const POSITION: u64 = 4;
const GLOBAL_BATCH: usize = 8;
const PREDICTIONS: [PredictionType; 3] = [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];

/// A loss and what it is computed of, the same on both devices.
struct Case {
    process: DiffusionProcess,
    loss: Loss,
    shape: [usize; 4],
    bytes: Vec<u8>,
    t: Vec<Timestep>,
    weights: Vec<f32>,
    output: Tensor,
    noise: Philox,
}

impl Case {
    fn new(loss: &LossConfig, diffusion: &DiffusionConfig, shape: [usize; 4], dtype: DType) -> Self {
        let process = DiffusionProcess::new(diffusion).unwrap();
        let last = process.schedule().len() - 1;
        // The decoder's term, its neighbour, and the noisiest.
        let t = (0..shape[0]).map(|i| process.schedule().timestep([0, 1, last, last / 2][i % 4]).unwrap()).collect();
        let mut output_shape = shape;
        output_shape[3] = diffusion.variance_type.out_channels(shape[3]);
        let mut output = vec![0f32; output_shape.iter().product()];
        Philox::new(1, Purpose::Evaluation).fill_normal(0, 0, &mut output);
        let output = Tensor::from_vec(output, &output_shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        Self {
            process,
            loss: Loss::new(loss, diffusion).unwrap(),
            shape,
            // The darkest and the brightest, whose bins are open, and all between.
            bytes: (0..shape.iter().product::<usize>()).map(|i| (i * 85 % 256) as u8).collect(),
            t,
            weights: (0..shape[0]).map(|i| 0.5 + i as f32).collect(),
            output,
            noise: Philox::new(5, Purpose::Noise),
        }
    }

    /// x_0 and noise as the CPU has them.
    fn noised(&self) -> (Tensor, Tensor) {
        let values: usize = self.shape[1..].iter().product();
        let mut noise = vec![0f32; values * self.shape[0]];
        for (image, noise) in noise.chunks_mut(values).enumerate() {
            self.noise.fill_normal(STEP, POSITION + image as u64, noise);
        }
        let noise = Tensor::from_vec(noise, &self.shape, &Device::Cpu).unwrap();
        let pixels: Vec<f32> = self.bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        let x_start = Tensor::from_vec(pixels, &self.shape, &Device::Cpu).unwrap();
        (x_start, noise)
    }

    /// By the CPU's loops.
    fn want(&self) -> LossValue {
        let (x_start, noise) = self.noised();
        let inputs = LossInputs {
            model_output: &self.output.to_dtype(DType::F32).unwrap(),
            x_start: &x_start,
            t: &self.t,
            noise: &noise,
            weights: &self.weights,
            global_batch: GLOBAL_BATCH,
        };
        self.loss.compute(&self.process, &inputs).unwrap()
    }

    /// By the one launch.
    fn found(&self, loss_scale: Option<f64>) -> LossAndGrad {
        let constants = self.loss.constants(&self.process, &self.t, &self.weights, GLOBAL_BATCH).unwrap();
        let scale = loss_scale.map(|scale| Tensor::new(&[scale, -1.0], gpu()).unwrap());
        self.on_gpu(&constants, |noisy, output| loss_and_grad(noisy, output, scale.as_ref()).unwrap())
    }

    /// Does something with the images and the output on the GPU.
    fn on_gpu<R>(&self, constants: &[SampleConstants], launch: impl FnOnce(&NoisyImages<'_>, &Tensor) -> R) -> R {
        let samples = SampleConstants::tensor(constants, gpu()).unwrap();
        let images = Tensor::from_vec(self.bytes.clone(), &self.shape, gpu()).unwrap();
        let place = Tensor::new(&place(STEP, 0), gpu()).unwrap();
        let noisy = NoisyImages {
            images: &images,
            samples: &samples,
            noise: Noise::Drawn { stream: self.noise, place: &place, first_position: POSITION },
        };
        launch(&noisy, &self.output.to_device(gpu()).unwrap())
    }
}

/// The gradient is rounded to its format; all before is double.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-6,
        DType::F16 => 2e-3,
        _ => 8e-3,
    }
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(found.len(), want.len(), "{what}");
    let smallest = want.iter().fold(0f64, |most, v| most.max(v.abs())) * 1e-3;
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() <= tolerance * w.abs().max(smallest), "{what}: {i} is {f}, on the CPU {w}");
    }
}

#[track_caller]
fn check(what: &str, case: &Case) {
    let (found, want) = (case.found(None), case.want());
    let (dtype, tolerance) = (case.output.dtype(), tolerance(case.output.dtype()));
    // Rounded as the launch rounds it: the smallest of 16 bits have few digits.
    let gradient = want.grad.to_dtype(dtype).unwrap();
    assert_close(&format!("{what}: gradient"), &numbers(&found.grad), &numbers(&gradient), tolerance);
    let of_samples = numbers(&found.samples);
    let column = |i: usize| of_samples.iter().skip(i).step_by(3).copied().collect::<Vec<_>>();
    assert_close(&format!("{what}: loss"), &column(0), &want.per_sample, 1e-9);
    assert_close(&format!("{what}: mse"), &column(1), &want.mse, 1e-9);
    let vlb = want.vlb.unwrap_or_else(|| vec![0.0; case.shape[0]]);
    assert_close(&format!("{what}: bits"), &column(2), &vlb, 1e-9);
}

fn configs(kind: LossKind, prediction_type: PredictionType) -> (LossConfig, DiffusionConfig) {
    let learned = matches!(kind, LossKind::Vlb | LossKind::Hybrid);
    let variance_type = if learned { VarianceType::LearnedRange } else { VarianceType::FixedLarge };
    let diffusion = DiffusionConfig { prediction_type, variance_type, ..DiffusionConfig::default() };
    (LossConfig { kind, ..LossConfig::default() }, diffusion)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_of_every_kind_and_prediction_is_the_cpus() {
    for kind in [LossKind::Simple, LossKind::VlbWeighted, LossKind::Vlb, LossKind::Hybrid] {
        for prediction in PREDICTIONS {
            let (loss, diffusion) = configs(kind, prediction);
            if loss.validate(&diffusion).is_err() {
                continue;
            }
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let what = format!("{kind:?}, {prediction:?}, {dtype:?}");
                check(&what, &Case::new(&loss, &diffusion, [4, 5, 7, 3], dtype));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_of_one_image_of_many_blocks_and_of_one_value_is_the_cpus() {
    for kind in [LossKind::Simple, LossKind::Hybrid] {
        let (loss, diffusion) = configs(kind, PredictionType::Epsilon);
        check("many blocks", &Case::new(&loss, &diffusion, [1, 41, 40, 3], DType::F32));
        check("one value", &Case::new(&loss, &diffusion, [2, 1, 1, 1], DType::F32));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_with_min_snr_and_a_variance_it_does_not_use_is_the_cpus() {
    let (loss, diffusion) = configs(LossKind::Simple, PredictionType::VPrediction);
    let loss = LossConfig { min_snr_gamma: Some(5.0), ..loss };
    check("min snr", &Case::new(&loss, &diffusion, [4, 3, 3, 3], DType::F32));
    let diffusion = DiffusionConfig { variance_type: VarianceType::LearnedRange, ..diffusion };
    if loss.validate(&diffusion).is_ok() {
        check("unused variance", &Case::new(&loss, &diffusion, [4, 3, 3, 3], DType::F32));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_loss_scale_multiplies_the_gradient_alone_and_runs_repeat_to_the_bit() {
    let (loss, diffusion) = configs(LossKind::Hybrid, PredictionType::Epsilon);
    let case = Case::new(&loss, &diffusion, [3, 16, 16, 3], DType::F32);
    let (plain, again, scaled) = (case.found(None), case.found(None), case.found(Some(1024.0)));
    assert_eq!(numbers(&plain.grad), numbers(&again.grad));
    assert_eq!(numbers(&plain.samples), numbers(&again.samples));
    assert_eq!(numbers(&plain.samples), numbers(&scaled.samples));
    let expected: Vec<f64> = numbers(&plain.grad).iter().map(|g| g * 1024.0).collect();
    assert_eq!(numbers(&scaled.grad), expected);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_bound_of_every_prediction_and_variance_is_the_cpus() {
    let variances = [
        (VarianceType::FixedLarge, LossKind::Simple),
        (VarianceType::FixedSmall, LossKind::Simple),
        (VarianceType::LearnedRange, LossKind::Hybrid),
    ];
    for prediction_type in PREDICTIONS {
        for (variance_type, kind) in variances {
            let loss = LossConfig { kind, ..LossConfig::default() };
            let diffusion = DiffusionConfig { prediction_type, variance_type, ..DiffusionConfig::default() };
            for (shape, dtype) in [
                ([4, 5, 7, 3], DType::F32),
                ([4, 5, 7, 3], DType::BF16),
                ([4, 4, 4, 1], DType::F16),
                ([1, 41, 40, 3], DType::F32),
            ] {
                let case = Case::new(&loss, &diffusion, shape, dtype);
                let constants: Vec<_> = case.t.iter().map(|&t| case.process.constants(t).unwrap()).collect();
                let found = numbers(&case.on_gpu(&constants, |noisy, output| bound(noisy, output).unwrap()));
                let (x_start, noise) = case.noised();
                let output = case.output.to_dtype(DType::F32).unwrap();
                let want = bound_terms(&case.process, &output, &x_start, &noise, &case.t).unwrap();
                let want: Vec<f64> = want.iter().flat_map(|terms| [terms.vb, terms.xstart_mse]).collect();
                let what = format!("{prediction_type:?}, {variance_type:?}, {shape:?}, {dtype:?}");
                assert_close(&what, &found, &want, 1e-9);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_bound_of_an_output_that_is_no_number_is_none() {
    let (loss, diffusion) = configs(LossKind::Simple, PredictionType::Epsilon);
    let mut case = Case::new(&loss, &diffusion, [2, 4, 4, 3], DType::F32);
    let mut output: Vec<f32> = case.output.flatten_all().unwrap().to_vec1().unwrap();
    output[7] = f32::NAN;
    case.output = Tensor::from_vec(output, case.output.dims(), &Device::Cpu).unwrap();
    let constants: Vec<_> = case.t.iter().map(|&t| case.process.constants(t).unwrap()).collect();
    let found = numbers(&case.on_gpu(&constants, |noisy, output| bound(noisy, output).unwrap()));
    assert!(found[..2].iter().all(|x| x.is_nan()) && found[2..].iter().all(|x| x.is_finite()), "{found:?}");
}

#[test]
fn weights_and_batches_that_do_not_fit_the_timesteps_are_refused() {
    let (loss, diffusion) = configs(LossKind::Simple, PredictionType::Epsilon);
    let process = DiffusionProcess::new(&diffusion).unwrap();
    let loss = Loss::new(&loss, &diffusion).unwrap();
    let t = [process.schedule().timestep(3).unwrap(); 2];
    assert!(loss.constants(&process, &t, &[1.0], 2).is_err());
    assert!(loss.constants(&process, &t, &[1.0; 2], 1).is_err());
    assert_eq!(loss.constants(&process, &t, &[1.0; 2], 2).unwrap().len(), 2);
}
