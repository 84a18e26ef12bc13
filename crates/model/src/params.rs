//! Parameters: where each lies in the flat buffer, how it starts, and what it is called in files.
//!
//! All parameters are one contiguous f32 vector and each named tensor a view of it, so that clipping is one
//! reduction, AdamW and the moving averages one pass, and an all-reduce one call. Gradients, moments and averages are
//! vectors of the same [`ParamLayout`].

mod layout;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
#[cfg(feature = "cuda")]
use ddpm_kernels::buffer::{DeferredSums, NarrowGradients};
use ddpm_kernels::buffer::{FlatBuffer, NarrowPart, ParamGrads};
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::elementwise;
use ddpm_kernels::philox::{Philox, Purpose};

pub use self::layout::{FileLayout, Init, ParamId, ParamLayout, ParamSpec};
use crate::error::Result;

/// The values of all parameters: f32, and where the network computes in another format, a copy in that.
#[derive(Clone, Debug)]
pub struct Params {
    layout: Arc<ParamLayout>,
    buffer: FlatBuffer,
    views: Vec<Tensor>,
    copy: Option<ComputeCopy>,
}

/// All parameters once more, in the format the network computes in.
#[derive(Clone, Debug)]
struct ComputeCopy {
    flat: Tensor,
    views: Vec<Tensor>,
}

impl Params {
    /// Fresh parameters: a pure function of the layout and `seed`.
    pub fn initialise(layout: &Arc<ParamLayout>, seed: u64, device: &Device) -> Result<Self> {
        let philox = Philox::new(seed, Purpose::Init);
        let mut data = vec![0.0; layout.len];
        for (index, spec) in layout.specs.iter().enumerate() {
            let values = &mut data[spec.offset..][..spec.len()];
            match spec.init {
                Init::Zeros => {}
                Init::Ones => values.fill(1.0),
                Init::Normal => philox.fill_normal(0, index as u64, values),
                Init::Uniform(bound) => {
                    philox.fill_uniform(0, index as u64, values);
                    for v in values {
                        *v *= bound as f32;
                    }
                }
            }
        }
        Self::from_vec(layout, data, device)
    }

    /// Parameters with these values, in layout order.
    pub fn from_vec(layout: &Arc<ParamLayout>, data: Vec<f32>, device: &Device) -> Result<Self> {
        let buffer = FlatBuffer::from_vec(data, device)?;
        let views = layout.specs.iter().map(|s| buffer.view(s.offset, &s.shape)).collect::<Result<_, _>>()?;
        Ok(Self { layout: layout.clone(), buffer, views, copy: None })
    }

    /// The same parameters for a network that computes in `dtype`: it reads a copy in that format, which must be written
    /// again whenever the parameters change (the optimizer's pass does that). Normalisations still read f32.
    ///
    /// # Errors
    /// A device that cannot compute in `dtype`.
    pub fn computing_in(&self, dtype: DType) -> Result<Self> {
        let mut params = self.clone();
        params.copy = None;
        if dtype != DType::F32 {
            let flat = elementwise::cast(&self.buffer.view(0, &[self.layout.len])?, dtype)?;
            let view = |spec: &ParamSpec| flat.narrow(0, spec.offset, spec.len())?.reshape(spec.shape.as_slice());
            let views = self.layout.specs.iter().map(view).collect::<candle_core::Result<_>>()?;
            params.copy = Some(ComputeCopy { flat, views });
        }
        Ok(params)
    }

    /// The format the network computes in.
    pub fn dtype(&self) -> DType {
        self.copy.as_ref().map_or(DType::F32, |copy| copy.flat.dtype())
    }

    /// The copy in that format, as one vector, where it is not f32.
    pub(crate) fn compute_copy(&self) -> Option<&Tensor> {
        self.copy.as_ref().map(|copy| &copy.flat)
    }

    /// A copy with memory of its own.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        Self::from_vec(&self.layout, self.buffer.to_vec()?, self.buffer.device())
    }

    /// Where each parameter lies.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// The flat buffer.
    pub fn buffer(&self) -> &FlatBuffer {
        &self.buffer
    }

    /// A parameter in f32.
    pub(crate) fn master(&self, id: ParamId) -> &Tensor {
        &self.views[id.0]
    }

    /// A parameter in the format the network computes in.
    pub(crate) fn tensor(&self, id: ParamId) -> &Tensor {
        self.copy.as_ref().map_or(&self.views[id.0], |copy| &copy.views[id.0])
    }

    /// Weight and bias of the layers of the [stack](ParamLayout), as one layer, in the format the network computes in.
    pub(crate) fn stacked(&self) -> Result<(Tensor, Tensor)> {
        let ([weight, bias], stack) = (self.layout.stacked(), &self.layout.stack);
        let view = |range: Range<usize>, shape: &[usize]| match &self.copy {
            Some(copy) => Ok(copy.flat.narrow(0, range.start, range.len())?.reshape(shape)?),
            None => self.buffer.view(range.start, shape),
        };
        Ok((view(weight, &[stack.outputs, stack.inputs])?, view(bias, &[stack.outputs])?))
    }
}

/// The gradient of every parameter, in one flat buffer.
///
/// Within an optimizer step the first contribution to a parameter overwrites what the step before left, the others
/// add to it: no pass is spent on zeros.
#[derive(Clone, Debug)]
pub struct Gradients {
    layout: Arc<ParamLayout>,
    buffer: FlatBuffer,
    written: Vec<bool>,
    /// What a GPU wrote in 16 bits in this pass.
    #[cfg(feature = "cuda")]
    narrow: Arc<NarrowGradients>,
    /// Sums that a GPU has yet to take.
    #[cfg(feature = "cuda")]
    sums: Arc<DeferredSums>,
}

impl Gradients {
    /// A buffer for `layout`, all zero.
    pub fn new(layout: &Arc<ParamLayout>, device: &Device) -> Result<Self> {
        let buffer = FlatBuffer::zeros(layout.len, device)?;
        Ok(Self {
            layout: layout.clone(),
            buffer,
            written: vec![false; layout.specs.len()],
            #[cfg(feature = "cuda")]
            narrow: Arc::default(),
            #[cfg(feature = "cuda")]
            sums: Arc::default(),
        })
    }

    /// Begins a step: the contents of the buffer are no longer valid.
    pub fn reset(&mut self) {
        self.written.fill(false);
        #[cfg(feature = "cuda")]
        {
            self.narrow.forget();
            self.sums.forget();
        }
    }

    /// Ends a step's backward passes: parameters that nothing contributed to have gradient zero, and nothing waits.
    pub fn complete(&mut self) -> Result<&FlatBuffer> {
        self.widen()?;
        for (spec, written) in self.layout.specs.iter().zip(&mut self.written) {
            if !*written {
                self.buffer.fill_zero(spec.offset..spec.offset + spec.len())?;
                *written = true;
            }
        }
        Ok(&self.buffer)
    }

    /// The flat buffer.
    pub fn buffer(&self) -> &FlatBuffer {
        &self.buffer
    }

    /// Where a layer writes the gradients of its weight and bias.
    pub(crate) fn pair(&mut self, weight: ParamId, bias: ParamId) -> ParamGrads<'_> {
        let write = self.mark(weight);
        self.mark(bias);
        self.places(self.layout.range(weight), self.layout.range(bias), write)
    }

    /// Where the layers of the [stack](ParamLayout) write those of all weights and biases, as one layer.
    pub(crate) fn stacked(&mut self) -> ParamGrads<'_> {
        let layout = self.layout.clone();
        let mut write = Write::Assign;
        for &id in layout.stack.weights.iter().chain(&layout.stack.biases) {
            write = self.mark(id);
        }
        let [weight, bias] = layout.stacked();
        self.places(weight, bias, write)
    }

    fn places(&self, weight: Range<usize>, bias: Range<usize>, write: Write) -> ParamGrads<'_> {
        ParamGrads {
            #[cfg(feature = "cuda")]
            narrow: Some(&self.narrow),
            #[cfg(feature = "cuda")]
            sums: Some(&self.sums),
            ..ParamGrads::new(&self.buffer, weight, bias, write)
        }
    }

    /// Where the gradient of a bias goes if another operation writes it than the layer, and whether to overwrite.
    #[cfg(feature = "cuda")]
    pub(crate) fn bias(&mut self, id: ParamId) -> (Range<usize>, Write) {
        let write = self.mark(id);
        (self.layout.range(id), write)
    }

    /// Ends a backward pass: on a GPU, takes the sums that wait.
    pub(crate) fn settle(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.sums.settle(&self.buffer)?;
        Ok(())
    }

    /// Gradients of 16 bits join the others, before another pass adds to them.
    pub(crate) fn widen(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.narrow.settle(&self.buffer)?;
        Ok(())
    }

    /// The gradients of 16 bits, for an optimizer that reads them beside the others.
    pub(crate) fn hand_over(&mut self) -> Result<Option<NarrowPart>> {
        #[cfg(feature = "cuda")]
        return Ok(self.narrow.hand_over(&self.buffer)?);
        #[cfg(not(feature = "cuda"))]
        Ok(None)
    }

    /// Where a single parameter's gradient goes: buffer, offset, and whether to overwrite.
    pub(crate) fn single(&mut self, id: ParamId) -> (&FlatBuffer, usize, Write) {
        let write = self.mark(id);
        (&self.buffer, self.layout.spec(id).offset, write)
    }

    fn mark(&mut self, id: ParamId) -> Write {
        if std::mem::replace(&mut self.written[id.0], true) { Write::Add } else { Write::Assign }
    }
}
