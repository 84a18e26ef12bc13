//! How much memory the values of a training pass take on a GPU, without one: the tape's own rules for what is kept and when
//! it is freed, played over a [`Sketch`] with counters instead of tensors.
//!
//! What each operation keeps and allocates stands beside it, in [`super::ops`].

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use super::operation::{Added, BackwardPass, Gradient, Operation, count};
use super::sketch::{Sketch, Step};

/// Bytes that are in use, and the most that ever were.
#[derive(Debug, Default)]
struct Ledger {
    live: Cell<u64>,
    peak: Cell<u64>,
}

/// Memory that is free again when its last clone is dropped.
#[derive(Clone, Debug)]
struct Held {
    lease: Rc<Lease>,
    /// A second gradient that waits beside the first.
    second: Option<Rc<Lease>>,
}

#[derive(Debug)]
struct Lease {
    bytes: u64,
    ledger: Rc<Ledger>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.live.set(self.ledger.live.get() - self.bytes);
    }
}

/// What was recorded: an operation with what its backward pass reads, or a block with its inputs.
enum Node {
    Operation { step: usize, kept: Vec<Held> },
    Block { steps: Range<usize>, inputs: Vec<(usize, Held)> },
}

/// A pass that is played.
struct Pass<'s> {
    sketch: &'s Sketch,
    images: usize,
    /// Bytes of a number.
    size: usize,
    /// The steps that are the first and the last to read each value in the forward pass.
    first_use: Vec<usize>,
    last_use: Vec<usize>,
    ledger: Rc<Ledger>,
}

/// What is held for each value.
type Values = Vec<Option<Held>>;

impl Sketch {
    /// The most bytes that activations and their gradients take at once in a training step of `images`, with numbers of `size`
    /// bytes; with `checkpointing`, blocks keep only their inputs.
    pub fn peak_bytes(&self, images: usize, size: usize, checkpointing: bool) -> u64 {
        let (mut first_use, mut last_use) = (vec![usize::MAX; self.values], vec![0; self.values]);
        for (at, step) in self.steps.iter().enumerate() {
            for &value in step.x.iter().chain(&step.other) {
                first_use[value] = first_use[value].min(at);
                last_use[value] = at;
            }
        }
        let pass = Pass { sketch: self, images, size, first_use, last_use, ledger: Rc::default() };
        let mut values: Values = vec![None; self.values];
        let all = 0..self.steps.len();
        let nodes =
            if checkpointing { pass.forward_by_blocks(&mut values) } else { pass.forward(all, &mut values, true) };
        if let Some(last) = self.steps.last() {
            // The loss' gradient is made while the output is there.
            let mut gradients: Values = vec![None; self.values];
            gradients[last.y] = Some(pass.take(pass.numbers(&last.operation.y())));
            drop(values);
            pass.backward(nodes, &mut gradients);
        }
        pass.ledger.peak.get()
    }

    /// A lower bound on the bytes in which sums over `images` wait until the end of a pass.
    pub fn sums_bytes(&self, images: usize) -> u64 {
        let sums = self.steps.iter().map(|Step { operation, .. }| operation.facts.waiting_sums(&operation.x));
        (sums.sum::<usize>() * images * size_of::<f32>()) as u64
    }
}

impl Pass<'_> {
    fn take(&self, bytes: u64) -> Held {
        let live = self.ledger.live.get() + bytes;
        self.ledger.live.set(live);
        self.ledger.peak.set(self.ledger.peak.get().max(live));
        Held { lease: Rc::new(Lease { bytes, ledger: self.ledger.clone() }), second: None }
    }

    /// Bytes of a tensor whose sketch, for one image, has this shape.
    fn numbers(&self, shape: &[usize]) -> u64 {
        count(shape) * (self.images * self.size) as u64
    }

    /// What a forward pass makes for the backward pass besides its result.
    fn made_beside(&self, operation: &Operation) -> Held {
        self.take(operation.facts.made_beside(&operation.x, self.size) * self.images as u64)
    }

    /// Runs some steps; returns what they keep for the backward pass, if they are recorded.
    fn forward(&self, steps: Range<usize>, values: &mut Values, recorded: bool) -> Vec<Node> {
        let mut nodes = Vec::new();
        for at in steps {
            let Step { operation, x, other, y } = &self.sketch.steps[at];
            let result = self.take(self.numbers(&operation.y()));
            let mut kept = vec![self.made_beside(operation)];
            let held = |value: &Option<usize>| value.and_then(|value| values[value].clone());
            let reads = operation.facts.kept();
            if reads.x {
                // A value without a number is the image or the time, which the caller made.
                kept.push(held(x).unwrap_or_else(|| self.take(self.numbers(&operation.x))));
            }
            kept.extend(held(other).filter(|_| reads.other));
            kept.extend(reads.y.then(|| result.clone()));
            values[*y] = Some(result);
            x.iter().chain(other).filter(|&&value| self.last_use[value] == at).for_each(|&value| values[value] = None);
            if recorded {
                nodes.push(Node::Operation { step: at, kept });
            }
        }
        nodes
    }

    /// The same for all steps, where blocks keep only their inputs.
    fn forward_by_blocks(&self, values: &mut Values) -> Vec<Node> {
        let (mut nodes, mut at) = (Vec::new(), 0);
        for block in self.sketch.blocks.iter().chain([&(self.sketch.steps.len()..self.sketch.steps.len())]) {
            nodes.extend(self.forward(at..block.start, values, true));
            at = block.end;
            if block.is_empty() {
                continue;
            }
            let mut inputs: Vec<(usize, Held)> = Vec::new();
            for value in self.sketch.steps[block.clone()].iter().flat_map(|step| step.x.iter().chain(&step.other)) {
                if let Some(held) = &values[*value]
                    && inputs.iter().all(|(known, _)| known != value)
                {
                    inputs.push((*value, held.clone()));
                }
            }
            self.forward(block.clone(), values, false);
            nodes.push(Node::Block { steps: block.clone(), inputs });
        }
        nodes
    }

    fn backward(&self, nodes: Vec<Node>, gradients: &mut Values) {
        for node in nodes.into_iter().rev() {
            match node {
                Node::Operation { step, kept } => self.operation_backward(step, gradients, kept),
                Node::Block { steps, inputs } => {
                    let mut values: Values = vec![None; self.sketch.values];
                    inputs.into_iter().for_each(|(value, held)| values[value] = Some(held));
                    let nodes = self.forward(steps, &mut values, true);
                    drop(values);
                    self.backward(nodes, gradients);
                }
            }
        }
    }

    /// An operation's backward pass, which frees what it `kept`.
    fn operation_backward(&self, at: usize, gradients: &mut Values, kept: Vec<Held>) {
        let step = &self.sketch.steps[at];
        let Some(dy) = gradients[step.y].take().map(|dy| self.sum(dy)) else { return };
        let BackwardPass { x, other, added, beside } = step.operation.facts.backward_pass(&step.operation.x);
        let new = |shape: &[usize]| self.take(self.numbers(shape));
        match &other {
            Gradient::OfResult => self.accumulate(gradients, step.other, dy.clone()),
            Gradient::New(shape) => self.accumulate(gradients, step.other, new(shape)),
            Gradient::Shared => self.make_whole(gradients, step.other),
            Gradient::None | Gradient::NewOrParts => {}
        }
        let arrived = step.x.filter(|_| added != Added::Nothing).and_then(|x| gradients[x].take());
        let arrived = if added == Added::One { arrived.map(|arrived| self.sum(arrived)) } else { arrived };
        let dx = match &x {
            Gradient::New(shape) => Some(new(shape)),
            Gradient::OfResult => Some(dy),
            Gradient::NewOrParts if !self.give_parts(gradients, step.x, at) => Some(new(&step.operation.x)),
            _ => None,
        };
        drop(beside.then(|| self.made_beside(&step.operation)));
        dx.into_iter().for_each(|dx| self.accumulate(gradients, step.x, dx));
        drop((arrived, kept));
    }

    /// Makes a gradient of which several operations write some columns each, if it is not there yet.
    fn make_whole(&self, gradients: &mut Values, value: Option<usize>) {
        if let Some(value) = value
            && gradients[value].is_none()
        {
            gradients[value] = Some(self.take(self.numbers(&self.sketch.steps[value].operation.y())));
        }
    }

    /// If a value was joined of two and the operation `at` is the first to read it: gives those two their gradients.
    fn give_parts(&self, gradients: &mut Values, value: Option<usize>, at: usize) -> bool {
        let Some(value) = value.filter(|&value| self.first_use[value] == at) else { return false };
        // A value has the number of the step that makes it.
        let Some(Step { operation, x, other, .. }) = self.sketch.steps.get(value) else { return false };
        let Some(parts) = operation.facts.parts(&operation.x) else { return false };
        let parts = parts.map(|shape| self.take(self.numbers(&shape)));
        [*x, *other].into_iter().zip(parts).for_each(|(value, part)| self.accumulate(gradients, value, part));
        true
    }

    /// The first gradient is taken as it is, and where operations are fused a second may wait beside it; the sum of two is a
    /// third tensor.
    fn accumulate(&self, gradients: &mut Values, value: Option<usize>, gradient: Held) {
        let Some(value) = value else { return };
        gradients[value] = Some(match gradients[value].take() {
            None => gradient,
            Some(earlier) if self.sketch.fused => Held { second: Some(gradient.lease), ..self.sum(earlier) },
            Some(_earlier) => self.take(gradient.bytes()),
        });
    }

    /// A gradient as one tensor.
    fn sum(&self, gradient: Held) -> Held {
        if gradient.second.is_some() { self.take(gradient.bytes()) } else { gradient }
    }
}

impl Held {
    fn bytes(&self) -> u64 {
        self.lease.bytes
    }
}
