//! An operation with operands of its own, ready to run as often as one likes.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::KernelError;
use ddpm_kernels::buffer::{FlatBuffer, ParamGrads};
#[cfg(feature = "cuda")]
use ddpm_kernels::cuda::Sums;
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::dropout::{self, Dropout};
#[cfg(feature = "cuda")]
use ddpm_kernels::ops::group_norm::fused::{self, Fused, Inputs, Mask, Wanted};
use ddpm_kernels::ops::{activation, attention, conv2d, elementwise, group_norm, linear, resample};
#[cfg(feature = "cuda")]
use ddpm_model::tape::fuses_on;
use ddpm_model::tape::{Kind, Operation};

/// Numbers that are made; operands repeat them.
const PATTERN: usize = 65_521;

type Result<T> = std::result::Result<T, KernelError>;
/// An operation that can be run again.
pub(super) type Run = Box<dyn Fn() -> Result<()>>;

/// Both passes of an operation; the way back may have nothing to do.
pub(super) struct Runs {
    pub(super) forward: Run,
    pub(super) backward: Option<Run>,
}

fn both(forward: impl Fn() -> Result<()> + 'static, backward: impl Fn() -> Result<()> + 'static) -> Runs {
    Runs { forward: Box::new(forward), backward: Some(Box::new(backward)) }
}

/// Makes operands for `operation` on `device`, its activations in `dtype`.
pub(super) fn prepare(operation: &Operation, dtype: DType, device: &Device) -> Result<Runs> {
    let make = Maker { dtype, device };
    match operation.kind {
        Kind::Conv2d { .. } | Kind::Linear { .. } | Kind::GroupNorm { .. } | Kind::Embedding { .. } => {
            layer(operation, &make)
        }
        _ => plain(operation, &make),
    }
}

struct Maker<'a> {
    dtype: DType,
    device: &'a Device,
}

impl Maker<'_> {
    /// Numbers between -1 and 1, in the format that the network computes in.
    fn numbers(&self, shape: &[usize]) -> Result<Tensor> {
        elementwise::cast(&self.f32(shape)?, self.dtype)
    }

    fn f32(&self, shape: &[usize]) -> Result<Tensor> {
        let number = |k: usize| ((k % PATTERN) as f32 * 0.618_034).fract() * 2.0 - 1.0;
        let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        Ok(Tensor::from_vec(numbers, shape, self.device)?)
    }

    fn gradients(&self, params: [usize; 2]) -> Result<OwnGrads> {
        Ok(OwnGrads {
            buffer: FlatBuffer::zeros(params[0] + params[1], self.device)?,
            params,
            #[cfg(feature = "cuda")]
            sums: Sums::default(),
        })
    }
}

/// Gradients of one layer.
struct OwnGrads {
    buffer: FlatBuffer,
    params: [usize; 2],
    #[cfg(feature = "cuda")]
    sums: Sums,
}

impl OwnGrads {
    fn places(&self) -> ParamGrads<'_> {
        let [weight, bias] = self.params;
        ParamGrads::new(&self.buffer, 0..weight, weight..weight + bias, Write::Assign)
    }
}

/// An operation with parameters.
fn layer(operation: &Operation, make: &Maker<'_>) -> Result<Runs> {
    let (x, dy) = (make.numbers(&operation.x)?, make.numbers(&operation.y())?);
    let channels = operation.x.last().copied().unwrap_or(0);
    let samples = operation.x.first().copied().unwrap_or(0);
    let grads = make.gradients(operation.params())?;
    let residual = |there: bool| there.then(|| make.numbers(&operation.y())).transpose();
    let x2 = x.clone();
    Ok(match operation.kind {
        Kind::Conv2d { conv, outputs, residual: added, need_dx } => {
            let weight = make.numbers(&[outputs, conv.kernel, conv.kernel, channels])?;
            let (bias, residual, weight2) = (make.numbers(&[outputs])?, residual(added)?, weight.clone());
            both(
                move || conv2d::forward(&conv, &x, &weight, &bias, residual.as_ref()).map(drop),
                move || conv2d::backward(&conv, &x2, &weight2, &dy, need_dx, &grads.places()).map(drop),
            )
        }
        Kind::Linear { outputs, residual: added, need_dx } => {
            let weight = make.numbers(&[outputs, channels])?;
            let (bias, residual, weight2) = (make.numbers(&[outputs])?, residual(added)?, weight.clone());
            both(
                move || linear::forward(&x, &weight, &bias, residual.as_ref()).map(drop),
                move || linear::backward(&x2, &weight2, &dy, need_dx, None, &grads.places()).map(drop),
            )
        }
        #[cfg(feature = "cuda")]
        Kind::GroupNorm { .. } if fuses_on(x.device()) => return fused_norm(operation, make),
        Kind::GroupNorm { norm, modulation, .. } => {
            let (weight, bias) = (make.f32(&[channels])?, make.f32(&[channels])?);
            let modulation = modulation.then(|| make.numbers(&[samples, 2 * channels])).transpose()?;
            let (_, statistics) = group_norm::forward(&norm, &x, &weight, &bias, modulation.as_ref())?;
            let (w, b, m) = (weight.clone(), bias.clone(), modulation.clone());
            both(
                move || group_norm::forward(&norm, &x, &weight, &bias, modulation.as_ref()).map(drop),
                move || {
                    let places = grads.places();
                    group_norm::backward(&norm, &x2, &w, &b, m.as_ref(), &statistics, &dy, None, &places).map(drop)
                },
            )
        }
        Kind::Embedding { rows } => {
            let (table, dtype) = (make.numbers(&[rows, channels])?, make.dtype);
            let labels: Vec<u32> = (0..samples).map(|k| (k % rows.max(1)) as u32).collect();
            let labels = Tensor::from_vec(labels, samples, make.device)?;
            let labels2 = labels.clone();
            both(
                move || elementwise::embedding_rows(&table, &labels, dtype).map(drop),
                move || elementwise::embedding_rows_backward(&dy, &labels2, rows, &grads.buffer, 0, Write::Assign),
            )
        }
        _ => return plain(operation, make),
    })
}

/// The operands of a group normalisation as a GPU does it, with all that is fused into it.
#[cfg(feature = "cuda")]
struct FusedNorm {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Option<Tensor>,
    offset: Option<Tensor>,
    dropout: Option<Dropout>,
}

#[cfg(feature = "cuda")]
impl FusedNorm {
    fn inputs(&self) -> Inputs<'_> {
        let dropout = self.dropout.map(|dropout| Mask { dropout, step: None });
        let (weight, bias, modulation) = (&self.weight, &self.bias, self.modulation.as_ref());
        Inputs { x: &self.x, weight, bias, modulation, fused: Fused { offset: self.offset.as_ref(), dropout } }
    }
}

#[cfg(feature = "cuda")]
fn fused_norm(operation: &Operation, make: &Maker<'_>) -> Result<Runs> {
    let Kind::GroupNorm { norm, modulation, offset, dropout } = operation.kind else {
        return plain(operation, make);
    };
    let (n, channels) = (operation.x.first().copied().unwrap_or(0), operation.x.last().copied().unwrap_or(0));
    let per_channel = |there: bool, numbers: usize| there.then(|| make.numbers(&[n, numbers * channels])).transpose();
    let mask = Dropout { probability: dropout, seed: 0, layer: 0, step: 0, first_position: 0 };
    let operands = std::rc::Rc::new(FusedNorm {
        x: make.numbers(&operation.x)?,
        weight: make.f32(&[channels])?,
        bias: make.f32(&[channels])?,
        modulation: per_channel(modulation, 2)?,
        offset: per_channel(offset, 1)?,
        dropout: (dropout > 0.0).then_some(mask),
    });
    let (dy, grads) = (make.numbers(&operation.y())?, make.gradients(operation.params())?);
    let (_, statistics) = fused::forward(&norm, &operands.inputs())?;
    let again = operands.clone();
    Ok(both(
        move || fused::forward(&norm, &again.inputs()).map(drop),
        move || {
            let (inputs, places) = (operands.inputs(), ParamGrads { sums: Some(&grads.sums), ..grads.places() });
            fused::backward(&norm, &inputs, &statistics, (&dy, [None; 2]), &Wanted::default(), &places)?;
            // A network does this for all its layers at once.
            grads.sums.settle(&grads.buffer)
        },
    ))
}

/// An operation without parameters.
fn plain(operation: &Operation, make: &Maker<'_>) -> Result<Runs> {
    let (x, dy) = (make.numbers(&operation.x)?, make.numbers(&operation.y())?);
    let (n, channels) = (operation.x.first().copied().unwrap_or(0), operation.x.last().copied().unwrap_or(0));
    let x2 = x.clone();
    Ok(match operation.kind {
        Kind::Attention { heads } => {
            let (_, kept) = attention::forward(&x, heads)?;
            both(
                move || attention::forward(&x, heads).map(drop),
                move || attention::backward(&x2, heads, &kept, &dy).map(drop),
            )
        }
        Kind::AddChannels => {
            let offset = make.numbers(&[n, channels])?;
            both(
                move || elementwise::add_channels(&x, &offset).map(drop),
                move || elementwise::add_channels_backward(&dy).map(drop),
            )
        }
        Kind::Concat { others } => {
            let shape: Vec<usize> = operation.x.iter().rev().skip(1).rev().copied().chain([others]).collect();
            let other = make.numbers(&shape)?;
            both(
                move || elementwise::concat(&x, &other).map(drop),
                move || elementwise::concat_backward(&dy, channels).map(drop),
            )
        }
        Kind::Upsample => {
            both(move || resample::upsample(&x).map(drop), move || resample::upsample_backward(&dy).map(drop))
        }
        Kind::Downsample => {
            both(move || resample::downsample(&x).map(drop), move || resample::downsample_backward(&dy).map(drop))
        }
        Kind::Scale { factor } => {
            both(move || elementwise::scale(&x, factor).map(drop), move || elementwise::scale(&dy, factor).map(drop))
        }
        Kind::Activation(f) => {
            both(move || activation::forward(f, &x).map(drop), move || activation::backward(f, &x2, &dy).map(drop))
        }
        Kind::Silu => {
            both(move || elementwise::silu(&x).map(drop), move || elementwise::silu_backward(&x2, &dy).map(drop))
        }
        Kind::Dropout { probability } => {
            let mask = Dropout { probability, seed: 0, layer: 0, step: 0, first_position: 0 };
            both(move || dropout::apply(&mask, &x).map(drop), move || dropout::apply(&mask, &dy).map(drop))
        }
        // What is left adds; a sum passes its gradient on as it is.
        _ => Runs { forward: Box::new(move || elementwise::add(&x, &dy).map(drop)), backward: None },
    })
}
