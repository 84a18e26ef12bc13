//! Launching a kernel: its arguments one by one, then its grid.

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};

use super::{Address, Gpu};
use crate::error::{KernelError, Result};

/// Threads of a block by default.
pub(crate) const THREADS: u32 = 256;

/// What a kernel may take; the device code's types are `T *`, `u64`, `u32`, `float`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    U64(u64),
    U32(u32),
    F32(f32),
}

impl From<Address> for Value {
    fn from(address: Address) -> Self {
        Self::U64(address.0)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

/// A size or an index is `u64` on the device.
impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::U64(value as u64)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// A kernel and the arguments it has been given so far, in its order.
pub(crate) struct Launch<'g> {
    gpu: &'g Gpu,
    function: CudaFunction,
    arguments: Vec<Value>,
    shared: u32,
}

impl<'g> Launch<'g> {
    pub(super) fn new(gpu: &'g Gpu, function: CudaFunction) -> Self {
        Self { gpu, function, arguments: Vec::with_capacity(16), shared: 0 }
    }

    /// The next argument.
    #[must_use]
    pub(crate) fn arg(mut self, value: impl Into<Value>) -> Self {
        self.arguments.push(value.into());
        self
    }

    /// Dynamic shared memory of every block, in bytes: at most [`Gpu::shared_memory`], which every kernel is permitted.
    #[must_use]
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.shared = u32::try_from(bytes).unwrap_or(u32::MAX);
        self
    }

    /// Queues the kernel for `elements` independent ones, each thread taking several where there are many.
    ///
    /// # Errors
    /// The driver refuses it.
    pub(crate) fn over(self, elements: usize) -> Result<()> {
        // Enough blocks to fill the GPU several times over; a grid-stride loop takes the rest.
        let most = self.gpu.multiprocessors as usize * 16;
        let blocks = elements.div_ceil(THREADS as usize).clamp(1, most);
        self.blocks((blocks as u32, 1, 1), THREADS)
    }

    /// Queues the kernel for `outer` groups of `elements` independent elements each: a row of blocks (`blockIdx.y`) for each.
    ///
    /// # Errors
    /// The driver refuses it.
    pub(crate) fn over_each(self, outer: usize, elements: usize) -> Result<()> {
        let most = (self.gpu.multiprocessors as usize * 16).div_ceil(outer.max(1));
        let blocks = elements.div_ceil(THREADS as usize).clamp(1, most);
        self.blocks((blocks as u32, outer as u32, 1), THREADS)
    }

    /// Queues the kernel with this grid of blocks.
    ///
    /// # Errors
    /// The driver refuses it.
    pub(crate) fn blocks(self, grid: (u32, u32, u32), threads: u32) -> Result<()> {
        let config = LaunchConfig { grid_dim: grid, block_dim: (threads, 1, 1), shared_mem_bytes: self.shared };
        let mut builder = self.gpu.stream.launch_builder(&self.function);
        for argument in &self.arguments {
            match argument {
                Value::U64(value) => builder.arg(value),
                Value::U32(value) => builder.arg(value),
                Value::F32(value) => builder.arg(value),
            };
        }
        // SAFETY: the caller gave the kernel the arguments it declares, and addresses of memory as large as it says.
        unsafe { builder.launch(config) }
            .map(drop)
            .map_err(|error| KernelError::Gpu { what: "launching a kernel".to_owned(), error: error.to_string() })
    }
}
