//! A convolution.

use ddpm_kernels::KernelError;
use ddpm_kernels::ops::conv2d::{self, Conv2d};

use super::super::operands::{Maker, Runs};
use super::super::operation::{
    BackwardPass, Facts, Kept, Work, channels, layer_backward_work, layer_work, with_channels, with_sides,
};
use super::super::var::Made;
use super::super::{Tape, Var};
use super::{LayerParams, added};
use crate::error::Result;

/// What is added to a convolution's result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Residual<'v> {
    /// Of the result's shape.
    pub(crate) value: &'v Var,
    /// Whether no other operation takes it, before or after: then its gradient is the result's, and so is that of its bias.
    pub(crate) own: bool,
}

impl Tape<'_> {
    /// Convolves `x` `[N, H, W, I]`, and adds `residual` `[N, H', W', O]`.
    pub(crate) fn conv2d(
        &mut self,
        x: &Var,
        conv: &Conv2d,
        params: LayerParams,
        residual: Option<Residual<'_>>,
    ) -> Result<Var> {
        let (weight, bias) = self.layer(params);
        let own = residual.filter(|residual| residual.own).and_then(|residual| residual.value.made.biases[0]);
        let residual = residual.map(|residual| residual.value);
        let (outputs, need_dx) = (bias.elem_count(), x.is_tracked());
        let facts = Convolution { conv: *conv, outputs, residual: residual.is_some(), need_dx };
        if let Some(y) = self.sketch(x, residual, facts)? {
            return Ok(y);
        }
        let conv = Conv2d { algorithm: self.algorithm, ..*conv };
        let y = conv2d::forward(&conv, &x.value, weight, bias, residual.map(Var::value))?;
        let (id, residual) = (self.take(x).id, residual.and_then(|r| self.take(r).id));
        let x = x.value.clone();
        let y = self.record(y, move |dy, flow| {
            let summed = flow.is_summed();
            flow.accumulate(residual, dy.clone())?;
            if summed && own.is_some() {
                flow.mark_summed(residual);
            }
            let grads = flow.params.pair(params.weight, params.bias).with_bias_summed(summed);
            match conv2d::backward(&conv, &x, weight, dy, id.is_some(), &grads)? {
                Some(dx) => flow.accumulate(id, dx),
                None => Ok(()),
            }
        });
        Ok(y.made(Made { biases: [Some(params.bias), own], joined: None }))
    }
}

#[derive(Clone, Copy, Debug)]
struct Convolution {
    conv: Conv2d,
    outputs: usize,
    residual: bool,
    need_dx: bool,
}

impl Facts for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn details(&self) -> String {
        format!(", kernel {}, stride {}{}", self.conv.kernel, self.conv.stride, added(self.residual))
    }

    fn y(&self, x: &[usize]) -> Vec<usize> {
        let Conv2d { kernel, stride, pad_before, pad_after, .. } = self.conv;
        let side = |side: usize| (side + pad_before + pad_after).saturating_sub(kernel) / stride.max(1) + 1;
        with_channels(&with_sides(x, side), self.outputs)
    }

    fn params(&self, x: &[usize]) -> [usize; 2] {
        [self.outputs * self.conv.kernel * self.conv.kernel * channels(x), self.outputs]
    }

    fn forward_work(&self, x: &[usize], size: usize) -> Work {
        layer_work(self, x, size, self.residual)
    }

    fn backward_work(&self, x: &[usize], size: usize) -> Work {
        layer_backward_work(self, x, size, self.need_dx)
    }

    fn kept(&self) -> Kept {
        Kept { x: true, ..Kept::default() }
    }

    fn backward_pass(&self, x: &[usize]) -> BackwardPass {
        BackwardPass::of_layer(x, self.need_dx)
    }

    fn prepare(&self, x: &[usize], make: &Maker<'_>) -> Result<Runs, KernelError> {
        let Self { conv, outputs, need_dx, .. } = *self;
        let y = self.y(x);
        let weight = make.numbers(&[outputs, conv.kernel, conv.kernel, channels(x)])?;
        let (bias, residual) = (make.numbers(&[outputs])?, make.numbers_if(self.residual, &y)?);
        let (grads, x, dy) = (make.gradients(self.params(x))?, make.numbers(x)?, make.numbers(&y)?);
        let (x2, weight2) = (x.clone(), weight.clone());
        Runs::both(
            move || conv2d::forward(&conv, &x, &weight, &bias, residual.as_ref()).map(drop),
            move || conv2d::backward(&conv, &x2, &weight2, &dy, need_dx, &grads.places()).map(drop),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::operation::Operation;
    use super::*;

    #[test]
    fn a_convolution_of_stride_2_is_counted() {
        let facts = Convolution { conv: Conv2d::downsample(1), outputs: 5, residual: false, need_dx: false };
        let conv = Operation::new(&[1, 8, 8, 3], facts).of_samples(2);
        assert_eq!(conv.y(), [2, 4, 4, 5]);
        let (x, y, weight) = (2 * 8 * 8 * 3, 2 * 4 * 4 * 5, 5 * 9 * 3);
        assert_eq!(conv.forward_work(2), Work { bytes: 2 * (x + y + weight + 5), flop: 2 * 2 * 4 * 4 * weight });
        let flop = 2 * 2 * 4 * 4 * weight;
        assert_eq!(conv.backward_work(2), Work { bytes: 2 * (x + y) + 4 * (weight + 5), flop });
        assert_eq!(conv.to_string(), "2x8x8x3 to 2x4x4x5, kernel 3, stride 2");
    }
}
