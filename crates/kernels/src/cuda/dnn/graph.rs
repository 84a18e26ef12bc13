//! A convolution as cuDNN's graph interface wants it: tensors, operations over them, a graph of operations.

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use sys::{cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind};

use super::backend::{Answer, Descriptor, data_type};
use super::{ALIGNMENT, Pass, Request};

/// Numbers of the tensors in a graph, by which addresses are given to it later.
pub(super) const X: i64 = 1;
pub(super) const WEIGHT: i64 = 2;
pub(super) const Y: i64 = 3;
pub(super) const BIAS: i64 = 4;
pub(super) const RESIDUAL: i64 = 5;
const CONVOLVED: i64 = 6;
const WITH_RESIDUAL: i64 = 7;

/// A graph and all that it refers to.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) graph: Descriptor,
    /// Kept alive for the graph.
    _parts: Vec<Descriptor>,
}

/// The sides of a tensor `[batch, height, width, channels]` in memory.
type Sides = [usize; 4];

impl Graph {
    pub(super) fn new(handle: sys::cudnnHandle_t, request: &Request) -> Answer<Self> {
        let mut parts = Parts { request, parts: Vec::new(), operations: Vec::new() };
        let convolution = parts.convolution()?;
        match request.pass {
            Pass::Forward { bias, residual } => parts.forward(convolution, bias, residual)?,
            Pass::InputGradient => parts.input_gradient(convolution)?,
            Pass::WeightGradient => parts.weight_gradient(convolution)?,
        }
        let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.link(
            Name::CUDNN_ATTR_OPERATIONGRAPH_OPS,
            &parts.operations.iter().map(|&at| &parts.parts[at]).collect::<Vec<_>>(),
        )?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &[handle])?;
        Ok(Self { graph: graph.finalise()?, _parts: parts.parts })
    }
}

/// A graph in the making; descriptors are known by their place.
struct Parts<'r> {
    request: &'r Request,
    parts: Vec<Descriptor>,
    operations: Vec<usize>,
}

impl Parts<'_> {
    fn keep(&mut self, descriptor: Descriptor) -> usize {
        self.parts.push(descriptor);
        self.parts.len() - 1
    }

    /// A tensor; channels are neighbours in memory, whatever the order of the dimensions the library asks for.
    fn tensor(&mut self, number: i64, sides: Sides, dtype: DType) -> Answer<usize> {
        let tensor = Self::described(number, sides, dtype)?;
        Ok(self.keep(tensor.finalise()?))
    }

    /// What one operation of a graph hands to the next without writing it to memory.
    fn virtual_tensor(&mut self, number: i64, sides: Sides) -> Answer<usize> {
        let tensor = Self::described(number, sides, DType::F32)?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, &[true])?;
        Ok(self.keep(tensor.finalise()?))
    }

    fn described(number: i64, [n, h, w, c]: Sides, dtype: DType) -> Answer<Descriptor> {
        let [n, h, w, c] = [n, h, w, c].map(|side| side as i64);
        let tensor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[data_type(dtype)])?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &[n, c, h, w])?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_STRIDES, &[h * w * c, 1, w * c, c])?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[number])?;
        tensor.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[i64::from(ALIGNMENT)])?;
        Ok(tensor)
    }

    fn convolution(&mut self) -> Answer<usize> {
        let request = self.request;
        let both = |value: usize| [value as i64; 2];
        let convolution = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, &[data_type(DType::F32)])?;
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, &[mode])?;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2i64])?;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &both(request.pad_before))?;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &both(request.pad_after))?;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &both(1))?;
        convolution.set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &both(request.stride))?;
        Ok(self.keep(convolution.finalise()?))
    }

    fn forward(&mut self, convolution: usize, bias: bool, residual: bool) -> Answer<()> {
        let r = self.request;
        let [x, weight] = self.operands()?;
        let last = if residual { WITH_RESIDUAL } else { CONVOLVED };
        let y = self.tensor(Y, r.y, r.dtype)?;
        let convolved = if bias || residual { self.virtual_tensor(CONVOLVED, r.y)? } else { y };
        self.operation(
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            [Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA],
            &[
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, convolution),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, weight),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, convolved),
            ],
        )?;
        let mut sum = convolved;
        if residual {
            let other = self.tensor(RESIDUAL, r.y, r.dtype)?;
            let to = if bias { self.virtual_tensor(last, r.y)? } else { y };
            self.add(sum, other, to)?;
            sum = to;
        }
        if bias {
            let other = self.tensor(BIAS, [1, 1, 1, r.y[3]], r.dtype)?;
            self.add(sum, other, y)?;
        }
        Ok(())
    }

    fn input_gradient(&mut self, convolution: usize) -> Answer<()> {
        let r = self.request;
        let [dx, weight] = self.operands()?;
        let dy = self.tensor(Y, r.y, r.dtype)?;
        self.operation(
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
            ],
            &[
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, convolution),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, dx),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, weight),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, dy),
            ],
        )
    }

    fn weight_gradient(&mut self, convolution: usize) -> Answer<()> {
        let r = self.request;
        let [x, dw] = self.operands()?;
        let dy = self.tensor(Y, r.y, r.dtype)?;
        self.operation(
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
            ],
            &[
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, convolution),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, dw),
                (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, dy),
            ],
        )
    }

    /// x, or its gradient, and the weight, or its gradient.
    fn operands(&mut self) -> Answer<[usize; 2]> {
        let r = self.request;
        let x = self.tensor(X, r.x, r.dtype)?;
        let kernel = [r.y[3], r.kernel, r.kernel, r.x[3]];
        Ok([x, self.tensor(WEIGHT, kernel, r.dtype)?])
    }

    fn operation(&mut self, kind: Kind, [alpha, beta]: [Name; 2], links: &[(Name, usize)]) -> Answer<()> {
        let operation = Descriptor::new(kind)?;
        operation.set(alpha, &[1f32])?;
        operation.set(beta, &[0f32])?;
        self.finish(operation, links)
    }

    /// `to = from + other`, the other one repeated over the sides where it has one.
    fn add(&mut self, from: usize, other: usize, to: usize) -> Answer<()> {
        let addition = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
        addition.set(Name::CUDNN_ATTR_POINTWISE_MODE, &[sys::cudnnPointwiseMode_t::CUDNN_POINTWISE_ADD])?;
        addition.set(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, &[data_type(DType::F32)])?;
        let addition = self.keep(addition.finalise()?);
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
        let links = [
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, addition),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, from),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, other),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, to),
        ];
        self.finish(operation, &links)
    }

    fn finish(&mut self, operation: Descriptor, links: &[(Name, usize)]) -> Answer<()> {
        for &(name, at) in links {
            operation.link(name, &[&self.parts[at]])?;
        }
        let at = self.keep(operation.finalise()?);
        self.operations.push(at);
        Ok(())
    }
}
