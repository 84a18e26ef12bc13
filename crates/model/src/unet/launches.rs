//! How many launches a residual block takes on a GPU, counted by the emulator; without it the tests do nothing.

#![allow(clippy::unwrap_used)]

#[path = "../../../train/tests/gpu/emulator.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod emulator;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::philox::{Philox, Purpose};

use self::emulator::Emulator;
use super::config::{TimeScaleShift, UNetConfig};
use super::layers::StackInput;
use super::resnet::{Resize, ResnetBlock};
use crate::params::{Gradients, ParamLayout, Params};
use crate::tape::{DropoutStream, Tape};

/// Of one block, forward and backward. What all blocks share is not among them: the projections of the time, and the launch
/// that settles their gradients.
const MOST: i64 = 13;

const N: usize = 2;
const SIDE: usize = 8;
const OUTPUTS: usize = 32;

fn normals(shape: &[usize], device: &Device) -> Tensor {
    let mut data = vec![0f32; shape.iter().product()];
    Philox::new(1, Purpose::Evaluation).fill_normal(0, 0, &mut data);
    Tensor::from_vec(data, shape, device).unwrap()
}

fn config(time: TimeScaleShift) -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![16, OUTPUTS],
        norm_num_groups: 8,
        resnet_time_scale_shift: time,
        dropout: 0.1,
        ..UNetConfig::default()
    }
}

/// Blocks one after another, with their parameters in bf16, as often as needed until every algorithm is chosen.
struct Chain {
    blocks: Vec<ResnetBlock>,
    params: Params,
    x: Tensor,
    temb: Tensor,
}

impl Chain {
    /// Blocks that take so many channels each.
    fn new(config: &UNetConfig, inputs: &[usize], device: &Device) -> Self {
        let mut layout = ParamLayout::default();
        let block = |(i, &inputs): (usize, &usize)| {
            ResnetBlock::new(&mut layout, &format!("block.{i}"), config, Resize::Keep, inputs, OUTPUTS)
        };
        let blocks = inputs.iter().enumerate().map(block).collect();
        let params = Params::initialise(&Arc::new(layout.finish()), 1, device).unwrap();
        Self {
            blocks,
            params: params.computing_in(DType::BF16).unwrap(),
            x: normals(&[N, SIDE, SIDE, inputs[0]], device),
            temb: normals(&[N, config.time_embed_dim()], device),
        }
    }

    /// Forward and backward.
    fn run(&self, gradients: &mut Gradients) {
        let stream = DropoutStream { seed: 1, step: 1, first_position: 0 };
        let mut tape = Tape::training(&self.params, stream);
        // What a gradient flows to, as in a network.
        let tracked = |tape: &mut Tape<'_>, value: &Tensor| {
            let input = tape.input(value).unwrap();
            tape.reshape(&input, value.dims()).unwrap()
        };
        let (mut h, temb) = (tracked(&mut tape, &self.x), tracked(&mut tape, &self.temb));
        let temb = StackInput::new(&mut tape, temb).unwrap();
        for block in &self.blocks {
            h = block.forward(&mut tape, h, None, &temb).unwrap();
        }
        let dy = h.value().clone();
        gradients.reset();
        tape.backward(h, dy, gradients).unwrap();
    }

    /// The launches of a run, after one that tried the libraries' algorithms.
    fn launches(&self, emulator: &Emulator) -> i64 {
        let mut gradients = Gradients::new(self.params.layout(), self.x.device()).unwrap();
        self.run(&mut gradients);
        emulator.reset();
        self.run(&mut gradients);
        emulator.get("kernel")
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_residual_block_takes_at_most_thirteen_launches() {
    let device = ddpm_kernels::cuda::open(0).unwrap();
    let Some(emulator) = Emulator::find() else { return };
    for time in [TimeScaleShift::Default, TimeScaleShift::ScaleShift] {
        let config = config(time);
        for inputs in [OUTPUTS, 16] {
            // Before another block, as in a network: what that block does for this one counts as that block's.
            let both = Chain::new(&config, &[inputs, OUTPUTS], &device).launches(&emulator);
            let launches = both - Chain::new(&config, &[OUTPUTS], &device).launches(&emulator);
            println!("{launches} launches of a block of {inputs} to {OUTPUTS} channels, {time:?}");
            assert!((8..=MOST).contains(&launches), "{launches} launches, {inputs} channels, {time:?}");
        }
    }
}
