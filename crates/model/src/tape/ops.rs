//! The operations as the network calls them: forward now, backward when the tape is played back.
//!
//! Each is the same few lines: in reference mode the plain twin; otherwise the kernel, and a closure that holds what
//! its backward pass needs.

use candle_core::Tensor;
use ddpm_kernels::ops::activation::{self, Activation};
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::ops::{attention, dropout, elementwise, linear, resample};

use super::var::{Joined, Made};
use super::{Kind, Tape, Var, Weights};
use crate::error::Result;
use crate::params::ParamId;

/// Weight and bias of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerParams {
    /// The weight.
    pub weight: ParamId,
    /// The bias.
    pub bias: ParamId,
}

/// What is added to a convolution's result.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'v> {
    /// Of the result's shape.
    pub value: &'v Var,
    /// Whether nobody else takes it, before or after: its gradient then is the result's, and so is that of its bias.
    pub own: bool,
}

impl<'p> Tape<'p> {
    fn layer(&self, params: LayerParams) -> (&'p Tensor, &'p Tensor) {
        (self.param(params.weight), self.param(params.bias))
    }

    /// Convolves `x` `[N, H, W, I]`, and adds `residual` `[N, H', W', O]`.
    pub fn conv2d(
        &mut self,
        x: &Var,
        conv: &Conv2d,
        params: LayerParams,
        residual: Option<Residual<'_>>,
    ) -> Result<Var> {
        let (weight, bias) = self.layer(params);
        let own = residual.filter(|residual| residual.own).and_then(|residual| residual.value.made.biases[0]);
        let residual = residual.map(|residual| residual.value);
        let residual_value = residual.map(Var::value);
        if self.is_reference() {
            let y = conv2d::reference::forward(conv, &x.value, weight, bias, residual_value)?;
            return Ok(Var::new(y, None));
        }
        let (outputs, need_dx) = (bias.elem_count(), x.is_tracked());
        let kind = Kind::Conv2d { conv: *conv, outputs, residual: residual.is_some(), need_dx };
        if let Some(y) = self.sketch(x, residual, kind)? {
            return Ok(y);
        }
        let conv = Conv2d { algorithm: self.algorithm, ..*conv };
        let y = conv2d::forward(&conv, &x.value, weight, bias, residual_value)?;
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

    /// A linear layer over the last axis of `x` `[..., I]`, plus `residual` `[..., O]`.
    pub fn linear(&mut self, x: &Var, params: LayerParams, residual: Option<&Var>) -> Result<Var> {
        let (weight, bias) = self.layer(params);
        let residual_value = residual.map(Var::value);
        if self.is_reference() {
            let y = linear::reference::forward(&x.value, weight, bias, residual_value)?;
            return Ok(Var::new(y, None));
        }
        let (outputs, need_dx) = (bias.elem_count(), x.is_tracked());
        if let Some(y) = self.sketch(x, residual, Kind::Linear { outputs, residual: residual.is_some(), need_dx })? {
            return Ok(y);
        }
        let y = linear::forward(&x.value, weight, bias, residual_value)?;
        let (id, residual) = (self.take(x).id, residual.and_then(|r| self.take(r).id));
        let x = x.value.clone();
        let y = self.record(y, move |dy, flow| {
            let summed = flow.is_summed();
            flow.accumulate(residual, dy.clone())?;
            let earlier = flow.take(id)?;
            let grads = flow.params.pair(params.weight, params.bias).with_bias_summed(summed);
            match linear::backward(&x, weight, dy, id.is_some(), earlier.as_ref(), &grads)? {
                Some(dx) => flow.accumulate(id, dx),
                None => Ok(()),
            }
        });
        Ok(y.made(Made { biases: [Some(params.bias), None], joined: None }))
    }

    /// The linear layers of the layout's stack over `x` `[N, I]`, their outputs side by side, where they are applied as one.
    /// Whoever takes some of the [columns](super::Columns) writes the gradient of those; all must be taken, and once.
    pub(crate) fn linear_stack(&mut self, x: &Var) -> Result<Option<Var>> {
        let (true, Weights::Fast(params)) = (self.fuses(), self.weights) else { return Ok(None) };
        let (weight, bias) = params.stacked()?;
        let outputs = bias.elem_count();
        if let Some(y) = self.sketch(x, None, Kind::Linear { outputs, residual: false, need_dx: x.is_tracked() })? {
            return Ok(Some(y));
        }
        let y = linear::forward(&x.value, &weight, &bias, None)?;
        let (id, x) = (self.take(x).id, x.value.clone());
        Ok(Some(self.record(y, move |dy, flow| {
            debug_assert_eq!(flow.columns_written(), outputs, "columns that nobody gave a gradient");
            let earlier = flow.take(id)?;
            match linear::backward(&x, &weight, dy, id.is_some(), earlier.as_ref(), &flow.params.stacked())? {
                Some(dx) => flow.accumulate(id, dx),
                None => Ok(()),
            }
        })))
    }

    /// Self-attention over `qkv` `[N, L, 3C]`; the result is `[N, L, C]`.
    pub fn attention(&mut self, qkv: &Var, heads: usize) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new(attention::reference::forward(&qkv.value, heads)?, None));
        }
        if let Some(y) = self.sketch(qkv, None, Kind::Attention { heads })? {
            return Ok(y);
        }
        let (y, probabilities) = attention::forward(&qkv.value, heads)?;
        let (id, qkv) = (self.take(qkv).id, qkv.value.clone());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, attention::backward(&qkv, heads, &probabilities, dy)?)))
    }

    /// `x` under another shape of as many elements.
    pub fn reshape(&mut self, x: &Var, shape: &[usize]) -> Result<Var> {
        if let Some(y) = self.sketch_reshaped(x, shape)? {
            return Ok(y);
        }
        let y = x.value.reshape(shape)?;
        if self.is_reference() {
            return Ok(Var::new(y, None));
        }
        let (id, dims) = (self.take(x).id, x.value.dims().to_vec());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, dy.reshape(dims)?)))
    }

    /// `x` `[N, H, W, C]` plus `offset` `[N, C]` at every pixel.
    pub fn add_channels(&mut self, x: &Var, offset: &Var) -> Result<Var> {
        if self.is_reference() {
            let y = elementwise::reference::add_channels(&x.value, &offset.value)?;
            return Ok(Var::new(y, None));
        }
        if let Some(y) = self.sketch(x, Some(offset), Kind::AddChannels)? {
            return Ok(y);
        }
        let y = elementwise::add_channels(&x.value, &offset.value)?;
        let (x, offset) = (self.take(x).id, self.take(offset).id);
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(offset, elementwise::add_channels_backward(dy)?)?;
            flow.accumulate(x, dy.clone())
        }))
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Var, b: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new((&a.value + &b.value)?, None));
        }
        if let Some(y) = self.sketch(a, Some(b), Kind::Add)? {
            return Ok(y);
        }
        let y = elementwise::add(&a.value, &b.value)?;
        let (a, b) = (self.take(a).id, self.take(b).id);
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(a, dy.clone())?;
            flow.accumulate(b, dy.clone())
        }))
    }

    /// `a` `[N, H, W, A]` and `b` `[N, H, W, B]` side by side.
    pub fn concat(&mut self, a: &Var, b: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new(Tensor::cat(&[&a.value, &b.value], 3)?, None));
        }
        if let Some(y) = self.sketch(a, Some(b), Kind::Concat { others: b.value.dim(3)? })? {
            return Ok(y);
        }
        let y = elementwise::concat(&a.value, &b.value)?;
        self.joined(y, a, b)
    }

    /// `y`, which is `a` and `b` side by side.
    pub(super) fn joined(&mut self, y: Tensor, a: &Var, b: &Var) -> Result<Var> {
        let (channels, biases) = (a.value.dim(3)?, a.made.biases);
        let of = [self.take(a), self.take(b)];
        let y = self.record(y, move |dy, flow| {
            let (da, db) = elementwise::concat_backward(dy, channels)?;
            flow.accumulate(of[0].id, da)?;
            flow.accumulate(of[1].id, db)
        });
        let biases = if of[0].first { biases } else { [None; 2] };
        Ok(y.made(Made { biases, joined: Some(Joined { channels, of }) }))
    }

    /// `x` `[N, H, W, C]` at twice the size, every pixel repeated.
    pub fn upsample(&mut self, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new(resample::reference::upsample(&x.value)?, None));
        }
        if let Some(y) = self.sketch(x, None, Kind::Upsample)? {
            return Ok(y);
        }
        let y = resample::upsample(&x.value)?;
        let id = self.take(x).id;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, resample::upsample_backward(dy)?)))
    }

    /// `x` `[N, H, W, C]` at half the size, the mean of each 2x2 square.
    pub fn downsample(&mut self, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new(resample::reference::downsample(&x.value)?, None));
        }
        if let Some(y) = self.sketch(x, None, Kind::Downsample)? {
            return Ok(y);
        }
        let y = resample::downsample(&x.value)?;
        let id = self.take(x).id;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, resample::downsample_backward(dy)?)))
    }

    /// `factor x`.
    pub fn scale(&mut self, x: &Var, factor: f64) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new((&x.value * factor)?, None));
        }
        if let Some(y) = self.sketch(x, None, Kind::Scale { factor: factor as f32 })? {
            return Ok(y);
        }
        let factor = factor as f32;
        let (y, id) = (elementwise::scale(&x.value, factor)?, self.take(x).id);
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, elementwise::scale(dy, factor)?)))
    }

    /// An activation other than SiLU.
    pub fn activation(&mut self, f: Activation, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new(activation::reference::forward(f, &x.value)?, None));
        }
        if let Some(y) = self.sketch(x, None, Kind::Activation(f))? {
            return Ok(y);
        }
        let y = activation::forward(f, &x.value)?;
        let (id, x) = (self.take(x).id, x.value.clone());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, activation::backward(f, &x, dy)?)))
    }

    /// SiLU on its own (the time embedding's).
    pub fn silu(&mut self, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var::new(elementwise::reference::silu(&x.value)?, None));
        }
        if let Some(y) = self.sketch(x, None, Kind::Silu)? {
            return Ok(y);
        }
        let y = elementwise::silu(&x.value)?;
        let (id, x) = (self.take(x).id, x.value.clone());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, elementwise::silu_backward(&x, dy)?)))
    }

    /// Rows `labels` (u32, N) of an embedding table, `[N, C]`.
    pub fn embedding(&mut self, table: ParamId, labels: &Tensor) -> Result<Var> {
        let weight = self.param(table);
        if self.is_reference() {
            return Ok(Var::new(weight.index_select(labels, 0)?, None));
        }
        let y = elementwise::embedding_rows(weight, labels, self.dtype())?;
        let rows = weight.dim(0)?;
        if let Some(y) = self.sketch(&Var::new(y.clone(), None), None, Kind::Embedding { rows })? {
            return Ok(y);
        }
        let labels = labels.clone();
        Ok(self.record(y, move |dy, flow| {
            let (buffer, offset, write) = flow.params.single(table);
            Ok(elementwise::embedding_rows_backward(dy, &labels, rows, buffer, offset, write)?)
        }))
    }

    /// Dropout while training, nothing otherwise.
    pub fn dropout(&mut self, x: &Var, probability: f64) -> Result<Var> {
        let Some(mask) = self.next_dropout(probability) else { return Ok(x.clone()) };
        if let Some(y) = self.sketch(x, None, Kind::Dropout { probability })? {
            return Ok(y);
        }
        let step = self.step.clone();
        let apply = move |x: &Tensor| match &step {
            Some(step) => dropout::apply_at(&mask, step, x),
            None => dropout::apply(&mask, x),
        };
        let (y, id) = (apply(&x.value)?, self.take(x).id);
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, apply(dy)?)))
    }
}
