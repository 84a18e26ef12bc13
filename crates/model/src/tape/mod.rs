//! The tape: runs operations, remembers which ran on what, and plays their backward passes in reverse.
//!
//! Candle's autograd pays a zero fill and an addition for every edge of the graph, differentiates more than was asked
//! for, and its own convolution and normalisation gradients are slow or wrong (docs/tape.md). Here a gradient that
//! arrives first is taken as it is, parameters' gradients go straight to their place in the flat buffer, and an
//! activation is freed as soon as its backward pass has run.
//!
//! The network is written once against [`Tape`] and runs in several ways: [`Tape::inference`] records nothing and frees
//! activations as it goes; [`Tape::training`] records; [`Tape::gradients`] records without dropout; and a tape that sketches
//! computes nothing and writes down what would run.

mod flow;
mod footprint;
mod operands;
mod operation;
mod ops;
mod recompute;
mod sketch;
mod var;

pub use operands::{Run, Runs};
pub use operation::{Operation, Work};
pub(crate) use ops::{Columns, LayerParams, Residual, Time};
pub use sketch::Sketch;
pub use var::Var;

use candle_core::{DType, Device, Tensor};
#[cfg(feature = "cuda")]
use ddpm_kernels::cuda::{Gpu, switches::Family};
use ddpm_kernels::ops::conv2d::Algorithm;
use ddpm_kernels::ops::dropout::Dropout;
use ddpm_kernels::ops::elementwise;

use self::flow::{Flow, Node};
use crate::error::Result;
use crate::params::{Gradients, Params};

/// Which dropout masks a training pass draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutStream {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// Position of the micro-batch's first sample in the global batch.
    pub first_position: u64,
}

/// See the module.
pub struct Tape<'p> {
    params: &'p Params,
    recording: bool,
    dropout: Option<DropoutStream>,
    /// The optimizer step where the GPU keeps it, instead of the one in `dropout`.
    step: Option<Tensor>,
    dropout_layers: u32,
    algorithm: Algorithm,
    checkpointing: bool,
    nodes: Vec<Node<'p>>,
    values: usize,
    /// What would run, on a tape that computes nothing.
    sketch: Option<Sketch>,
    /// Which values an operation has taken, by their numbers.
    taken: Vec<bool>,
}

/// Whether operations on `device` are fused with their neighbours: those of a GPU, unless that is turned off.
pub fn fuses_on(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return device.is_cuda() && Gpu::of(device).is_ok_and(|gpu| gpu.uses(Family::Fuse));
    #[cfg(not(feature = "cuda"))]
    device.is_cuda()
}

impl<'p> Tape<'p> {
    fn new(params: &'p Params, recording: bool, dropout: Option<DropoutStream>) -> Self {
        Self {
            params,
            recording,
            dropout,
            step: None,
            dropout_layers: 0,
            algorithm: Algorithm::Fastest,
            checkpointing: false,
            nodes: Vec::new(),
            values: 0,
            sketch: None,
            taken: Vec::new(),
        }
    }

    /// A tape that only computes.
    pub fn inference(params: &'p Params) -> Self {
        Self::new(params, false, None)
    }

    /// A tape that records, with the dropout masks of `dropout`.
    pub fn training(params: &'p Params, dropout: DropoutStream) -> Self {
        Self::new(params, true, Some(dropout))
    }

    /// A tape that records, without dropout.
    pub fn gradients(params: &'p Params) -> Self {
        Self::new(params, true, None)
    }

    /// Uses exact convolutions throughout, for comparisons.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.algorithm = Algorithm::Exact;
        self
    }

    /// Reads the step of the dropout masks from `step` (u32 `[2]`: low half, high half) when the masks are drawn, so that a
    /// recorded pass draws others each time it is replayed.
    #[must_use]
    pub fn stepping_at(mut self, step: &Tensor) -> Self {
        self.step = Some(step.clone());
        self
    }

    /// Where the network computes.
    pub(crate) fn device(&self) -> Device {
        self.params.buffer().device().clone()
    }

    /// A value no gradient flows to.
    pub(crate) fn input(&self, value: &Tensor) -> Result<Var> {
        let value = value.contiguous()?.to_device(self.params.buffer().device())?;
        Ok(Var::new(elementwise::cast(&value, self.dtype())?, None))
    }

    pub(crate) fn dtype(&self) -> DType {
        self.params.dtype()
    }

    /// Whether operations are fused with their neighbours.
    fn fuses(&self) -> bool {
        self.sketch.as_ref().map_or_else(|| fuses_on(&self.device()), |sketch| sketch.fused)
    }

    /// Weight and bias, in the format that the network computes in.
    fn layer(&self, params: LayerParams) -> (&'p Tensor, &'p Tensor) {
        (self.params.tensor(params.weight), self.params.tensor(params.bias))
    }

    /// The dropout masks of the next dropout layer.
    fn next_dropout(&mut self, probability: f64) -> Option<Dropout> {
        let DropoutStream { seed, step, first_position } = self.dropout.filter(|_| probability > 0.0)?;
        let layer = self.dropout_layers;
        self.dropout_layers += 1;
        Some(Dropout { probability, seed, layer, step, first_position })
    }

    /// An operation's output, with its backward pass if the tape records.
    fn record(&mut self, value: Tensor, backward: impl FnOnce(&Tensor, &mut Flow<'_>) -> Result<()> + 'p) -> Var {
        if !self.recording {
            return Var::new(value, None);
        }
        let output = self.values;
        self.values += 1;
        self.nodes.push(Node { output, backward: Box::new(backward) });
        Var::new(value, Some(output))
    }

    #[cfg(test)]
    pub(crate) fn recorded(&self) -> usize {
        self.nodes.len()
    }

    /// Plays the tape back from `output`, whose gradient is `gradient`, and leaves the parameters' gradients in
    /// `params`. Activations are freed on the way.
    ///
    /// # Errors
    /// An operation that fails on its way back.
    pub fn backward(self, output: Var, gradient: Tensor, params: &mut Gradients) -> Result<()> {
        params.widen()?;
        let mut flow = Flow::new(self.values, self.fuses(), params);
        flow.accumulate(output.target(), gradient)?;
        drop(output);
        flow.play_back(self.nodes)?;
        params.settle()
    }
}
