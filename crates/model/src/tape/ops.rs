//! The operations as the network calls them: forward now, backward when the tape is played back.
//!
//! Each is the same few lines: in reference mode the plain twin; otherwise the kernel, and a closure that holds what
//! its backward pass needs.

use candle_core::Tensor;
use ddpm_kernels::ops::activation::{self, Activation};
use ddpm_kernels::ops::conv2d::{self, Conv2d};
use ddpm_kernels::ops::group_norm::{self, GroupNorm};
use ddpm_kernels::ops::{attention, dropout, elementwise, linear, resample};

use super::{Kind, Tape, Var};
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

impl<'p> Tape<'p> {
    fn layer(&self, params: LayerParams) -> (&'p Tensor, &'p Tensor) {
        (self.param(params.weight), self.param(params.bias))
    }

    /// Convolves `x` `[N, H, W, I]`, and adds `residual` `[N, H', W', O]`.
    pub fn conv2d(&mut self, x: &Var, conv: &Conv2d, params: LayerParams, residual: Option<&Var>) -> Result<Var> {
        let (weight, bias) = self.layer(params);
        let residual_value = residual.map(Var::value);
        if self.is_reference() {
            let y = conv2d::reference::forward(conv, &x.value, weight, bias, residual_value)?;
            return Ok(Var { value: y, id: None });
        }
        let (outputs, need_dx) = (bias.elem_count(), x.id.is_some());
        let kind = Kind::Conv2d { conv: *conv, outputs, residual: residual.is_some(), need_dx };
        if let Some(y) = self.sketch(x, residual, kind)? {
            return Ok(y);
        }
        let conv = Conv2d { algorithm: self.algorithm, ..*conv };
        let y = conv2d::forward(&conv, &x.value, weight, bias, residual_value)?;
        let (x, residual) = (x.clone(), residual.and_then(|r| r.id));
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(residual, dy.clone())?;
            let grads = flow.params.pair(params.weight, params.bias);
            match conv2d::backward(&conv, &x.value, weight, dy, x.id.is_some(), &grads)? {
                Some(dx) => flow.accumulate(x.id, dx),
                None => Ok(()),
            }
        }))
    }

    /// Group normalisation of `x` `[N, ..., C]`, with scale and shift from `modulation` `[N, 2C]`, and SiLU.
    pub fn group_norm(
        &mut self,
        x: &Var,
        norm: GroupNorm,
        params: LayerParams,
        modulation: Option<&Var>,
    ) -> Result<Var> {
        let (weight, bias) = (self.master(params.weight), self.master(params.bias));
        if self.is_reference() {
            let y = group_norm::reference::forward(&norm, &x.value, weight, bias, modulation.map(Var::value))?;
            return Ok(Var { value: y, id: None });
        }
        if let Some(y) = self.sketch(x, modulation, Kind::GroupNorm { norm, modulation: modulation.is_some() })? {
            return Ok(y);
        }
        let (y, statistics) = group_norm::forward(&norm, &x.value, weight, bias, modulation.map(Var::value))?;
        let (x, modulation) = (x.clone(), modulation.cloned());
        Ok(self.record(y, move |dy, flow| {
            let extra = flow.take(x.id);
            let grads = flow.params.pair(params.weight, params.bias);
            let modulation_value = modulation.as_ref().map(Var::value);
            let gradient = group_norm::backward(
                &norm,
                &x.value,
                weight,
                bias,
                modulation_value,
                &statistics,
                dy,
                extra.as_ref(),
                &grads,
            )?;
            if let (Some(var), Some(dm)) = (&modulation, gradient.modulation) {
                flow.accumulate(var.id, dm)?;
            }
            flow.accumulate(x.id, gradient.dx)
        }))
    }

    /// A linear layer over the last axis of `x` `[..., I]`, plus `residual` `[..., O]`.
    pub fn linear(&mut self, x: &Var, params: LayerParams, residual: Option<&Var>) -> Result<Var> {
        let (weight, bias) = self.layer(params);
        let residual_value = residual.map(Var::value);
        if self.is_reference() {
            let y = linear::reference::forward(&x.value, weight, bias, residual_value)?;
            return Ok(Var { value: y, id: None });
        }
        let (outputs, need_dx) = (bias.elem_count(), x.id.is_some());
        if let Some(y) = self.sketch(x, residual, Kind::Linear { outputs, residual: residual.is_some(), need_dx })? {
            return Ok(y);
        }
        let y = linear::forward(&x.value, weight, bias, residual_value)?;
        let (x, residual) = (x.clone(), residual.and_then(|r| r.id));
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(residual, dy.clone())?;
            let grads = flow.params.pair(params.weight, params.bias);
            match linear::backward(&x.value, weight, dy, x.id.is_some(), &grads)? {
                Some(dx) => flow.accumulate(x.id, dx),
                None => Ok(()),
            }
        }))
    }

    /// Self-attention over `qkv` `[N, L, 3C]`; the result is `[N, L, C]`.
    pub fn attention(&mut self, qkv: &Var, heads: usize) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: attention::reference::forward(&qkv.value, heads)?, id: None });
        }
        if let Some(y) = self.sketch(qkv, None, Kind::Attention { heads })? {
            return Ok(y);
        }
        let (y, probabilities) = attention::forward(&qkv.value, heads)?;
        let qkv = qkv.clone();
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(qkv.id, attention::backward(&qkv.value, heads, &probabilities, dy)?)
        }))
    }

    /// `x` under another shape of as many elements.
    pub fn reshape(&mut self, x: &Var, shape: &[usize]) -> Result<Var> {
        if let Some(y) = self.sketch_reshaped(x, shape)? {
            return Ok(y);
        }
        let y = x.value.reshape(shape)?;
        if self.is_reference() {
            return Ok(Var { value: y, id: None });
        }
        let (id, dims) = (x.id, x.value.dims().to_vec());
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, dy.reshape(dims)?)))
    }

    /// `x` `[N, H, W, C]` plus `offset` `[N, C]` at every pixel.
    pub fn add_channels(&mut self, x: &Var, offset: &Var) -> Result<Var> {
        if self.is_reference() {
            let y = elementwise::reference::add_channels(&x.value, &offset.value)?;
            return Ok(Var { value: y, id: None });
        }
        if let Some(y) = self.sketch(x, Some(offset), Kind::AddChannels)? {
            return Ok(y);
        }
        let y = elementwise::add_channels(&x.value, &offset.value)?;
        let (x, offset) = (x.id, offset.id);
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(offset, elementwise::add_channels_backward(dy)?)?;
            flow.accumulate(x, dy.clone())
        }))
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Var, b: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: (&a.value + &b.value)?, id: None });
        }
        if let Some(y) = self.sketch(a, Some(b), Kind::Add)? {
            return Ok(y);
        }
        let y = elementwise::add(&a.value, &b.value)?;
        let (a, b) = (a.id, b.id);
        Ok(self.record(y, move |dy, flow| {
            flow.accumulate(a, dy.clone())?;
            flow.accumulate(b, dy.clone())
        }))
    }

    /// `a` `[N, H, W, A]` and `b` `[N, H, W, B]` side by side.
    pub fn concat(&mut self, a: &Var, b: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: Tensor::cat(&[&a.value, &b.value], 3)?, id: None });
        }
        if let Some(y) = self.sketch(a, Some(b), Kind::Concat { others: b.value.dim(3)? })? {
            return Ok(y);
        }
        let y = elementwise::concat(&a.value, &b.value)?;
        let (channels, a, b) = (a.value.dim(3)?, a.id, b.id);
        Ok(self.record(y, move |dy, flow| {
            let (da, db) = elementwise::concat_backward(dy, channels)?;
            flow.accumulate(a, da)?;
            flow.accumulate(b, db)
        }))
    }

    /// `x` `[N, H, W, C]` at twice the size, every pixel repeated.
    pub fn upsample(&mut self, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: resample::reference::upsample(&x.value)?, id: None });
        }
        if let Some(y) = self.sketch(x, None, Kind::Upsample)? {
            return Ok(y);
        }
        let y = resample::upsample(&x.value)?;
        let id = x.id;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, resample::upsample_backward(dy)?)))
    }

    /// `x` `[N, H, W, C]` at half the size, the mean of each 2x2 square.
    pub fn downsample(&mut self, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: resample::reference::downsample(&x.value)?, id: None });
        }
        if let Some(y) = self.sketch(x, None, Kind::Downsample)? {
            return Ok(y);
        }
        let y = resample::downsample(&x.value)?;
        let id = x.id;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, resample::downsample_backward(dy)?)))
    }

    /// `factor x`.
    pub fn scale(&mut self, x: &Var, factor: f64) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: (&x.value * factor)?, id: None });
        }
        if let Some(y) = self.sketch(x, None, Kind::Scale { factor: factor as f32 })? {
            return Ok(y);
        }
        let (factor, id) = (factor as f32, x.id);
        let y = elementwise::scale(&x.value, factor)?;
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, elementwise::scale(dy, factor)?)))
    }

    /// An activation other than SiLU.
    pub fn activation(&mut self, f: Activation, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: activation::reference::forward(f, &x.value)?, id: None });
        }
        if let Some(y) = self.sketch(x, None, Kind::Activation(f))? {
            return Ok(y);
        }
        let y = activation::forward(f, &x.value)?;
        let x = x.clone();
        Ok(self.record(y, move |dy, flow| flow.accumulate(x.id, activation::backward(f, &x.value, dy)?)))
    }

    /// SiLU on its own (the time embedding's).
    pub fn silu(&mut self, x: &Var) -> Result<Var> {
        if self.is_reference() {
            return Ok(Var { value: elementwise::reference::silu(&x.value)?, id: None });
        }
        if let Some(y) = self.sketch(x, None, Kind::Silu)? {
            return Ok(y);
        }
        let y = elementwise::silu(&x.value)?;
        let x = x.clone();
        Ok(self.record(y, move |dy, flow| flow.accumulate(x.id, elementwise::silu_backward(&x.value, dy)?)))
    }

    /// Rows `labels` (u32, N) of an embedding table, `[N, C]`.
    pub fn embedding(&mut self, table: ParamId, labels: &Tensor) -> Result<Var> {
        let weight = self.param(table);
        if self.is_reference() {
            return Ok(Var { value: weight.index_select(labels, 0)?, id: None });
        }
        let y = elementwise::embedding_rows(weight, labels, self.dtype())?;
        let rows = weight.dim(0)?;
        if let Some(y) = self.sketch(&Var { value: y.clone(), id: None }, None, Kind::Embedding { rows })? {
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
        let (y, id) = (apply(&x.value)?, x.id);
        Ok(self.record(y, move |dy, flow| flow.accumulate(id, apply(dy)?)))
    }
}
