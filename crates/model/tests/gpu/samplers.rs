//! Walks out of the noise: the launch that makes a step, fed with the constants of each sampler, against the samplers' own
//! tensors on the CPU, with the same noise and the same pretended network.

use candle_core::{D, DType, Device, Tensor};
use ddpm_kernels::ops::diffusion::{Noise, SamplerConstants, SamplerState, SamplerStep, place};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{
    DiffusionConfig, DiffusionError, DiffusionProcess, PredictionType, SamplerConfig, SamplerKind, Timestep,
    VarianceType, sample_observed, sampler_constants,
};

use crate::{gpu, numbers};

/// The number of the first image.
const FIRST: u64 = 5;
const PREDICTIONS: [PredictionType; 3] = [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];
const SAMPLERS: [(SamplerKind, f64); 4] =
    [(SamplerKind::Ddpm, 0.0), (SamplerKind::Ddim, 0.0), (SamplerKind::Ddim, 0.7), (SamplerKind::Dpm, 0.0)];

fn noise() -> Philox {
    Philox::new(9, Purpose::Sample)
}

fn drawn(place: &Tensor) -> Noise<'_> {
    Noise::Drawn { stream: noise(), place, first_position: 0 }
}

struct Case {
    process: DiffusionProcess,
    sampler: SamplerConfig,
    shape: [usize; 4],
    dtype: DType,
    /// Guidance's weight.
    guidance: Option<f64>,
}

/// x_T and after it the predicted x_0 of every step, and the images at last.
struct Walked {
    x_starts: Vec<Vec<f64>>,
    images: Vec<f64>,
}

impl Case {
    fn new(diffusion: &DiffusionConfig, (sampler, eta): (SamplerKind, f64)) -> Self {
        let spacing = sampler.default_spacing();
        let sampler = SamplerConfig { sampler, eta, steps: Some(6), spacing, ..Default::default() };
        let process = DiffusionProcess::new(diffusion).unwrap();
        Self { process, sampler, shape: [2, 3, 5, 3], dtype: DType::F32, guidance: None }
    }

    /// What a network could say: something of x_t, t and the place, in the format it computes in.
    fn output(&self, x_t: &Tensor, t: Timestep, class: f64) -> Tensor {
        let x_t = x_t.to_dtype(DType::F32).unwrap();
        let time = t.index() as f64 / 1000.0;
        let prediction = (((x_t.affine(0.8, 0.3 * class - time).unwrap().tanh()).unwrap() * 1.3).unwrap()
            + (x_t * 0.1).unwrap())
        .unwrap();
        let output = if self.process.config().variance_type == VarianceType::LearnedRange {
            let variance = prediction.affine(0.5, 0.2).unwrap();
            Tensor::cat(&[&prediction, &variance], D::Minus1).unwrap()
        } else {
            prediction
        };
        output.to_dtype(self.dtype).unwrap()
    }

    fn normals(&self, step: u64) -> Tensor {
        let values: usize = self.shape[1..].iter().product();
        let mut all = vec![0f32; values * self.shape[0]];
        for (image, normals) in all.chunks_mut(values).enumerate() {
            noise().fill_normal(step, FIRST + image as u64, normals);
        }
        Tensor::from_vec(all, &self.shape, &Device::Cpu).unwrap()
    }

    /// By the CPU's samplers.
    fn want(&self) -> Walked {
        let mut denoise = |x_t: &Tensor, t: Timestep| {
            let x_t = x_t.to_dtype(self.dtype)?;
            let guided = self.output(&x_t, t, 1.0).to_dtype(DType::F32)?;
            let Some(weight) = self.guidance else { return Ok(guided) };
            let (channels, all) = (self.shape[3], guided.dim(D::Minus1)?);
            let part = |output: &Tensor| output.narrow(D::Minus1, 0, channels);
            let unguided = part(&self.output(&x_t, t, 0.0).to_dtype(DType::F32)?)?;
            let prediction = ((part(&guided)? * (1.0 + weight))? - (unguided * weight)?)?;
            Ok(match all - channels {
                0 => prediction,
                rest => Tensor::cat(&[&prediction, &guided.narrow(D::Minus1, channels, rest)?], D::Minus1)?,
            })
        };
        let mut x_starts = Vec::new();
        let images = sample_observed::<DiffusionError>(
            &self.process,
            &self.sampler,
            self.normals(0),
            &mut |step| Ok(self.normals(step as u64 + 1)),
            &mut denoise,
            &mut |_, x_start| {
                x_starts.push(numbers(x_start));
                Ok(())
            },
        );
        Walked { x_starts, images: numbers(&images.unwrap()) }
    }

    /// By one launch a step.
    fn found(&self) -> Walked {
        let state = SamplerState::new(self.shape, self.dtype, gpu()).unwrap();
        state.begin(noise(), FIRST).unwrap();
        let mut x_starts = Vec::new();
        let steps = sampler_constants(&self.process, &self.sampler, self.guidance.unwrap_or(0.0)).unwrap();
        for (step, (t, constants)) in steps.iter().enumerate() {
            let input = state.input().to_device(&Device::Cpu).unwrap();
            assert_eq!(input.dtype(), self.dtype);
            let output = self.output(&input, *t, 1.0).to_device(gpu()).unwrap();
            let unguided = self.guidance.map(|_| self.output(&input, *t, 0.0).to_device(gpu()).unwrap());
            let constants = Tensor::new(&constants.words(), gpu()).unwrap();
            let place = Tensor::new(&place(step as u64 + 1, FIRST), gpu()).unwrap();
            let step = SamplerStep {
                constants: &constants,
                noise: drawn(&place),
                output: &output,
                unguided: unguided.as_ref(),
            };
            state.step(&step).unwrap();
            x_starts.push(numbers(state.x_start()));
        }
        Walked { x_starts, images: numbers(state.x_t()) }
    }

    /// Both compute in f64 and round once a step, but the CPU is given the guided prediction in f32, after three roundings at numbers
    /// of up to 4, so off by some 4e-7. Where the prediction is eps the first x_0 is 1 / sqrt(alpha_bar_T) = 158 times as large as
    /// what it is computed from, and an error of an early step is carried on.
    #[track_caller]
    fn check(&self, what: &str) {
        let tolerance = match self.dtype {
            DType::F32 => 6e-5,
            DType::F16 => 1e-2,
            _ => 8e-2,
        };
        let what = format!("{what}: {:?}, {:?}, {:?}", self.sampler, self.process.config(), self.dtype);
        let (found, want) = (self.found(), self.want());
        assert_eq!(found.x_starts.len(), 6, "{what}");
        for (step, (found, want)) in found.x_starts.iter().zip(&want.x_starts).enumerate() {
            assert_close(&format!("{what}: x_0 of step {step}"), found, want, tolerance);
        }
        assert_close(&format!("{what}: the images"), &found.images, &want.images, tolerance);
    }
}

/// `tolerance` of the largest.
#[track_caller]
fn assert_close(what: &str, found: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(found.len(), want.len(), "{what}");
    let largest = want.iter().fold(1.0f64, |most, v| most.max(v.abs()));
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() <= tolerance * largest, "{what}: {i} is {f}, on the CPU {w} (largest {largest})");
    }
}

fn diffusion(prediction_type: PredictionType, variance_type: VarianceType, clip_sample: bool) -> DiffusionConfig {
    DiffusionConfig { prediction_type, variance_type, clip_sample, ..DiffusionConfig::default() }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_every_sampler_walks_as_on_the_cpu() {
    for sampler in SAMPLERS {
        for prediction in PREDICTIONS {
            for variance in [VarianceType::FixedSmall, VarianceType::FixedLarge, VarianceType::LearnedRange] {
                for clip in [true, false] {
                    Case::new(&diffusion(prediction, variance, clip), sampler).check("walk");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_ddim_from_the_clamped_x_start_walks_as_on_the_cpu() {
    for prediction in PREDICTIONS {
        for clip in [true, false] {
            let mut case = Case::new(&diffusion(prediction, VarianceType::LearnedRange, clip), SAMPLERS[2]);
            case.sampler.use_clipped_model_output = true;
            case.check("from the clamped x_0");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_16_bit_networks_are_shown_and_heard_in_their_format() {
    for sampler in SAMPLERS {
        for dtype in [DType::BF16, DType::F16] {
            let diffusion = diffusion(PredictionType::VPrediction, VarianceType::LearnedRange, true);
            Case { dtype, ..Case::new(&diffusion, sampler) }.check("16 bits");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_guidance_leaves_a_learned_variance() {
    for sampler in SAMPLERS {
        for variance in [VarianceType::FixedSmall, VarianceType::LearnedRange] {
            let diffusion = diffusion(PredictionType::Epsilon, variance, true);
            Case { guidance: Some(1.5), ..Case::new(&diffusion, sampler) }.check("guided");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_images_of_one_value_and_of_many_blocks_walk_too() {
    let diffusion = diffusion(PredictionType::Epsilon, VarianceType::LearnedRange, true);
    for shape in [[1, 1, 1, 1], [3, 4, 4, 4], [2, 33, 32, 3]] {
        Case { shape, ..Case::new(&diffusion, SAMPLERS[0]) }.check("shape");
    }
}

/// A clamp by fmin and fmax would make black or white of it, and nobody would be told.
#[test]
#[ignore = "needs a GPU"]
fn gpu_what_is_no_number_stays_none() {
    let case = Case::new(&diffusion(PredictionType::Epsilon, VarianceType::FixedSmall, true), SAMPLERS[1]);
    let state = SamplerState::new([1, 1, 1, 3], DType::F32, gpu()).unwrap();
    state.begin(noise(), FIRST).unwrap();
    let constants = sampler_constants(&case.process, &case.sampler, 0.0).unwrap()[0].1;
    let constants = Tensor::new(&constants.words(), gpu()).unwrap();
    let place = Tensor::new(&place(1, FIRST), gpu()).unwrap();
    let output = Tensor::new(&[[[[f32::NAN, 0.5, f32::INFINITY]]]], gpu()).unwrap();
    let step = SamplerStep { constants: &constants, noise: drawn(&place), output: &output, unguided: None };
    state.step(&step).unwrap();
    let x_start = numbers(state.x_start());
    assert!(x_start[0].is_nan() && x_start[1].is_finite() && x_start[2] == -1.0, "{x_start:?}");
    assert!(numbers(state.x_t())[0].is_nan());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_walk_may_begin_anywhere() {
    for dtype in [DType::F32, DType::BF16] {
        let state = SamplerState::new([2, 1, 1, 3], dtype, gpu()).unwrap();
        let x_t = Tensor::new(&[[[[0.1f32, -2.0, 3.7]]], [[[0.5, 0.0, -0.3]]]], &Device::Cpu).unwrap();
        state.begin_at(&x_t.to_device(gpu()).unwrap()).unwrap();
        assert_eq!(numbers(state.x_t()), numbers(&x_t));
        assert_eq!(numbers(state.input()), numbers(&x_t.to_dtype(dtype).unwrap()));
        assert!(state.begin_at(&x_t.narrow(0, 0, 1).unwrap().to_device(gpu()).unwrap()).is_err());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_step_that_does_not_fit_is_refused() {
    let state = SamplerState::new([2, 2, 2, 3], DType::F32, gpu()).unwrap();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, gpu()).unwrap();
    let (constants, place) = (zeros(&[SamplerConstants::WORDS], DType::F64), zeros(&[4], DType::U32));
    let refused = |output: Tensor, unguided: Option<Tensor>| {
        let (constants, noise) = (&constants, drawn(&place));
        state.step(&SamplerStep { constants, noise, output: &output, unguided: unguided.as_ref() }).is_err()
    };
    assert!(!refused(zeros(&[2, 2, 2, 3], DType::F32), None));
    assert!(refused(zeros(&[2, 2, 2, 4], DType::F32), None));
    assert!(refused(zeros(&[2, 2, 2, 3], DType::BF16), None));
    assert!(refused(zeros(&[2, 2, 2, 3], DType::F32), Some(zeros(&[2, 2, 2, 6], DType::F32))));
    assert!(SamplerState::new([0, 2, 2, 3], DType::F32, gpu()).is_err());
}
