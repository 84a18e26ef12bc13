//! Copies between host and GPU in a training step: one block of numbers is uploaded, a few results are downloaded, from and to
//! page-locked memory, without waiting. Uploads have a stream of their own and run while the GPU computes earlier steps; when
//! their step comes, the numbers are moved to where it reads them, at the speed of the GPU's memory.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DeviceRepr, PinnedHostSlice, result, sys,
};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Storage, Tensor};

use super::address::alloc;
use super::{Address, Gpu, operand, refused};
use crate::check;
use crate::error::{KernelError, Result};

const OP: &str = "an upload";

/// Every part begins at a multiple of it, like an allocation of its own.
const ALIGNMENT: usize = 256;

/// Steps that may be in flight at once: the host prepares the next ones while the GPU computes.
pub const IN_FLIGHT: usize = 4;

/// Tensors on the GPU that lie in one block of memory, so that one copy writes them all.
#[derive(Debug)]
pub struct Upload {
    gpu: Arc<Gpu>,
    /// Where the copies from the host are queued.
    crossing: Arc<CudaStream>,
    block: CudaSlice<u8>,
    parts: Vec<Part>,
    staging: Vec<Staging>,
    sent: usize,
}

/// Where numbers wait for their step: on the host, then on the GPU.
#[derive(Debug)]
struct Staging {
    host: PinnedHostSlice<u8>,
    /// When they have left the host.
    crossed: CudaEvent,
    landed: CudaSlice<u8>,
    /// When they have been moved to the tensors.
    moved: CudaEvent,
}

impl Staging {
    fn new(gpu: &Gpu, size: usize) -> Result<Self> {
        let staging = Self {
            host: pinned(gpu, size)?,
            crossed: event(gpu)?,
            landed: alloc::<u8>(gpu, size)?,
            moved: event(gpu)?,
        };
        // The memory exists only once the stream that asked for it reaches this place.
        staging.moved.record(gpu.stream()).map_err(refused("preparing an upload"))?;
        Ok(staging)
    }
}

/// A tensor in the block, which owns its memory: so it must never be freed.
#[derive(Debug)]
struct Part {
    offset: usize,
    bytes: usize,
    tensor: ManuallyDrop<Tensor>,
}

impl Upload {
    /// Room for tensors of these formats and shapes; they keep their places for as long as this lives, and must not be
    /// used longer.
    ///
    /// # Errors
    /// The memory is full, or a format is none that can be uploaded.
    pub fn new(gpu: &Arc<Gpu>, shapes: &[(DType, Vec<usize>)]) -> Result<Self> {
        let mut offsets = Vec::new();
        let mut size = 0;
        for (dtype, shape) in shapes {
            let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
            offsets.push((size, bytes));
            size += bytes.next_multiple_of(ALIGNMENT);
        }
        let size = size.max(ALIGNMENT);
        let block = alloc::<u8>(gpu, size)?;
        let base = Address::of(&block, gpu.stream());
        let parts = shapes.iter().zip(offsets).map(|((dtype, shape), (offset, bytes))| {
            let tensor = ManuallyDrop::new(tensor_at(gpu, base.offset(offset, DType::U8), *dtype, shape)?);
            Ok(Part { offset, bytes, tensor })
        });
        let parts = parts.collect::<Result<_>>()?;
        let staging = (0..IN_FLIGHT).map(|_| Staging::new(gpu, size)).collect::<Result<_>>()?;
        Ok(Self { gpu: gpu.clone(), crossing: gpu.crossing.clone(), block, parts, staging, sent: 0 })
    }

    /// The tensor of this number.
    pub fn tensor(&self, part: usize) -> &Tensor {
        &self.parts[part].tensor
    }

    /// Queues the copy of new numbers, tensors on the host, into all the tensors, in their order. Waits only where the copy of
    /// [`IN_FLIGHT`] steps before has not been made yet.
    ///
    /// # Errors
    /// Numbers of another format or shape than the tensors have, or a GPU that fails.
    pub fn send(&mut self, numbers: &[&Tensor]) -> Result<()> {
        if numbers.len() != self.parts.len() {
            let (found, expected) = (vec![numbers.len()], vec![self.parts.len()]);
            return Err(KernelError::Shape { op: OP, tensor: "the parts", found, expected });
        }
        let slot = self.sent % self.staging.len();
        self.sent += 1;
        let Staging { host, crossed, landed, moved } = &mut self.staging[slot];
        // Events of our own: nothing else is tracked on this device, so cudarc does not record its.
        crossed.synchronize().map_err(refused("waiting for an upload"))?;
        let bytes = host.as_mut_slice().map_err(refused("preparing an upload"))?;
        for (part, numbers) in self.parts.iter().zip(numbers) {
            check::shape(OP, "numbers", numbers, part.tensor.dims())?;
            let place = &mut bytes[part.offset..part.offset + part.bytes];
            if numbers.dtype() != part.tensor.dtype() || !write(numbers, place) {
                return Err(KernelError::Layout { op: OP, dtype: numbers.dtype(), shape: numbers.dims().to_vec() });
            }
        }
        let (crossing, computing) = (&self.crossing, self.gpu.stream());
        let mut queue = || {
            crossing.wait(moved)?;
            crossing.memcpy_htod(host, landed)?;
            crossed.record(crossing)?;
            computing.wait(crossed)?;
            computing.memcpy_dtod(landed, &mut self.block)?;
            moved.record(computing)
        };
        queue().map_err(refused("uploading a batch"))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // The memory is freed in the order of the other stream. A GPU that fails here has failed before.
        let _ = self.crossing.synchronize();
    }
}

/// Writes the bytes of `numbers` into `place`; whether they lie on the host, in one piece, and fill it.
fn write(numbers: &Tensor, place: &mut [u8]) -> bool {
    fn each<const W: usize, T: Copy>(numbers: &[T], place: &mut [u8], bytes: impl Fn(T) -> [u8; W]) -> bool {
        let fits = numbers.len() * W == place.len();
        for (place, number) in place.chunks_exact_mut(W).zip(numbers) {
            place.copy_from_slice(&bytes(*number));
        }
        fits
    }
    let (storage, layout) = numbers.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else { return false };
    match storage {
        CpuStorage::U8(numbers) if end - start == place.len() => {
            place.copy_from_slice(&numbers[start..end]);
            true
        }
        CpuStorage::U32(numbers) => each(&numbers[start..end], place, u32::to_le_bytes),
        CpuStorage::F32(numbers) => each(&numbers[start..end], place, f32::to_le_bytes),
        CpuStorage::F64(numbers) => each(&numbers[start..end], place, f64::to_le_bytes),
        _ => false,
    }
}

/// Downloads of the last steps' results: a few tensors a step.
#[derive(Debug)]
pub struct Download {
    gpu: Arc<Gpu>,
    /// By step: by tensor what has arrived, and when it has.
    slots: Vec<(Vec<PinnedHostSlice<f64>>, CudaEvent)>,
    asked: usize,
    read: usize,
}

impl Download {
    /// For tensors of so many numbers each.
    ///
    /// # Errors
    /// No page-locked memory.
    pub fn new(gpu: &Arc<Gpu>, lens: &[usize]) -> Result<Self> {
        let slot = |_| Ok((lens.iter().map(|&len| pinned(gpu, len)).collect::<Result<_>>()?, event(gpu)?));
        let slots = (0..IN_FLIGHT).map(slot).collect::<Result<_>>()?;
        Ok(Self { gpu: gpu.clone(), slots, asked: 0, read: 0 })
    }

    /// Steps whose results were asked for and not yet read.
    pub fn pending(&self) -> usize {
        self.asked - self.read
    }

    /// Queues the copies of `results` (f64); at most [`IN_FLIGHT`] may be pending.
    ///
    /// # Errors
    /// A tensor that is no f64 on this GPU, or a GPU that fails.
    pub fn ask(&mut self, results: &[&Tensor]) -> Result<()> {
        let slot = self.asked % self.slots.len();
        self.asked += 1;
        let (hosts, arrived) = &mut self.slots[slot];
        for (results, host) in results.iter().zip(hosts) {
            copy_to_host(&self.gpu, results, host)?;
        }
        arrived.record(self.gpu.stream()).map_err(refused("downloading results"))
    }

    /// The oldest pending results, waiting for them; none if nothing is pending.
    ///
    /// # Errors
    /// The GPU fails: what was queued before may have failed too.
    pub fn read(&mut self) -> Result<Option<Vec<&[f64]>>> {
        if self.pending() == 0 {
            return Ok(None);
        }
        let slot = self.read % self.slots.len();
        self.read += 1;
        let (hosts, arrived) = &self.slots[slot];
        arrived.synchronize().map_err(refused("waiting for results"))?;
        let read = |host| PinnedHostSlice::as_slice(host).map_err(refused("reading results"));
        hosts.iter().map(read).collect::<Result<_>>().map(Some)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A copy in flight needs its place on the host. A GPU that fails here has failed before.
        if self.pending() > 0 {
            let _ = self.gpu.synchronize();
        }
    }
}

fn copy_to_host(gpu: &Gpu, from: &Tensor, to: &mut PinnedHostSlice<f64>) -> Result<()> {
    const OP: &str = "a download";
    operand(gpu, OP, from, DType::F64)?;
    let (storage, layout) = from.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(KernelError::Device { op: OP, device: from.device().location() });
    };
    let start = layout.start_offset();
    let numbers = storage.as_cuda_slice::<f64>()?.slice(start..start + from.elem_count());
    gpu.stream().memcpy_dtoh(&numbers, to).map_err(refused("downloading results"))
}

impl Gpu {
    /// Queues a copy of one f64 tensor over another of as many numbers.
    ///
    /// # Errors
    /// Tensors that are not f64 here, or differ in size.
    pub(crate) fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        const OP: &str = "a copy";
        let (source, target) = (operand(self, OP, from, DType::F64)?, operand(self, OP, to, DType::F64)?);
        check::shape(OP, "the target", to, from.dims())?;
        let bytes = from.elem_count() * DType::F64.size_in_bytes();
        // SAFETY: both hold so many bytes, and the stream orders the copy after what writes the source.
        unsafe { result::memcpy_dtod_async(target.0, source.0, bytes, self.stream().cu_stream()) }
            .map_err(refused("copying on the GPU"))
    }
}

/// To wait for a copy without keeping a core busy.
pub(super) fn event(gpu: &Gpu) -> Result<CudaEvent> {
    let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC;
    gpu.stream().context().new_event(Some(flags)).map_err(refused("making an event"))
}

pub(super) fn pinned<T: DeviceRepr>(gpu: &Gpu, len: usize) -> Result<PinnedHostSlice<T>> {
    let context = gpu.stream().context();
    // SAFETY: it is written before it is copied from, and copied to before it is read. Plain caching: results are read.
    unsafe { context.alloc_pinned_with_flags(len, sys::CU_MEMHOSTALLOC_PORTABLE) }
        .map_err(refused("asking for page-locked memory"))
}

/// A tensor over memory that it does not own: it must not be dropped.
fn tensor_at(gpu: &Gpu, at: Address, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let (len, device) = (shape.iter().product(), gpu.device().clone());
    // SAFETY: the caller's memory holds so many numbers, and the caller never drops the tensor.
    let storage = unsafe {
        match dtype {
            DType::U8 => CudaStorage::wrap_cuda_slice(gpu.stream().upgrade_device_ptr::<u8>(at.0, len), device),
            DType::U32 => CudaStorage::wrap_cuda_slice(gpu.stream().upgrade_device_ptr::<u32>(at.0, len), device),
            DType::F32 => CudaStorage::wrap_cuda_slice(gpu.stream().upgrade_device_ptr::<f32>(at.0, len), device),
            DType::F64 => CudaStorage::wrap_cuda_slice(gpu.stream().upgrade_device_ptr::<f64>(at.0, len), device),
            _ => return Err(KernelError::Layout { op: OP, dtype, shape: shape.to_vec() }),
        }
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
