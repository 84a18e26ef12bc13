//! The GPU's memory: what the process keeps, what is used, and scratch space.

use std::sync::atomic::Ordering;

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, result, sys};

use super::address::alloc;
use super::{Address, Gpu, refused};
use crate::error::Result;

/// A GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// What a new tensor could take.
    pub free: u64,
    /// What our tensors and scratch space take.
    pub used: u64,
    /// All of it, used by any process or free.
    pub total: u64,
}

/// What scratch space starts with: cuBLASLt's own advice for Hopper.
const FIRST_WORKSPACE: usize = 32 << 20;

/// It grows by multiples of this.
const STEP: usize = 2 << 20;

/// Scratch memory that only grows. Buffers that became too small are kept while there are recordings, which may use them.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    buffers: Vec<CudaSlice<u8>>,
}

impl Workspace {
    pub(super) fn at_least(&mut self, gpu: &Gpu, bytes: usize) -> Result<Address> {
        let fits = self.buffers.last().filter(|buffer| buffer.len() >= bytes);
        if let Some(buffer) = fits {
            return Ok(Address::of(buffer, &gpu.stream));
        }
        if gpu.recordings.load(Ordering::Relaxed) == 0 && !gpu.is_recording()? {
            self.buffers.clear(); // in the order of the stream, behind what uses it
        }
        let buffer = alloc::<u8>(gpu, bytes.next_multiple_of(STEP).max(FIRST_WORKSPACE))?;
        let address = Address::of(&buffer, &gpu.stream);
        self.buffers.push(buffer);
        Ok(address)
    }
}

/// Keeps freed memory in the process: by default the driver takes it back at every synchronisation, and asking for it again
/// costs more than most kernels.
pub(super) fn keep_freed(device: &CudaDevice) -> Result<()> {
    let mut all = u64::MAX;
    set_pool(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &mut all)
}

impl Gpu {
    /// Waits for all that is queued, then gives unused memory back to the driver: after the memory was full.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn give_back_unused(&self) -> Result<()> {
        self.give_back_pool()?;
        // SAFETY: the device of an open context; only what no recording uses right now goes.
        unsafe { sys::cuDeviceGraphMemTrim(self.stream().context().cu_device()) }
            .result()
            .map_err(refused("giving back the memory of recordings"))
    }

    /// The same before a recording: the process still holds the memory that the work took when it ran unrecorded, and the
    /// recording has memory of its own. While another recording is alive its memory stays: a replay releases it at its end, so
    /// a trim would take it, and the next replay would have to ask for all of it again.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn make_room_to_record(&self) -> Result<()> {
        if self.recordings.load(Ordering::Relaxed) == 0 { self.give_back_unused() } else { self.give_back_pool() }
    }

    fn give_back_pool(&self) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the device's own pool.
        unsafe { result::mem_pool::trim_to(default_pool(self.device())?, 0) }.map_err(refused("giving memory back"))
    }

    /// The most bytes that tensors and scratch space took at once: in the memory pool, or in the pool and in a recording
    /// while it was replayed. Neither the context nor what libraries take for themselves is in it.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn peak_memory(&self) -> Result<u64> {
        let ask = |attribute| self.ask_pool(attribute);
        let recorded = self.recorded_memory()?;
        let highest = ask(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        Ok(highest.max(ask(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)? + recorded))
    }

    /// How much memory there is for us: what is free, and what our tensors and scratch space use already.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn memory(&self) -> Result<MemoryUse> {
        let (free, total) = result::mem_get_info().map_err(refused("asking for free memory"))?;
        let pool = |attribute| self.ask_pool(attribute);
        let used = pool(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        // The pool keeps what was freed; to the driver that is in use.
        let kept = pool(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(used);
        Ok(MemoryUse { free: free as u64 + kept, used, total: total as u64 })
    }

    /// Starts the measurement of the peak again, from what is used now.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn reset_peak_memory(&self) -> Result<()> {
        let mut zero = 0u64;
        set_pool(self.device(), sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, &mut zero)?;
        let (device, attribute) =
            (self.stream().context().cu_device(), sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH);
        // SAFETY: the device of an open context; the attribute is 64 bits wide, and can only be set to zero.
        unsafe { sys::cuDeviceSetGraphMemAttribute(device, attribute, (&raw mut zero).cast()) }
            .result()
            .map_err(refused("asking for the memory of recordings"))
    }

    fn ask_pool(&self, attribute: sys::CUmemPool_attribute) -> Result<u64> {
        let (pool, mut value) = (default_pool(self.device())?, 0u64);
        // SAFETY: the device's own pool; all attributes we ask for are 64 bits wide.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) }
            .result()
            .map_err(refused("asking the memory pool"))?;
        Ok(value)
    }

    /// The most bytes that recordings took at once.
    fn recorded_memory(&self) -> Result<u64> {
        let (device, mut value) = (self.stream().context().cu_device(), 0u64);
        let attribute = sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
        // SAFETY: the device of an open context; the attribute is 64 bits wide.
        unsafe { sys::cuDeviceGetGraphMemAttribute(device, attribute, (&raw mut value).cast()) }
            .result()
            .map_err(refused("asking for the memory of recordings"))?;
        Ok(value)
    }
}

fn set_pool(device: &CudaDevice, attribute: sys::CUmemPool_attribute, value: &mut u64) -> Result<()> {
    let pool = default_pool(device)?;
    // SAFETY: the attributes we set are 64 bits wide, and the pool is the device's own.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (value as *mut u64).cast()) }
        .map_err(refused("setting up the memory pool"))
}

fn default_pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    // SAFETY: the device of a context that is open.
    unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }
        .map_err(refused("asking for the memory pool"))
}
