//! One operation on given operands: the truth in f64, and the finite differences that vouch for it.

use candle_core::{Tensor, Var};

use super::close::f64s;
use super::{Tolerance, assert_close, normal, widen};

/// An operation in plain candle operations, over its operands in order.
pub(crate) type Twin<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// Step of the central differences, in units of the operand's spread. In f64 the rounding of the loss gives an error
/// of about 1e-12 of it, the third derivative one of about 1e-8 of that: both are far below [`SLOPE_ERROR`].
const STEP: f64 = 1e-4;
/// The error of a central difference, against the sum of the absolute terms of the slope.
const SLOPE_ERROR: f64 = 1e-6;
/// The share of the whole gradient that counts as a term too: an axis may have next to no slope.
const FLOOR: f64 = 1e-3;

/// What an operation gives: its output, and the gradient of each operand.
pub(crate) struct Answer {
    pub(crate) y: Tensor,
    pub(crate) grads: Vec<Tensor>,
}

/// An operation to check. Its operands and the output's gradient are f32 numbers, so that f32 and f64 start from the
/// same point.
pub(crate) struct Case<'a> {
    op: String,
    names: Vec<&'static str>,
    operands: Vec<Tensor>,
    /// The gradient of the output.
    pub(crate) dy: Tensor,
    twin: Twin<'a>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(op: impl Into<String>, operands: &[(&'static str, &Tensor)], twin: Twin<'a>) -> Self {
        let (names, operands): (Vec<_>, Vec<Tensor>) = operands.iter().map(|&(n, t)| (n, t.clone())).unzip();
        let wide: Vec<Tensor> = operands.iter().map(widen).collect();
        let dy = normal(0xD1, twin(&wide).unwrap().dims());
        Self { op: op.into(), names, operands, dy, twin }
    }

    /// The truth: the twin in f64 and candle's autograd over it.
    pub(crate) fn want(&self) -> Answer {
        autograd(self.twin, &self.operands.iter().map(widen).collect::<Vec<_>>(), &widen(&self.dy))
    }

    /// The root of the sum of the squared terms, for an operation that is a sum of products: the twin and its
    /// gradients on squared operands sum exactly those squares.
    pub(crate) fn magnitude(&self) -> Answer {
        let square = |t: &Tensor| widen(t).sqr().unwrap();
        let squares = autograd(self.twin, &self.operands.iter().map(square).collect::<Vec<_>>(), &square(&self.dy));
        let grads = squares.grads.iter().map(|g| g.sqrt().unwrap()).collect();
        Answer { y: squares.y.sqrt().unwrap(), grads }
    }

    /// Compares a kernel's output and gradients with the truth, and the gradients with finite differences.
    #[track_caller]
    pub(crate) fn check(&self, want: &Answer, y: (&Tensor, &Tolerance), grads: &[(&Tensor, Tolerance)]) {
        assert_eq!(grads.len(), self.operands.len(), "{}: a gradient for each operand", self.op);
        assert_close(&format!("{}: y", self.op), y.0, &want.y, y.1);
        for ((name, want), (got, tolerance)) in self.names.iter().zip(&want.grads).zip(grads) {
            assert_close(&format!("{}: gradient of {name}", self.op), got, want, tolerance);
        }
        self.check_slopes(want, grads);
    }

    /// Compares slopes of `sum(dy y)` with what the gradients say they are: along two random directions and two
    /// axes of each operand, and along a random direction of all operands.
    #[track_caller]
    fn check_slopes(&self, want: &Answer, grads: &[(&Tensor, Tolerance)]) {
        let still: Vec<Tensor> = self.operands.iter().map(|t| widen(t).zeros_like().unwrap()).collect();
        for (i, operand) in self.operands.iter().enumerate() {
            let random = |seed| random(seed, operand);
            let count = operand.elem_count();
            for direction in [random(0xA1), random(0xA2), axis(operand, count / 3), axis(operand, count - 1)] {
                let mut directions = still.clone();
                directions[i] = direction;
                self.check_slope(self.names[i], want, grads, &directions);
            }
        }
        let all: Vec<Tensor> = (0xB0..).zip(&self.operands).map(|(seed, t)| random(seed, t)).collect();
        self.check_slope("all operands", want, grads, &all);
    }

    #[track_caller]
    fn check_slope(&self, what: &str, want: &Answer, grads: &[(&Tensor, Tolerance)], directions: &[Tensor]) {
        let slope = (self.loss(directions, STEP) - self.loss(directions, -STEP)) / (2.0 * STEP);
        let (mut got, mut truth, mut terms, mut allowed) = (0.0, 0.0, 0.0, 0.0);
        for ((want, (grad, tolerance)), direction) in want.grads.iter().zip(grads).zip(directions) {
            let (want, grad, direction) = (f64s(want), f64s(grad), f64s(direction));
            let floor = FLOOR * direction.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
            let bounds = tolerance.allowed(candle_core::DType::F32, &want);
            for i in 0..want.len() {
                got += grad[i] * direction[i];
                truth += want[i] * direction[i];
                terms += (want[i] * direction[i]).abs() + floor * want[i].abs();
                allowed += bounds[i] * direction[i].abs();
            }
        }
        let error = SLOPE_ERROR * terms;
        let op = &self.op;
        assert!((truth - slope).abs() <= error, "{op}: autograd's slope along {what} is {truth}, measured {slope}");
        assert!(
            (got - slope).abs() <= error + allowed,
            "{op}: the gradients' slope along {what} is {got}, measured {slope}, allowed error {:e}",
            error + allowed
        );
    }

    fn loss(&self, directions: &[Tensor], step: f64) -> f64 {
        let moved: Vec<Tensor> = self
            .operands
            .iter()
            .zip(directions)
            .map(|(operand, direction)| (widen(operand) + (direction * step).unwrap()).unwrap())
            .collect();
        ((self.twin)(&moved).unwrap() * widen(&self.dy)).unwrap().sum_all().unwrap().to_scalar().unwrap()
    }
}

/// A random direction in which `operand` changes by its own spread.
fn random(seed: u64, operand: &Tensor) -> Tensor {
    (widen(&normal(seed, operand.dims())) * spread(operand)).unwrap()
}

/// The direction of one element, as long as the operand's spread.
fn axis(operand: &Tensor, element: usize) -> Tensor {
    let mut data = vec![0f64; operand.elem_count()];
    data[element] = spread(operand);
    Tensor::from_vec(data, operand.dims(), operand.device()).unwrap()
}

/// The standard deviation, 1 where there is none.
fn spread(x: &Tensor) -> f64 {
    let x = f64s(x);
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
    if variance > 0.0 { variance.sqrt() } else { 1.0 }
}

fn autograd(twin: Twin<'_>, operands: &[Tensor], dy: &Tensor) -> Answer {
    let vars: Vec<Var> = operands.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = twin(&tensors).unwrap();
    let store = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars.iter().map(|v| store.get(v).unwrap().clone()).collect();
    Answer { y: y.detach(), grads }
}
