//! Parameter gradients: two places in a flat buffer, with neighbours that must stay as they are.

use std::ops::Range;

use candle_core::{Device, Tensor};
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
use ddpm_kernels::gemm::Write;

use super::{Tolerance, assert_close, bits, normal, widen};

/// What lies between the places: another number each time, so that a shift shows.
const GUARDS: [usize; 3] = [5, 3, 7];

struct Slots {
    buffer: FlatBuffer,
    weight: Range<usize>,
    bias: Range<usize>,
    before: Vec<f32>,
}

impl Slots {
    fn new(weight: &Tensor, bias: &Tensor) -> Self {
        let weight = GUARDS[0]..GUARDS[0] + weight.elem_count();
        let bias = weight.end + GUARDS[1]..weight.end + GUARDS[1] + bias.elem_count();
        let before: Vec<f32> = normal(0x51, &[bias.end + GUARDS[2]]).to_vec1().unwrap();
        let buffer = FlatBuffer::from_vec(before.clone(), &Device::Cpu).unwrap();
        Self { buffer, weight, bias, before }
    }

    fn grads(&self, write: Write) -> ParamGrads<'_> {
        ParamGrads::new(&self.buffer, self.weight.clone(), self.bias.clone(), write)
    }

    fn assert_neighbours_untouched(&self) {
        let after = self.buffer.to_vec().unwrap();
        for (i, (after, before)) in after.iter().zip(&self.before).enumerate() {
            let inside = self.weight.contains(&i) || self.bias.contains(&i);
            assert!(inside || after.to_bits() == before.to_bits(), "element {i} belongs to nobody here");
        }
    }
}

/// The gradients of a weight and a bias as a backward pass wrote them.
pub(crate) struct Gradients<R> {
    /// What the backward pass returned.
    pub(crate) returned: R,
    /// Written with [`Write::Assign`].
    pub(crate) weight: Tensor,
    /// Written with [`Write::Assign`].
    pub(crate) bias: Tensor,
    /// Written with [`Write::Add`], and what was there before.
    added: [(Tensor, Tensor); 2],
}

/// Runs a backward pass over buffers full of other numbers, once overwriting and once adding.
pub(crate) fn parameter_gradients<R>(
    weight: &Tensor,
    bias: &Tensor,
    backward: impl Fn(&ParamGrads<'_>) -> R,
) -> Gradients<R> {
    let view = |slots: &Slots, range: &Range<usize>, like: &Tensor| {
        slots.buffer.view(range.start, like.dims()).unwrap().copy().unwrap()
    };
    let before = |slots: &Slots, range: &Range<usize>, like: &Tensor| {
        Tensor::from_slice(&slots.before[range.clone()], like.dims(), &Device::Cpu).unwrap()
    };
    let (assign, add) = (Slots::new(weight, bias), Slots::new(weight, bias));
    let returned = backward(&assign.grads(Write::Assign));
    backward(&add.grads(Write::Add));
    assign.assert_neighbours_untouched();
    add.assert_neighbours_untouched();
    Gradients {
        returned,
        weight: view(&assign, &assign.weight, weight),
        bias: view(&assign, &assign.bias, bias),
        added: [
            (view(&add, &add.weight, weight), before(&add, &add.weight, weight)),
            (view(&add, &add.bias, bias), before(&add, &add.bias, bias)),
        ],
    }
}

impl<R> Gradients<R> {
    /// Checks what adding left behind; the truths and bounds are those of the gradients themselves.
    #[track_caller]
    pub(crate) fn check_added(&self, op: &str, want: [(&Tensor, Tolerance); 2]) {
        for ((name, (got, before)), (want, tolerance)) in ["weight", "bias"].iter().zip(&self.added).zip(want) {
            let sum = (want + widen(before)).unwrap();
            let op = format!("{op}: gradient of {name}, added");
            assert_close(&op, got, &sum, &tolerance.added_to(want, before));
        }
    }

    /// Fails unless `other` wrote the same bits.
    #[track_caller]
    pub(crate) fn assert_same_bits<S>(&self, other: &Gradients<S>) {
        assert_eq!(bits(&self.weight), bits(&other.weight), "gradient of weight");
        assert_eq!(bits(&self.bias), bits(&other.bias), "gradient of bias");
        for ((a, _), (b, _)) in self.added.iter().zip(&other.added) {
            assert_eq!(bits(a), bits(b), "gradients added");
        }
    }
}
