//! Noisy images, losses, bounds and samplers' steps: the same checks for every device, against the twin in f64, gradients by
//! candle's autograd over it.

use candle_core::{DType, Device, Tensor, Var};
use ddpm_kernels::ops::diffusion::{
    Noise, NoisyImages, SampleConstants, SamplerConstants, SamplerState, SamplerStep, bound, loss_and_grad, place,
    q_sample, reference,
};
use ddpm_kernels::philox::{Philox, Purpose};

/// More than 32 bits, as is the number of the first image together with the position.
const STEP: u64 = (3 << 32) + 5;
const FIRST: u64 = (1 << 32) - 3;
const POSITION: u64 = 7;

fn philox() -> Philox {
    Philox::new(3, Purpose::Noise)
}

/// Normals of images from number `first` on.
fn normals(step: u64, first: u64, shape: [usize; 4]) -> Tensor {
    let values: usize = shape[1..].iter().product();
    let mut all = vec![0f32; shape[0] * values];
    for (image, normals) in all.chunks_mut(values).enumerate() {
        philox().fill_normal(step, first + image as u64, normals);
    }
    Tensor::from_vec(all, &shape, &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    wide(tensor).flatten_all().unwrap().to_vec1().unwrap()
}

/// How far numbers rounded to `dtype` may be off, against the largest: some roundings, of f32 at least, for x_t is rounded to it and
/// divided by the signal and the deviation of what it says.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        _ => 1.6e-2,
    }
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(found.len(), want.len(), "{what}");
    // What is next to nothing is a difference of larger numbers.
    let largest = want.iter().fold(1e-2f64, |most, v| most.max(v.abs()));
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!(f.is_finite() && (f - w).abs() <= tolerance * largest, "{what}: {i} is {f}, exactly {w} of {largest}");
    }
}

/// What four samples after one another are told: the decoder's term; a divergence, of which the mean learns; one of which it does
/// not, beside the squared error; and the squared error of another prediction alone.
fn constants(image: usize) -> SampleConstants {
    let angle = 0.3 + 0.12 * image as f64;
    let (signal, noise) = (angle.cos(), angle.sin());
    let of_kind = match image % 4 {
        0 => SampleConstants { bound: 1.0, bound_weight: 0.7, decoder: 1.0, ..SampleConstants::default() },
        1 => SampleConstants { bound: 1.0, bound_weight: 2.0, mse_weight: 0.5, ..SampleConstants::default() },
        2 => SampleConstants { bound: 2.0, bound_weight: 3.0, mse_weight: 1.0, ..SampleConstants::default() },
        _ => SampleConstants { mse_weight: 1.5, target_x_start: -noise, ..SampleConstants::default() },
    };
    SampleConstants {
        signal,
        noise,
        target_noise: 1.0,
        scale: 0.25 + 0.1 * image as f64,
        x_start_x_t: 1.0 / signal,
        x_start_prediction: -noise / signal,
        mean_coef1: 0.9,
        mean_coef2: 0.1,
        posterior_log_variance: -3.0,
        log_variance_lower: -3.2,
        log_variance_width: 1.3,
        ..of_kind
    }
}

/// A micro-batch, and an output near what it should be.
struct Case {
    what: String,
    samples: Vec<SampleConstants>,
    bytes: Tensor,
    /// In f64.
    x_start: Tensor,
    noise: Tensor,
    output: Tensor,
}

impl Case {
    fn new(shape: [usize; 4], halves: usize, dtype: DType) -> Self {
        let values = shape.iter().product::<usize>();
        // The darkest and the brightest, whose bins are open, and all between.
        let bytes: Vec<u8> = (0..values).map(|i| (i * 85 % 256) as u8).collect();
        let x_start: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
        let noise = normals(STEP, FIRST + POSITION, shape);
        let off = (normals(1, 0, shape) * 0.2).unwrap();
        let half = (&noise + off).unwrap();
        let variance = (normals(2, 0, shape) * 0.5).unwrap();
        let output = if halves == 2 { Tensor::cat(&[&half, &variance], 3).unwrap() } else { half };
        Self {
            what: format!("{shape:?}, {halves} halves, {dtype:?}"),
            samples: (0..shape[0]).map(constants).collect(),
            bytes: Tensor::from_vec(bytes, &shape, &Device::Cpu).unwrap(),
            x_start: wide(&Tensor::from_vec(x_start, &shape, &Device::Cpu).unwrap()),
            noise: wide(&noise),
            output: output.to_dtype(dtype).unwrap(),
        }
    }

    /// Does something with images and output on `device`.
    fn on<R>(&self, device: &Device, run: impl FnOnce(&NoisyImages<'_>, &Tensor) -> R) -> R {
        let samples = SampleConstants::tensor(&self.samples, device).unwrap();
        let place = Tensor::new(&place(STEP, FIRST), device).unwrap();
        let images = self.bytes.to_device(device).unwrap();
        let noise = Noise::Drawn { stream: philox(), place: &place, first_position: POSITION };
        let noisy = NoisyImages { images: &images, samples: &samples, noise };
        run(&noisy, &self.output.to_device(device).unwrap())
    }
}

const SHAPES: [[usize; 4]; 4] = [[1, 1, 1, 1], [5, 5, 7, 3], [4, 8, 8, 4], [1, 41, 40, 3]];

pub(crate) fn check_q_sample(device: &Device, dtype: DType) {
    for shape in SHAPES {
        let case = Case::new(shape, 1, dtype);
        let found = case.on(device, |noisy, _| q_sample(noisy, dtype).unwrap());
        let want = reference::q_sample(&case.samples, &case.x_start, &case.noise).unwrap();
        assert_eq!(found.dtype(), dtype);
        // f32: the roundings of two factors, two products and a sum.
        let tolerance = if dtype == DType::F32 { 3e-7 } else { tolerance(dtype) };
        assert_close(&case.what, &numbers(&found), &numbers(&want), tolerance);
    }
}

pub(crate) fn check_loss(device: &Device, dtype: DType) {
    for (shape, scale) in SHAPES.into_iter().zip([None, Some(1024.0), None, Some(0.5)]) {
        let case = Case::new(shape, 2, dtype);
        let loss_scale = scale.map(|scale| Tensor::new(&[scale, -1.0], device).unwrap());
        let found = case.on(device, |noisy, output| loss_and_grad(noisy, output, loss_scale.as_ref()).unwrap());
        let output = Var::from_tensor(&wide(&case.output)).unwrap();
        let want = reference::losses(&case.samples, &case.x_start, &case.noise, output.as_tensor()).unwrap();
        let weights: Vec<f64> = case.samples.iter().map(|sample| sample.scale * scale.unwrap_or(1.0)).collect();
        let weights = Tensor::new(weights, &Device::Cpu).unwrap();
        let gradients = (&want[0] * weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (column, (what, want)) in ["loss", "mse", "bits"].into_iter().zip(&want).enumerate() {
            let found: Vec<f64> = numbers(&found.samples).into_iter().skip(column).step_by(3).collect();
            assert_close(&format!("{what} of {}", case.what), &found, &numbers(want), 1e-5);
        }
        let want = numbers(gradients.get(&output).unwrap());
        assert_close(&format!("gradient of {}", case.what), &numbers(&found.grad), &want, tolerance(dtype));
        assert_eq!((found.grad.dims(), found.grad.dtype()), (case.output.dims(), dtype));
    }
}

/// The squared error needs no second half.
pub(crate) fn check_loss_without_variance(device: &Device, dtype: DType) {
    let mut case = Case::new([3, 5, 7, 3], 1, dtype);
    case.samples.iter_mut().for_each(|sample| (sample.bound, sample.mse_weight) = (0.0, 0.8));
    let found = case.on(device, |noisy, output| loss_and_grad(noisy, output, None).unwrap());
    let want = reference::losses(&case.samples, &case.x_start, &case.noise, &wide(&case.output)).unwrap();
    let found: Vec<f64> = numbers(&found.samples).into_iter().step_by(3).collect();
    assert_close("loss without a variance", &found, &numbers(&want[0]), 1e-5);
}

pub(crate) fn check_bound(device: &Device, dtype: DType) {
    for (shape, halves) in SHAPES.into_iter().zip([1, 2, 2, 1]) {
        let case = Case::new(shape, halves, dtype);
        let found = numbers(&case.on(device, |noisy, output| bound(noisy, output).unwrap()));
        let want = reference::bound(&case.samples, &case.x_start, &case.noise, &wide(&case.output)).unwrap();
        for (column, (what, want)) in ["bits", "squared error"].into_iter().zip(&want).enumerate() {
            let found: Vec<f64> = found.iter().copied().skip(column).step_by(2).collect();
            assert_close(&format!("{what} of {}", case.what), &found, &numbers(want), 1e-5);
        }
    }
}

/// Ancestral with a learned variance and guidance; DDIM of a prediction of v; the second order of DPM-Solver++; none of these.
fn steps() -> [SamplerConstants; 4] {
    let x_0 = SamplerConstants { x_start_x_t: 1.4, x_start_prediction: -0.9, ..SamplerConstants::default() };
    let noise = SamplerConstants { noise: 1.0, log_variance_lower: -3.0, log_variance_width: 1.1, ..x_0 };
    [
        SamplerConstants { guidance: 1.5, clip: 1.0, mean_x_start: 0.3, mean_x_t: 0.7, ..noise },
        SamplerConstants { mean_x_start: 0.8, mean_x_t: 0.2, mean_prediction: 0.4, ..x_0 },
        SamplerConstants { clip: 1.0, mean_x_start: 0.9, mean_x_t: 0.4, mean_previous: -0.3, ..x_0 },
        SamplerConstants { mean_x_start: 1.0, ..x_0 },
    ]
}

pub(crate) fn check_sampler(device: &Device, dtype: DType) {
    for (shape, halves) in SHAPES.into_iter().zip([1, 2, 2, 1]) {
        let state = SamplerState::new(shape, dtype, device).unwrap();
        state.begin(philox(), FIRST).unwrap();
        assert_close("the beginning", &numbers(state.x_t()), &numbers(&normals(0, FIRST, shape)), 1e-6);
        for (number, constants) in (STEP..).zip(steps()) {
            let what = format!("{constants:?}, {shape:?}, {dtype:?}");
            let (x_t, previous) = (wide(state.x_t()), wide(state.x_start()));
            let output = Case::new(shape, halves, dtype).output;
            let unguided = (constants.guidance != 0.0).then(|| (&output * 0.7).unwrap());
            let place = Tensor::new(&place(number, FIRST), device).unwrap();
            let unguided_there = unguided.as_ref().map(|unguided| unguided.to_device(device).unwrap());
            let step = SamplerStep {
                constants: &Tensor::new(&constants.words(), device).unwrap(),
                noise: Noise::Drawn { stream: philox(), place: &place, first_position: 0 },
                output: &output.to_device(device).unwrap(),
                unguided: unguided_there.as_ref(),
            };
            state.step(&step).unwrap();
            let (noise, unguided) = (wide(&normals(number, FIRST, shape)), unguided.as_ref().map(wide));
            let outputs = (&wide(&output), unguided.as_ref());
            let (want, x_0) = reference::sampler_step(&constants, &x_t, &previous, outputs, &noise).unwrap();
            // Rounded to f32 once, with noise whose last digit a GPU may have otherwise.
            assert_close(&what, &numbers(state.x_t()), &numbers(&want), 1e-6);
            assert_close(&format!("x_0 of {what}"), &numbers(state.x_start()), &numbers(&x_0), 1e-6);
            let shown = numbers(&state.x_t().to_device(&Device::Cpu).unwrap().to_dtype(dtype).unwrap());
            assert_eq!(numbers(state.input()), shown, "{what}");
        }
    }
}

/// A clamp that makes a number of what is none would make black or white of it, and nobody would be told.
pub(crate) fn check_what_is_no_number_stays_none(device: &Device) {
    let state = SamplerState::new([1, 1, 1, 3], DType::F32, device).unwrap();
    state.begin_at(&Tensor::zeros((1, 1, 1, 3), DType::F32, device).unwrap()).unwrap();
    let constants = SamplerConstants { x_start_prediction: -1.0, mean_x_start: 1.0, clip: 1.0, ..Default::default() };
    let output = Tensor::new(&[[[[f32::NAN, 0.5, f32::INFINITY]]]], device).unwrap();
    let place = Tensor::new(&place(1, 0), device).unwrap();
    let step = SamplerStep {
        constants: &Tensor::new(&constants.words(), device).unwrap(),
        noise: Noise::Drawn { stream: philox(), place: &place, first_position: 0 },
        output: &output,
        unguided: None,
    };
    state.step(&step).unwrap();
    let x_t = numbers(state.x_t());
    assert!(x_t[0].is_nan() && x_t[1..] == [-0.5, -1.0], "{x_t:?}");

    let mut case = Case::new([2, 4, 4, 3], 1, DType::F32);
    let mut output: Vec<f32> = case.output.flatten_all().unwrap().to_vec1().unwrap();
    output[7] = f32::NAN;
    case.output = Tensor::from_vec(output, case.output.dims(), &Device::Cpu).unwrap();
    let found = numbers(&case.on(device, |noisy, output| bound(noisy, output).unwrap()));
    assert!(found[..2].iter().all(|x| x.is_nan()) && found[2..].iter().all(|x| x.is_finite()), "{found:?}");
}
