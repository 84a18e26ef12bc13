//! Numbers that leave the GPU beside the work: copied on the GPU itself, at the speed of its memory, and brought to the host on a
//! stream of their own while later steps are computed. So a checkpoint of 0.6 GB holds a step up for no longer than such a copy.
//!
//! The copies are taken and freed in the order of that stream: who brings them to the host may be another thread, and what it
//! queued on the stream of the work could fall into a recording.

use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice, result};
use candle_core::{DType, Tensor};

use super::transfer::{event, pinned};
use super::{Address, Gpu, lock, operand, out_of_memory, refused};
use crate::error::{KernelError, Result};

/// Numbers that cross at once: 16 MiB.
const PASSAGE: usize = 4 << 20;

/// The way out of a GPU.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Made early: once memory is full the driver cannot make another one.
    stream: Arc<CudaStream>,
    /// Made by the first who leaves: a GPU that only draws needs none.
    passage: Mutex<Option<Passage>>,
}

/// Page-locked memory, and when what was queued for it has arrived.
#[derive(Debug)]
struct Passage {
    host: PinnedHostSlice<f32>,
    arrived: CudaEvent,
}

impl Leaving {
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, passage: Mutex::default() }
    }
}

/// A copy of a tensor, on the GPU.
#[derive(Debug)]
pub struct Parked {
    gpu: Arc<Gpu>,
    numbers: CudaSlice<f32>,
}

impl Parked {
    /// Queues a copy of `tensor` (f32, in one piece); what is queued later does not change it. `None` where there is no room.
    ///
    /// # Errors
    /// Another format or place, or a GPU that fails.
    pub(crate) fn new(gpu: &Arc<Gpu>, tensor: &Tensor) -> Result<Option<Self>> {
        let source = operand(gpu, "a copy", tensor, DType::F32)?;
        let (len, computing, leaving) = (tensor.elem_count(), gpu.stream(), &gpu.leaving.stream);
        // SAFETY: the copy below writes all of it, before anything reads it.
        let asked = unsafe { leaving.alloc::<f32>(len) }.map_err(out_of_memory("keeping a copy".to_owned()));
        let numbers = match asked {
            Ok(numbers) => numbers,
            Err(KernelError::OutOfMemory { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let target = Address::of(&numbers, leaving);
        let turn = event(gpu)?;
        let queue = || {
            turn.record(leaving)?;
            computing.wait(&turn)?;
            // SAFETY: both hold `len` numbers; the streams wait for each other before the copy, which the memory is there for,
            // and after it, which the memory is read or freed after.
            unsafe { result::memcpy_dtod_async(target.0, source.0, len * size_of::<f32>(), computing.cu_stream()) }?;
            turn.record(computing)?;
            leaving.wait(&turn)
        };
        if let Err(error) = queue() {
            // The copy may be queued, and the other stream does not know: the memory must not be freed before it.
            if gpu.synchronize().is_err() {
                std::mem::forget(numbers);
            }
            return Err(refused("copying on the GPU")(error));
        }
        Ok(Some(Self { gpu: gpu.clone(), numbers }))
    }

    /// Brings it to the host, on any thread, and frees it. Only this thread waits.
    ///
    /// # Errors
    /// No page-locked memory, or a GPU that fails.
    pub(crate) fn into_vec(self) -> Result<Vec<f32>> {
        let Leaving { stream, passage } = &self.gpu.leaving;
        stream.context().bind_to_thread().map_err(refused("preparing a copy"))?;
        let mut passage = lock(passage);
        let Passage { host, arrived } = match &mut *passage {
            Some(passage) => passage,
            none => none.insert(Passage { host: pinned(&self.gpu, PASSAGE)?, arrived: event(&self.gpu)? }),
        };
        let base = Address::of(&self.numbers, stream);
        let len = self.numbers.len();
        let mut all = Vec::with_capacity(len);
        for start in (0..len).step_by(PASSAGE) {
            let source = base.offset(start, DType::F32);
            let part = PASSAGE.min(len - start);
            let mut cross = || {
                let numbers = &mut host.as_mut_slice()?[..part];
                // SAFETY: the copy holds so many numbers from there on, and `host` is not touched before they have arrived.
                unsafe { result::memcpy_dtoh_async(numbers, source.0, stream.cu_stream()) }?;
                arrived.record(stream)?;
                arrived.synchronize()
            };
            cross().map_err(refused("bringing a copy to the host"))?;
            all.extend_from_slice(&host.as_slice().map_err(refused("reading a copy"))?[..part]);
        }
        Ok(all)
    }
}
