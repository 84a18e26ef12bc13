//! Convolutions by cuDNN's graph interface, channels last: bias and residual are part of the graph, and paddings may differ
//! from side to side.
//!
//! `scripts/cudnn-engines` asks the library which engines it has for the description of a GPU. The precompiled ones for tensor
//! cores take the convolution, then the residual, then the bias, in this order and all in the activations' format; a weight's
//! gradient comes in that format too.
//!
//! For each shape the engines that the library's heuristics name are timed once; the fastest is kept. A graph that no
//! engine takes is remembered as such, and the operation computes it in parts, or by our own kernels. The same happens where the
//! library fails, which is reported to the user.

mod backend;
mod candidates;
mod graph;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::cuda_backend::cudarc::cudnn::{result, sys};
use candle_core::{DType, Tensor};
use sys::{cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Mode};

use self::backend::{Answer, Descriptor};
use self::candidates::candidates;
use self::graph::{BIAS, Graph, RESIDUAL, WEIGHT, X, Y};
use super::notices::notice;
use super::timing::fastest;
use super::{Address, Gpu, lock, operand, optional, refused};
use crate::error::{KernelError, Result};

/// Engines that are timed: all that cuDNN 9.19 has for a convolution, where PyTorch takes ten. The gradient of 384 channels by
/// 128 takes 171 us on an H100 by the 30th engine named, and 287 us by the best of the first ten. One that comes compiled is
/// ready in less than a millisecond.
const MOST_CANDIDATES: usize = 40;

/// Bytes that the operands' addresses are multiples of. Asked for less, cuDNN 9.19 names an engine for f32 gradients of weights
/// that loads 16 all the same, and such a fault ends everything on the GPU (seen on an H100).
const ALIGNMENT: u32 = 16;

/// An engine that needs more scratch memory is a candidate only where all need that much.
const LARGE_WORKSPACE: usize = 64 << 20;

/// Which of a convolution's computations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    /// y of x and weight, plus bias and residual where there are.
    Forward { bias: bool, residual: bool },
    /// dx of dy and weight.
    InputGradient,
    /// dw of dy and x.
    WeightGradient,
}

/// What a plan depends on, besides the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) pass: Pass,
    /// `[N, H, W, I]`, of the input or its gradient.
    pub(crate) x: [usize; 4],
    /// `[N, H', W', O]`, of the output or its gradient.
    pub(crate) y: [usize; 4],
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) pad_before: usize,
    pub(crate) pad_after: usize,
    /// Of all tensors.
    pub(crate) dtype: DType,
}

/// Where the tensors lie; a gradient has the field of the tensor that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvAddresses {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) y: Address,
    pub(crate) bias: Address,
    pub(crate) residual: Address,
}

impl ConvAddresses {
    fn are_aligned(&self) -> bool {
        let Self { x, weight, y, bias, residual } = *self;
        [x, weight, y, bias, residual].iter().all(|address| address.alignment() >= ALIGNMENT)
    }

    /// Of a layer's forward pass, all in the format of `x`.
    pub(crate) fn forward(
        gpu: &Gpu,
        op: &'static str,
        (x, y): (&Tensor, &Tensor),
        (weight, bias): (&Tensor, &Tensor),
        residual: Option<&Tensor>,
    ) -> Result<Self> {
        let at = |tensor| operand(gpu, op, tensor, x.dtype());
        let residual = optional(gpu, op, residual, x.dtype())?;
        Ok(Self { x: at(x)?, weight: at(weight)?, y: at(y)?, bias: at(bias)?, residual })
    }

    /// Of a layer's backward pass: x, weight and dy.
    pub(crate) fn backward(gpu: &Gpu, op: &'static str, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Self> {
        let at = |tensor| operand(gpu, op, tensor, x.dtype());
        Ok(Self { x: at(x)?, weight: at(weight)?, y: at(dy)?, bias: Address::NONE, residual: Address::NONE })
    }

    /// Adds bias and residual to the `elements` of y where a library could not fuse that.
    pub(crate) fn add_bias_and_residual(
        &self,
        gpu: &Gpu,
        dtype: DType,
        channels: usize,
        elements: usize,
    ) -> Result<()> {
        let launch = gpu.float_kernel("bias_residual", dtype)?.arg(self.y).arg(self.bias).arg(self.residual);
        launch.arg(channels).arg(elements).over(elements)
    }
}

/// A request with the current settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    request: Request,
    deterministic: bool,
    tf32: bool,
}

/// The library's handle and the plans found so far; none where no engine takes the graph.
#[derive(Debug)]
pub(super) struct Convolutions {
    handle: sys::cudnnHandle_t,
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: the handle and the descriptors belong to no thread; a lock lets one at a time use them.
unsafe impl Send for Convolutions {}

impl Convolutions {
    fn new(gpu: &Gpu) -> Result<Self> {
        let handle = result::create_handle().map_err(|error| not_opened(gpu, error))?;
        let convolutions = Self { handle, plans: HashMap::new() };
        // SAFETY: the handle was just made, the stream lives as long as the GPU.
        unsafe { result::set_stream(handle, gpu.stream().cu_stream().cast()) }.map_err(refused("opening cuDNN"))?;
        Ok(convolutions)
    }
}

/// What cuDNN certainly opens with.
const OPENS_WITH: u64 = 256 << 20;

/// Where its own memory does not fit, cuDNN 9.19 says CUDNN_STATUS_INTERNAL_ERROR as it opens (seen on an H100 with
/// some tens of MiB free), which says nothing to a user.
fn not_opened(gpu: &Gpu, error: result::CudnnError) -> KernelError {
    match gpu.memory() {
        Ok(memory) if memory.free < OPENS_WITH => {
            KernelError::OutOfMemory { what: format!("no room to open cuDNN ({error})") }
        }
        _ => refused("opening cuDNN")(error),
    }
}

impl Drop for Convolutions {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made by `new`, and not used any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Gpu {
    /// Queues the computation and returns true if cuDNN has an engine for it. It has none for operands that are not aligned.
    ///
    /// # Errors
    /// The library is missing, or fails.
    pub(crate) fn convolve(&self, request: &Request, operands: &ConvAddresses) -> Result<bool> {
        if !operands.are_aligned() {
            return Ok(false);
        }
        let mut convolutions = lock(&self.convolutions);
        if convolutions.is_none() {
            *convolutions = Some(Convolutions::new(self)?);
        }
        let Some(convolutions) = &mut *convolutions else { return Ok(false) };
        let handle = convolutions.handle;
        let key = Key { request: *request, deterministic: self.deterministic(), tf32: self.tf32() };
        let plan = match convolutions.plans.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Plan::find(self, handle, &key, operands)?),
        };
        match plan {
            Some(plan) => plan.queue(self, handle, operands).map(|()| true),
            None => Ok(false),
        }
    }
}

/// An engine made ready for a graph.
#[derive(Debug)]
struct Plan {
    plan: Descriptor,
    workspace: usize,
    pass: Pass,
    /// Kept alive for the plan.
    _configuration: Descriptor,
    _graph: std::rc::Rc<Graph>,
}

impl Plan {
    fn find(gpu: &Gpu, handle: sys::cudnnHandle_t, key: &Key, operands: &ConvAddresses) -> Result<Option<Self>> {
        let request = &key.request;
        let Some(graph) = unless_refused(Graph::new(handle, request))? else { return Ok(None) };
        let graph = std::rc::Rc::new(graph);
        let (mut plans, mut full) = (Vec::new(), None);
        for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
            if !plans.is_empty() {
                break;
            }
            for configurations in unless_refused(candidates(&graph, mode, key))?.into_iter().flatten() {
                if plans.is_empty() {
                    let ready =
                        configurations.into_iter().filter_map(|c| Self::prepare(handle, c, &graph, request, &mut full));
                    plans.extend(ready.take(MOST_CANDIDATES));
                }
            }
        }
        // That there is no memory now must not be remembered as that no engine can do it.
        if let (true, Some(error)) = (plans.is_empty(), full) {
            return Err(error);
        }
        // Scratch memory is kept for the run, so an engine that needs much of it is taken only if there is no other.
        if plans.iter().any(|plan| plan.workspace <= LARGE_WORKSPACE) {
            plans.retain(|plan| plan.workspace <= LARGE_WORKSPACE);
        }
        let best = fastest(gpu, key, &plans, |plan| {
            plan.queue(gpu, handle, operands).inspect_err(|error| {
                if !error.is_out_of_memory() {
                    report_fault(&error.to_string());
                }
            })
        })?;
        Ok(best.map(|at| plans.swap_remove(at)))
    }

    /// None where the engine cannot be made ready: another one will do. Sets `full` where the GPU ran out of memory.
    fn prepare(
        handle: sys::cudnnHandle_t,
        configuration: Descriptor,
        graph: &std::rc::Rc<Graph>,
        request: &Request,
        full: &mut Option<KernelError>,
    ) -> Option<Self> {
        let refusal = match Self::new(handle, configuration, graph, request) {
            Ok(plan) => return Some(plan),
            Err(refusal) => refusal,
        };
        let error = refused("preparing a convolution")(refusal);
        if error.is_out_of_memory() {
            *full = Some(error);
        } else if !refusal.is_unsupported() {
            report_fault(&refusal.to_string());
        }
        None
    }

    fn new(
        handle: sys::cudnnHandle_t,
        configuration: Descriptor,
        graph: &std::rc::Rc<Graph>,
        request: &Request,
    ) -> Answer<Self> {
        let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &[handle])?;
        plan.link(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[&configuration])?;
        let plan = plan.finalise()?;
        let workspace = plan.get::<i64>(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 1)?;
        let workspace = workspace.first().map_or(0, |&bytes| bytes.max(0) as usize);
        Ok(Self { plan, workspace, pass: request.pass, _configuration: configuration, _graph: graph.clone() })
    }

    fn queue(&self, gpu: &Gpu, handle: sys::cudnnHandle_t, operands: &ConvAddresses) -> Result<()> {
        let workspace = gpu.workspace(self.workspace)?;
        let mut tensors = vec![(X, operands.x), (WEIGHT, operands.weight), (Y, operands.y)];
        if let Pass::Forward { bias, residual } = self.pass {
            tensors.extend(bias.then_some((BIAS, operands.bias)));
            tensors.extend(residual.then_some((RESIDUAL, operands.residual)));
        }
        pack(&tensors, workspace).and_then(|pack| self.plan.execute(handle, &pack)).map_err(refused("convolving"))
    }
}

fn pack(tensors: &[(i64, Address)], workspace: Address) -> Answer<Descriptor> {
    let pointer = |address: Address| address.0 as *mut std::ffi::c_void;
    let (numbers, addresses): (Vec<i64>, Vec<_>) = tensors.iter().map(|&(n, address)| (n, pointer(address))).unzip();
    let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &numbers)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[pointer(workspace)])?;
    pack.finalise()
}

/// None where the library has no engine for it, or has an internal fault, which is reported to the user; an error where it ran
/// out of memory, or is not what it should be.
fn unless_refused<T>(answer: Answer<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(refusal) if refusal.is_unsupported() => Ok(None),
        Err(refusal) => {
            let error = refused("preparing a convolution")(refusal);
            if !refusal.is_internal() || error.is_out_of_memory() {
                return Err(error);
            }
            report_fault(&refusal.to_string());
            Ok(None)
        }
    }
}

/// Reports to the user that an engine failed.
fn report_fault(error: &str) {
    notice(&format!("cuDNN failed at a convolution, which is computed another way: {error}"));
}
