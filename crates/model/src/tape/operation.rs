//! What an operation of the network works on, noted while a pass runs: enough to say what it costs and keeps, and to run the
//! same work again on its own. All of that stands beside the operation itself, in [`ops`](super::ops), as its [`Facts`].

use std::fmt::{self, Debug, Display, Formatter};
use std::sync::Arc;

use candle_core::{DType, Device};
use ddpm_kernels::KernelError;

use super::operands::{Maker, Runs};

/// An operation on `x` `[N, ..., C]`.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The shape of its first operand; that of an embedding is its result's.
    pub(super) x: Vec<usize>,
    pub(super) facts: Arc<dyn Facts>,
}

/// Whether they do the same work.
impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        // Facts are equal if their texts are.
        self.x == other.x && format!("{:?}", self.facts) == format!("{:?}", other.facts)
    }
}

/// What must be done, whatever the algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes that must be read and written once.
    pub bytes: u64,
    /// Two for each multiplication and addition of convolutions and matrix products; nothing else counts.
    pub flop: u64,
}

/// What the backward pass reads, so that it is not freed before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub(super) x: bool,
    pub(super) other: bool,
    pub(super) y: bool,
}

/// Where the gradient of an operand comes from.
#[derive(Clone, Debug)]
pub(super) enum Gradient {
    /// It gets none.
    None,
    /// It is that of the result.
    OfResult,
    /// It is a new tensor of this shape.
    New(Vec<usize>),
    /// A new tensor; or two, where the operand was joined of two values and is read here first.
    NewOrParts,
    /// Each operation that reads the operand writes some of its columns, the first of all makes it.
    Shared,
}

/// What has arrived for an operand and is added to its gradient in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// Nothing is: sums are passes of their own.
    Nothing,
    /// One tensor.
    One,
    /// One tensor, or two.
    Two,
}

/// What a backward pass reads and writes.
#[derive(Clone, Debug)]
pub(super) struct BackwardPass {
    pub(super) x: Gradient,
    pub(super) other: Gradient,
    /// To that of x.
    pub(super) added: Added,
    /// Whether it needs for a while as much as the forward pass [made beside](Facts::made_beside) its result.
    pub(super) beside: bool,
}

impl BackwardPass {
    /// The gradients alone.
    pub(super) fn gives(x: Gradient, other: Gradient) -> Self {
        Self { x, other, added: Added::Nothing, beside: false }
    }

    /// A layer's, whose input may need none.
    pub(super) fn of_layer(x: &[usize], need_dx: bool) -> Self {
        Self::gives(if need_dx { Gradient::New(x.to_vec()) } else { Gradient::None }, Gradient::OfResult)
    }
}

/// What is known of an operation without running it. `x` is the shape of its first operand `[N, ..., C]`, `size` the bytes of an
/// activation's number. What is said here of memory is what the operation and its body for a GPU keep and allocate; a test on a
/// GPU (`tests/gpu/memory.rs` of the crate that trains) holds the sum against what the driver saw.
pub(super) trait Facts: Debug + Send + Sync {
    /// The name of the tape's method.
    fn name(&self) -> &'static str;

    /// What makes a difference besides the shapes, as a text to follow them.
    fn details(&self) -> String {
        String::new()
    }

    /// The shape of the result.
    fn y(&self, x: &[usize]) -> Vec<usize> {
        x.to_vec()
    }

    /// Numbers in weight and bias, in this order.
    fn params(&self, _x: &[usize]) -> [usize; 2] {
        [0; 2]
    }

    /// What its forward pass must do; it reads `x` and writes the result.
    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        Work { bytes: (count(x) + count(&self.y(x))) * size as u64, flop: 0 }
    }

    /// What its backward pass must do: the gradients of parameters are f32.
    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        self.forward_work(x, size)
    }

    /// What the backward pass reads.
    fn kept(&self) -> Kept {
        Kept::default()
    }

    /// Bytes that the forward pass makes for the backward pass besides its result, for one image.
    fn made_beside(&self, _x: &[usize], _size: usize) -> u64 {
        0
    }

    /// Numbers of f32 for each image in which sums over the images wait until the end of a pass.
    fn waiting_sums(&self, _x: &[usize]) -> usize {
        0
    }

    /// The shapes of what the result is made of, where that lies in it side by side.
    fn parts(&self, _x: &[usize]) -> Option<[Vec<usize>; 2]> {
        None
    }

    /// What its backward pass reads and writes.
    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        BackwardPass::gives(Gradient::New(x.to_vec()), Gradient::None)
    }

    /// Both passes on operands of their own.
    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError>;
}

impl Operation {
    pub(super) fn new(x: &[usize], facts: impl Facts + 'static) -> Self {
        Self { x: x.to_vec(), facts: Arc::new(facts) }
    }

    /// The name of the tape's method.
    pub fn name(&self) -> &'static str {
        self.facts.name()
    }

    /// The same for `n` samples.
    #[must_use]
    pub fn of_samples(mut self, n: usize) -> Self {
        if let Some(samples) = self.x.first_mut() {
            *samples = n;
        }
        self
    }

    /// The shape of the result.
    pub fn y(&self) -> Vec<usize> {
        self.facts.y(&self.x)
    }

    /// What its forward pass must do, with activations of `size` bytes a number.
    pub fn forward_work(&self, size: usize) -> Work {
        self.facts.forward_work(&self.x, size)
    }

    /// What its backward pass must do: the gradients of parameters are f32.
    pub fn backward_work(&self, size: usize) -> Work {
        self.facts.backward_work(&self.x, size)
    }

    /// Both passes on `device`, with operands of their own, whose activations are in `dtype`.
    ///
    /// # Errors
    /// A device without memory, or an operation that fails.
    pub fn prepare(&self, dtype: DType, device: &Device) -> Result<Runs, KernelError> {
        self.facts.prepare(&self.x, &Maker { dtype, device })
    }
}

/// The shapes and what else makes a difference.
impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sides = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        write!(f, "{} to {}{}", sides(&self.x), sides(&self.y()), self.facts.details())
    }
}

/// Numbers in a tensor of this shape.
pub(super) fn count(shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64
}

/// The last axis.
pub(super) fn channels(x: &[usize]) -> usize {
    x.last().copied().unwrap_or(0)
}

/// `x` with another last axis.
pub(super) fn with_channels(x: &[usize], channels: usize) -> Vec<usize> {
    let mut y = x.to_vec();
    y.iter_mut().rev().take(1).for_each(|all| *all = channels);
    y
}

/// `x` `[N, ..., C]` with other sides.
pub(super) fn with_sides(x: &[usize], side: impl Fn(usize) -> usize) -> Vec<usize> {
    let last = x.len().saturating_sub(1);
    x.iter().enumerate().map(|(at, &of)| if at == 0 || at == last { of } else { side(of) }).collect()
}

/// `numbers` for each channel of each sample.
pub(super) fn per_channel(x: &[usize], numbers: u64) -> u64 {
    numbers * x.first().zip(x.last()).map_or(0, |(n, channels)| (n * channels) as u64)
}

/// The forward work of a layer, whose parameters have the format of its activations; a residual is read too.
pub(super) fn layer_work(facts: &dyn Facts, x: &[usize], size: usize, residual: bool) -> Work {
    let (y, params) = (count(&facts.y(x)), facts.params(x));
    let second = if residual { y } else { 0 };
    let params = params.iter().sum::<usize>() as u64;
    Work { bytes: (count(x) + y + second + params) * size as u64, flop: layer_products(facts, x) }
}

/// Its backward work: a product for the gradient of the weight, and one for that of x, where x needs one.
pub(super) fn layer_backward_work(facts: &dyn Facts, x: &[usize], size: usize, need_dx: bool) -> Work {
    let [weight, bias] = facts.params(x).map(|numbers| numbers as u64);
    let dx = if need_dx { count(x) + weight } else { 0 };
    let gradients = (weight + bias) * size_of::<f32>() as u64;
    let products = if need_dx { 2 } else { 1 };
    let bytes = (count(x) + count(&facts.y(x)) + dx) * size as u64 + gradients;
    Work { bytes, flop: products * layer_products(facts, x) }
}

fn layer_products(facts: &dyn Facts, x: &[usize]) -> u64 {
    let [weight, bias] = facts.params(x);
    let rows = count(&facts.y(x)) / bias.max(1) as u64;
    2 * rows * weight as u64
}
