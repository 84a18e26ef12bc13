//! Inputs, copies to and from the GPU, and what counts as equal.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::philox::{Philox, Purpose};

/// The number formats activations may have.
pub(crate) const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The GPU, opened once.
pub(crate) fn gpu() -> &'static Device {
    static GPU: OnceLock<Device> = OnceLock::new();
    GPU.get_or_init(|| ddpm_kernels::cuda::open(0).unwrap())
}

/// A tensor of `shape` that the CPU and the GPU hold alike: normals, rounded to `dtype`.
pub(crate) struct Both {
    /// In f64 on the CPU, for the twin.
    pub(crate) exact: Tensor,
    /// In `dtype` on the GPU.
    pub(crate) device: Tensor,
}

/// Standard normals, a function of `seed`.
pub(crate) fn normals(seed: u64, shape: &[usize], dtype: DType) -> Both {
    let mut data = vec![0f32; shape.iter().product()];
    Philox::new(seed, Purpose::Evaluation).fill_normal(0, 0, &mut data);
    both(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap(), dtype)
}

/// `tensor`, rounded to `dtype`.
pub(crate) fn both(tensor: &Tensor, dtype: DType) -> Both {
    let rounded = tensor.to_dtype(dtype).unwrap();
    Both { exact: rounded.to_dtype(DType::F64).unwrap(), device: rounded.to_device(gpu()).unwrap() }
}

/// A result's numbers on the CPU.
pub(crate) fn download(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    host.flatten_all().unwrap().to_vec1().unwrap()
}

/// How far a result may be off, relative to the largest number of the exact one: a few roundings of the format.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

/// Compares a result on the GPU with the exact one.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &Tensor, exact: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), exact.dims(), "{what}: shape");
    let (found, exact) = (download(found), download(exact));
    let largest = exact.iter().fold(1e-6f64, |most, v| most.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(&exact).enumerate() {
        assert!((f - e).abs() <= tolerance * largest, "{what}: element {i} is {f}, exactly {e} (largest {largest})");
    }
}

/// A twin's result and its gradients by `inputs`, in f64, for the gradient `dy` of the result.
pub(crate) fn exactly(
    inputs: &[&Tensor],
    dy: impl FnOnce(&Tensor) -> Tensor,
    twin: impl FnOnce(&[Tensor]) -> candle_core::Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = twin(&tensors).unwrap();
    let grads = (&y * dy(&y)).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = variables.iter().map(|variable| grads.get(variable).unwrap().clone()).collect();
    (y.detach(), grads)
}

/// The places of a weight's and a bias' gradient in a flat buffer on the GPU that is full of other numbers.
pub(crate) struct Slots {
    buffer: FlatBuffer,
    weight: Range<usize>,
    bias: Range<usize>,
    before: Vec<f32>,
}

impl Slots {
    /// `gap` elements lie before, between and behind them.
    pub(crate) fn new(weight: usize, bias: usize, gap: usize) -> Self {
        let weight = gap..gap + weight;
        let bias = weight.end + gap..weight.end + gap + bias;
        let before: Vec<f32> = (0..bias.end + gap).map(|i| (i as f32 * 0.7).sin()).collect();
        Self { buffer: FlatBuffer::from_vec(before.clone(), gpu()).unwrap(), weight, bias, before }
    }

    /// Where an operation is to write them.
    pub(crate) fn grads(&self, write: Write) -> ParamGrads<'_> {
        ParamGrads::new(&self.buffer, self.weight.clone(), self.bias.clone(), write)
    }

    /// Another place, before theirs.
    pub(crate) fn third(&self, len: usize) -> Range<usize> {
        assert!(len <= self.weight.start);
        0..len
    }

    /// Compares both with the exact ones, and everything around them with what was there.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, write: Write, weight: &Tensor, bias: &Tensor, tolerance: f64) {
        self.check_places(what, write, &[(&self.weight, weight), (&self.bias, bias)], tolerance);
    }

    /// The same with a [third](Self::third) one.
    #[track_caller]
    pub(crate) fn check_three(&self, what: &str, write: Write, exact: [&Tensor; 3], tolerance: f64) {
        let third = self.third(exact[2].elem_count());
        self.check_places(
            what,
            write,
            &[(&self.weight, exact[0]), (&self.bias, exact[1]), (&third, exact[2])],
            tolerance,
        );
    }

    /// The weight's alone; the bias' was not to be touched.
    #[track_caller]
    pub(crate) fn check_weight(&self, what: &str, write: Write, weight: &Tensor, tolerance: f64) {
        self.check_places(what, write, &[(&self.weight, weight)], tolerance);
    }

    /// The flat buffer.
    pub(crate) fn buffer(&self) -> &FlatBuffer {
        &self.buffer
    }

    #[track_caller]
    fn check_places(&self, what: &str, write: Write, places: &[(&Range<usize>, &Tensor)], tolerance: f64) {
        let after = self.buffer.to_vec().unwrap();
        for (range, exact) in places {
            let earlier = |i: usize| if write == Write::Add { f64::from(self.before[i]) } else { 0.0 };
            let exact = download(exact);
            let largest = exact.iter().fold(1e-6f64, |most, v| most.max(v.abs()));
            for (i, exact) in (*range).clone().zip(&exact) {
                let (found, exact) = (f64::from(after[i]), exact + earlier(i));
                let off = (found - exact).abs();
                assert!(off <= tolerance * largest, "{what} {write:?}: element {i} is {found}, exactly {exact}");
            }
        }
        for (i, (after, before)) in after.iter().zip(&self.before).enumerate() {
            let inside = places.iter().any(|(range, _)| range.contains(&i));
            assert!(inside || after.to_bits() == before.to_bits(), "{what}: element {i} belongs to nobody here");
        }
    }
}
