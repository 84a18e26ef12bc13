//! Where each parameter lies in a flat buffer.

use std::ops::Range;

/// A parameter's place in its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub(super) usize);

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in `(-bound, bound)`; PyTorch's default for a layer is `bound = 1 / sqrt(fan_in)`.
    Uniform(f64),
    /// Standard normal (embeddings).
    Normal,
}

/// How files hold a parameter; `unet/naming.rs` converts between the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileLayout {
    /// As in memory.
    Same,
    /// A convolution weight.
    Convolution,
    /// Stacked along the first axis from equally large tensors under these keys.
    Stacked([String; 3]),
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Its name in memory: diffusers' key, except where [`FileLayout`] says otherwise.
    pub key: String,
    /// Its shape in memory (channels last).
    pub shape: Vec<usize>,
    /// Its first element in the flat buffer.
    pub offset: usize,
    /// How it starts.
    pub init: Init,
    /// How files hold it.
    pub file: FileLayout,
}

impl ParamSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Parameters begin at multiples of so many elements: 16 bytes in any of our number formats, which a GPU's wide loads and
/// its libraries' fast paths require.
const ALIGNMENT: usize = 8;

/// All parameters of a network, in order.
///
/// The buffer has them in the same order, except for those of a *stack*: linear layers with the same input. Their weights lie one
/// after another at its end, and after them their biases, so that a GPU applies them all as one layer.
#[derive(Clone, Debug, Default)]
pub struct ParamLayout {
    pub(super) specs: Vec<ParamSpec>,
    pub(super) len: usize,
    pub(super) stack: Stack,
}

/// Weights `[O, I]` and biases `[O]` of layers of the same inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Stack {
    pub(super) weights: Vec<ParamId>,
    pub(super) biases: Vec<ParamId>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl ParamLayout {
    /// Appends a parameter.
    pub(crate) fn push(&mut self, key: String, shape: &[usize], init: Init, file: FileLayout) -> ParamId {
        let offset = self.len.next_multiple_of(ALIGNMENT);
        let spec = ParamSpec { key, shape: shape.to_vec(), offset, init, file };
        self.len = offset + spec.len();
        self.specs.push(spec);
        ParamId(self.specs.len() - 1)
    }

    /// Appends weight `[outputs, inputs]` and bias of a layer of the stack; with the layer's first output among the stack's.
    /// They have no place before [`finish`](Self::finish).
    pub(crate) fn push_stacked(
        &mut self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        init: Init,
    ) -> ((ParamId, ParamId), usize) {
        debug_assert!(self.stack.weights.is_empty() || self.stack.inputs == inputs, "{name}: other inputs");
        let mut push = |part: &str, shape: &[usize]| {
            let (key, shape) = (format!("{name}.{part}"), shape.to_vec());
            self.specs.push(ParamSpec { key, shape, offset: usize::MAX, init, file: FileLayout::Same });
            ParamId(self.specs.len() - 1)
        };
        let (weight, bias) = (push("weight", &[outputs, inputs]), push("bias", &[outputs]));
        let stack = &mut self.stack;
        stack.weights.push(weight);
        stack.biases.push(bias);
        stack.inputs = inputs;
        let first = stack.outputs;
        stack.outputs += outputs;
        ((weight, bias), first)
    }

    /// Gives the stack its place, after all others and without gaps.
    pub(crate) fn finish(mut self) -> Self {
        for ids in [&self.stack.weights, &self.stack.biases] {
            if ids.is_empty() {
                continue;
            }
            self.len = self.len.next_multiple_of(ALIGNMENT);
            for &ParamId(id) in ids {
                self.specs[id].offset = self.len;
                self.len += self.specs[id].len();
            }
        }
        self
    }

    /// Where the weights and the biases of the stack lie.
    pub(super) fn stacked(&self) -> [Range<usize>; 2] {
        [&self.stack.weights, &self.stack.biases].map(|ids| {
            let mut ranges = ids.iter().map(|&id| self.range(id));
            let first = ranges.next().unwrap_or(self.len..self.len);
            first.start..ranges.next_back().map_or(first.end, |last| last.end)
        })
    }

    pub(super) fn range(&self, id: ParamId) -> Range<usize> {
        let spec = self.spec(id);
        spec.offset..spec.offset + spec.len()
    }

    /// The parameters, in order.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Number of elements of a flat buffer: those of all parameters, and zeros between them where one begins at a multiple.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of elements of all parameters together.
    pub fn parameters(&self) -> usize {
        self.specs.iter().map(ParamSpec::len).sum()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn spec(&self, id: ParamId) -> &ParamSpec {
        &self.specs[id.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_layers_lie_together_behind_all_others_whatever_their_order() {
        let mut layout = ParamLayout::default();
        let push = |layout: &mut ParamLayout, key: &str, len: usize| {
            layout.push(key.to_owned(), &[len], Init::Zeros, FileLayout::Same)
        };
        push(&mut layout, "a", 3);
        let ((first, _), at) = layout.push_stacked("first", [3, 4], Init::Zeros);
        push(&mut layout, "b", 10);
        let (second, next) = layout.push_stacked("second", [5, 4], Init::Zeros);
        push(&mut layout, "c", 1);
        let layout = layout.finish();
        let keys: Vec<&str> = layout.specs().iter().map(|spec| spec.key.as_str()).collect();
        assert_eq!(keys, ["a", "first.weight", "first.bias", "b", "second.weight", "second.bias", "c"]);
        assert_eq!([at, next], [0, 3]);
        let [weights, biases] = layout.stacked();
        assert_eq!((weights.clone(), biases.clone()), (32..32 + 8 * 4, 64..64 + 8));
        assert_eq!(layout.range(first), weights.start..weights.start + 3 * 4);
        assert_eq!(layout.range(second.0), weights.start + 3 * 4..weights.end);
        assert_eq!(layout.range(second.1), biases.start + 3..biases.end);
        assert_eq!((layout.len(), layout.parameters()), (72, 3 + 10 + 1 + 8 * 5));
    }

    #[test]
    fn a_layout_without_a_stack_ends_with_its_last_parameter() {
        let mut layout = ParamLayout::default();
        layout.push("a".to_owned(), &[3], Init::Zeros, FileLayout::Same);
        let layout = layout.finish();
        assert_eq!((layout.len(), layout.stacked()), (3, [3..3, 3..3]));
    }
}
