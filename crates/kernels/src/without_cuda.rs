//! The names of `cuda` in a build without it, so that code that uses a GPU needs no second version. There is no GPU here:
//! [`Gpu::of`] refuses every device, and no value of these types can exist, so the compiler removes the code that uses them.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, DeviceLocation, Tensor};

use crate::error::{KernelError, Result};

/// Steps that may be on their way to a GPU at once.
pub const IN_FLIGHT: usize = 1;

/// Which algorithms were the fastest, by computation.
pub type Choices = BTreeMap<String, (usize, usize)>;

/// A GPU.
#[derive(Debug)]
pub enum Gpu {}

/// Recorded work.
#[derive(Debug)]
pub enum Recording {}

/// A mark in the queued work.
#[derive(Debug)]
pub enum Mark {}

/// A copy of inputs to a GPU.
#[derive(Debug)]
pub enum Upload {}

/// A copy of results back to the host.
#[derive(Debug)]
pub enum Download {}

/// A GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Memory that a new tensor could take.
    pub free: u64,
    /// Memory of our tensors and scratch space.
    pub used: u64,
    /// Total memory.
    pub total: u64,
}

/// Whether there is a GPU that can be used.
pub fn is_there() -> bool {
    false
}

/// Opens no GPU.
///
/// # Errors
/// Always.
pub fn open(ordinal: usize) -> Result<Device> {
    Err(KernelError::Device { op: "a GPU's operation", device: DeviceLocation::Cuda { gpu_id: ordinal } })
}

impl Gpu {
    /// # Errors
    /// Always.
    pub fn of(device: &Device) -> Result<Arc<Self>> {
        Err(KernelError::Device { op: "a GPU's operation", device: device.location() })
    }

    /// Whether work may be recorded.
    pub fn records(&self) -> bool {
        match *self {}
    }

    /// Waits.
    pub fn synchronize(&self) -> Result<()> {
        match *self {}
    }

    /// Its memory.
    pub fn memory(&self) -> Result<MemoryUse> {
        match *self {}
    }

    /// The most memory in use at once.
    pub fn peak_memory(&self) -> Result<u64> {
        match *self {}
    }

    /// Frees unused memory.
    pub fn give_back_unused(&self) -> Result<()> {
        match *self {}
    }

    /// The same before a recording.
    pub fn make_room_to_record(&self) -> Result<()> {
        match *self {}
    }

    /// Records what `work` queues.
    pub fn record<E: From<KernelError>>(&self, _work: impl FnOnce() -> Result<(), E>) -> Result<Recording, E> {
        match *self {}
    }

    /// Shows `work` to a profiler.
    pub fn profiled<T, E: From<KernelError>>(&self, _work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        match *self {}
    }

    /// Marks what is queued next.
    pub fn mark(&self) -> Result<Mark> {
        match *self {}
    }

    /// Uses only algorithms that give the same bits every time.
    pub fn set_deterministic(&self, _on: bool) {
        match *self {}
    }

    /// Computes f32 products on tensor cores.
    pub fn set_tf32(&self, _on: bool) {
        match *self {}
    }

    /// The algorithms found so far.
    pub fn choices(&self) -> Choices {
        match *self {}
    }

    /// Sets the algorithms to use.
    pub fn choose(&self, _choices: Choices) {
        match *self {}
    }

    /// Versions of everything that proposes algorithms.
    pub fn versions(&self) -> Result<String> {
        match *self {}
    }
}

impl Recording {
    /// Queues the recorded work again.
    pub fn replay(&mut self) -> Result<()> {
        match *self {}
    }
}

impl Mark {
    /// The GPU's time since `earlier`.
    pub fn milliseconds_since(&self, _earlier: &Self) -> Result<f32> {
        match *self {}
    }
}

impl Upload {
    /// # Errors
    /// Never called: there is no `gpu`.
    pub fn new(gpu: &Arc<Gpu>, _shapes: &[(DType, Vec<usize>)]) -> Result<Self> {
        match **gpu {}
    }

    /// The tensor of this number.
    pub fn tensor(&self, _part: usize) -> &Tensor {
        match *self {}
    }

    /// Queues the copy of new numbers.
    pub fn send(&mut self, _numbers: &[&Tensor]) -> Result<()> {
        match *self {}
    }
}

impl Download {
    /// # Errors
    /// Never called: there is no `gpu`.
    pub fn new(gpu: &Arc<Gpu>, _lens: &[usize]) -> Result<Self> {
        match **gpu {}
    }

    /// Steps whose results were requested and not yet read.
    pub fn pending(&self) -> usize {
        match *self {}
    }

    /// Queues the copies of `results`.
    pub fn ask(&mut self, _results: &[&Tensor]) -> Result<()> {
        match *self {}
    }

    /// The oldest pending results.
    pub fn read(&mut self) -> Result<Option<Vec<&[f64]>>> {
        match *self {}
    }
}
