//! The GPU's memory: what stays with the process, what is used, and scratch space.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DriverError, result, sys};

use super::address::alloc;
use super::{Address, Gpu, refused};
use crate::error::{KernelError, Result};

/// What scratch space starts with: cuBLASLt's own advice for Hopper.
const FIRST_WORKSPACE: usize = 32 << 20;

/// It grows by multiples of this.
const STEP: usize = 2 << 20;

/// Scratch memory that only grows. What it grew out of is kept: a captured graph may still use it.
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
        let buffer = alloc::<u8>(gpu, bytes.next_multiple_of(STEP).max(FIRST_WORKSPACE))?;
        let address = Address::of(&buffer, &gpu.stream);
        self.buffers.push(buffer);
        Ok(address)
    }
}

/// Keeps freed memory in the process: by default the driver takes it back at every synchronisation, and to get it again
/// costs more than most kernels.
pub(super) fn keep_freed(device: &CudaDevice) -> Result<()> {
    let mut all = u64::MAX;
    set_pool(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &mut all)
}

impl Gpu {
    /// Gives back to the driver what nobody uses, after waiting for all that is queued: before a recording, whose memory is
    /// its own, and after the memory was full.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn give_back_unused(&self) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the device's own pool.
        unsafe { result::mem_pool::trim_to(default_pool(self.device())?, 0) }.map_err(refused("giving memory back"))?;
        // SAFETY: the device of an open context; only what no recording uses goes.
        unsafe { sys::cuDeviceGraphMemTrim(self.stream().context().cu_device()) }
            .result()
            .map_err(refused("giving back the memory of recordings"))
    }

    /// The most bytes that tensors and scratch space took at once: in the memory pool, or in the pool and in a recording
    /// while it was replayed. Neither the context nor what libraries take for themselves is in it.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn peak_memory(&self) -> Result<u64> {
        let pool = default_pool(self.device())?;
        let ask = |attribute| -> Result<u64> {
            let mut value = 0u64;
            // SAFETY: the device's own pool; both attributes we ask for are 64 bits wide.
            unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) }
                .result()
                .map_err(refused("asking the memory pool"))?;
            Ok(value)
        };
        let recorded = self.recorded_memory()?;
        let highest = ask(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        Ok(highest.max(ask(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)? + recorded))
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
    // SAFETY: both attributes we set are 64 bits wide, and the pool is the device's own.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (value as *mut u64).cast()) }
        .map_err(refused("setting up the memory pool"))
}

fn default_pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    // SAFETY: the device of a context that is open.
    unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }
        .map_err(refused("asking for the memory pool"))
}

/// What went wrong when `bytes` were asked for.
pub(super) fn out_of_memory(error: DriverError, bytes: usize) -> KernelError {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => KernelError::OutOfMemory { requested: bytes },
        _ => KernelError::Gpu { what: format!("asking for {bytes} bytes"), error: error.to_string() },
    }
}
