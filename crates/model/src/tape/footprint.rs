//! How much memory the values of a training pass take on a GPU, without one: the tape's own rules for what is kept and when
//! it is freed, played over a [`Sketch`] with counters in the place of tensors.
//!
//! What [`super::ops`] and the operations' bodies for a GPU keep and allocate is said here once more, for each [`Kind`]; a test
//! on a GPU (`crates/train/tests/gpu/memory.rs`) holds the sum against what the driver saw.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use super::sketch::{Sketch, Step};
use super::{Kind, Operation};

/// Channels of a head up to which probabilities in 16 bits are made again instead of being kept, in steps of so many.
const FLASH_CHANNELS: usize = 128;
const FLASH_STEP: usize = 8;

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

/// What was recorded: an operation with what its way back reads, or a block with its inputs.
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
    /// The steps that are the first and the last to read each value on the way there.
    first_use: Vec<usize>,
    last_use: Vec<usize>,
    ledger: Rc<Ledger>,
}

/// What is held for each value.
type Values = Vec<Option<Held>>;

impl Sketch {
    /// The most bytes that activations and their gradients take at once while `images` are learned from, with numbers of
    /// `size` bytes; with `checkpointing`, where blocks keep their inputs alone.
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

    /// Bytes at least that sums over `images` wait in until the end of a pass: of each channel of a normalisation, the gradients of
    /// weight and bias, and the sum of `dx`, of which there are several where an image is split.
    pub fn sums_bytes(&self, images: usize) -> u64 {
        let norms = self.operations().filter(|operation| matches!(operation.kind, Kind::GroupNorm { .. }));
        let channels: usize = norms.filter_map(|operation| operation.x.last()).sum();
        (3 * channels * images * size_of::<f32>()) as u64
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
        (shape.iter().product::<usize>() * self.images * self.size) as u64
    }

    fn f32s(&self, per_image: usize) -> u64 {
        (per_image * self.images * size_of::<f32>()) as u64
    }

    /// Runs some steps; what they leave for the way back, if they are recorded.
    fn forward(&self, steps: Range<usize>, values: &mut Values, recorded: bool) -> Vec<Node> {
        let mut nodes = Vec::new();
        for at in steps {
            let Step { operation, x, other, y } = &self.sketch.steps[at];
            let result = self.take(self.numbers(&operation.y()));
            let mut kept = self.made_beside(operation);
            let held = |value: &Option<usize>| value.and_then(|value| values[value].clone());
            match operation.kind {
                Kind::Conv2d { .. } | Kind::Linear { .. } | Kind::Activation(_) | Kind::Silu => {
                    // What has no number is the image, or the time: it came from somewhere.
                    kept.push(held(x).unwrap_or_else(|| self.take(self.numbers(&operation.x))));
                }
                Kind::GroupNorm { .. } => kept.extend(held(x).into_iter().chain(held(other))),
                Kind::Attention { .. } => kept.extend(held(x).into_iter().chain([result.clone()])),
                _ => {}
            }
            values[*y] = Some(result);
            x.iter().chain(other).filter(|&&value| self.last_use[value] == at).for_each(|&value| values[value] = None);
            if recorded {
                nodes.push(Node::Operation { step: at, kept });
            }
        }
        nodes
    }

    /// The same for all steps, where blocks leave their inputs alone.
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

    /// What a forward pass makes for the way back besides its result.
    fn made_beside(&self, operation: &Operation) -> Vec<Held> {
        let side = |at: usize| operation.x.get(at).copied().unwrap_or(0);
        match operation.kind {
            Kind::GroupNorm { norm, .. } => vec![self.take(self.f32s(2 * norm.groups))],
            Kind::Attention { heads } if self.is_flash(side(2) / 3 / heads) => {
                vec![self.take(self.f32s(heads * side(1)))]
            }
            Kind::Attention { heads } => vec![self.take(self.numbers(&[heads, side(1), side(1)]))],
            _ => Vec::new(),
        }
    }

    fn is_flash(&self, head_channels: usize) -> bool {
        self.size < size_of::<f32>() && head_channels.is_multiple_of(FLASH_STEP) && head_channels <= FLASH_CHANNELS
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

    /// An operation's way back, which ends what it `kept`.
    fn operation_backward(&self, at: usize, gradients: &mut Values, kept: Vec<Held>) {
        let step = &self.sketch.steps[at];
        let Some(dy) = gradients[step.y].take().map(|dy| self.sum(dy)) else { return };
        let operation = &step.operation;
        let dx = || self.take(self.numbers(&operation.x));
        match operation.kind {
            Kind::Conv2d { need_dx, .. } => {
                self.accumulate(gradients, step.other, dy.clone());
                need_dx.then(dx).into_iter().for_each(|dx| self.accumulate(gradients, step.x, dx));
            }
            Kind::Linear { need_dx, .. } => {
                self.accumulate(gradients, step.other, dy.clone());
                // What has arrived for x is added on the way.
                let earlier = step.x.and_then(|x| gradients[x].take()).map(|earlier| self.sum(earlier));
                need_dx.then(dx).into_iter().for_each(|dx| self.accumulate(gradients, step.x, dx));
                drop(earlier);
            }
            Kind::GroupNorm { offset, .. } => {
                // Here too, unless the offset's gradient is a sum without it.
                let extra = step.x.filter(|_| !offset).and_then(|x| gradients[x].take());
                // Who writes the first columns of the time's gradient makes the whole.
                if let Some(time) = step.other
                    && gradients[time].is_none()
                {
                    gradients[time] = Some(self.take(self.numbers(&self.sketch.steps[time].operation.y())));
                }
                match step.x.and_then(|x| self.parts(x, at)).filter(|_| !offset) {
                    Some(parts) => {
                        parts.into_iter().for_each(|(value, part)| self.accumulate(gradients, value, part));
                    }
                    None => self.accumulate(gradients, step.x, dx()),
                }
                drop(extra);
            }
            Kind::Attention { .. } => {
                let dx = dx();
                drop(self.made_beside(operation));
                self.accumulate(gradients, step.x, dx);
            }
            Kind::AddChannels => {
                let channels = operation.x.last().copied().unwrap_or(0);
                self.accumulate(gradients, step.other, self.take(self.numbers(&[channels])));
                self.accumulate(gradients, step.x, dy);
            }
            Kind::Add => [step.x, step.other].into_iter().for_each(|x| self.accumulate(gradients, x, dy.clone())),
            Kind::Concat { others } => {
                let all = operation.x.iter().product::<usize>();
                let others = all / operation.x.last().copied().unwrap_or(1).max(1) * others;
                let (da, db) = (dx(), self.take(self.numbers(&[others])));
                self.accumulate(gradients, step.x, da);
                self.accumulate(gradients, step.other, db);
            }
            Kind::Embedding { .. } => {}
            _ => self.accumulate(gradients, step.x, dx()),
        }
        drop(kept);
    }

    /// The gradient of a joined value in its two parts, made so by the step that is the first to read it.
    fn parts(&self, value: usize, at: usize) -> Option<[(Option<usize>, Held); 2]> {
        // A value has the number of the step that makes it.
        let Step { operation, x, other, .. } = self.sketch.steps.get(value)?;
        let Kind::Concat { others } = operation.kind else { return None };
        let pixels = operation.x.iter().rev().skip(1).product::<usize>();
        let parts =
            || [(*x, self.take(self.numbers(&operation.x))), (*other, self.take(self.numbers(&[pixels, others])))];
        (self.first_use[value] == at).then(parts)
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
