//! The GPU as the operations see it: one stream, our kernels, cuDNN, cuBLASLt, and scratch memory.
//!
//! Everything is queued on one stream, so an operation may use results that earlier operations have yet to write, and memory is
//! freed in stream order: no operation waits. Nothing here synchronises, and after the first call with a shape
//! nothing allocates but the results: plans, functions and workspaces are kept. So a whole training step can be captured as
//! one CUDA graph.

mod address;
mod choices;
mod columns;
pub(crate) mod dnn;
mod launch;
mod leaving;
pub(crate) mod matmul;
pub mod memory;
mod notices;
mod profile;
pub mod random;
mod recording;
pub mod survey;
pub mod switches;
mod timing;
mod transfer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute as Attribute, CUresult};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{DType, Device};

pub(crate) use self::address::{Address, empty, operand, optional, write, zero};
pub use self::choices::Choices;
pub(crate) use self::columns::{column_sum, pack_width, pixel_sum};
use self::dnn::Convolutions;
pub(crate) use self::launch::{Launch, THREADS, Value};
use self::leaving::Leaving;
pub use self::leaving::Parked;
use self::matmul::Products;
pub use self::memory::MemoryUse;
use self::memory::Workspace;
pub use self::recording::Recording;
use self::switches::Off;
pub use self::timing::Mark;
pub use self::transfer::{Download, IN_FLIGHT, Upload};
use crate::error::{KernelError, Result};

/// Machine code and PTX of `cuda/*.cu`.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Counters by which blocks find out which of them is the last; every kernel leaves them at zero.
const COUNTERS: usize = 64 * 1024;

/// Shared memory reserved for what kernels declare statically; scripts/check-ptxas checks that none declares more.
const STATIC_SHARED: usize = 1024;

/// A GPU with all that operations need; see the module.
#[derive(Debug)]
pub struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    workspace: Mutex<Workspace>,
    /// The stream of all uploads. Made early: once memory is full the driver cannot make another one.
    crossing: Arc<CudaStream>,
    leaving: Leaving,
    counters: CudaSlice<u32>,
    products: Mutex<Option<Products>>,
    convolutions: Mutex<Option<Convolutions>>,
    multiprocessors: u32,
    shared_memory: usize,
    deterministic: AtomicBool,
    tf32: AtomicBool,
    choices: Mutex<Choices>,
    off: AtomicU8,
    /// Recordings that are alive.
    recordings: Arc<AtomicUsize>,
}

/// Whether a driver reports a GPU.
pub fn is_there() -> bool {
    CudaContext::device_count().is_ok_and(|count| count > 0)
}

/// Opens the GPU of this number: memory that is freed stays with the process, and nothing is tracked between streams, since
/// there is one.
///
/// # Errors
/// No driver, no such GPU, or a library that is missing.
pub fn open(ordinal: usize) -> Result<Device> {
    // Opened before candle does, whose errors include a backtrace, and kept until candle holds it too.
    let _context = CudaContext::new(ordinal).map_err(|error| KernelError::Gpu {
        what: format!("opening GPU {ordinal}"),
        error: survey::in_words(&error),
    })?;
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: all work goes to the device's one stream, so no event has to order it.
    unsafe { device.disable_event_tracking() };
    memory::keep_freed(&device)?;
    let device = Device::Cuda(device);
    Gpu::of(&device)?;
    Ok(device)
}

impl Gpu {
    /// The GPU that `device` is.
    ///
    /// # Errors
    /// The device is no GPU, or refuses our kernels; [`switches::VARIABLE`] has an unknown word.
    pub fn of(device: &Device) -> Result<Arc<Self>> {
        static OPEN: OnceLock<Mutex<HashMap<DeviceId, Arc<Gpu>>>> = OnceLock::new();
        let Device::Cuda(cuda) = device else {
            return Err(KernelError::Device { op: "a GPU's operation", device: device.location() });
        };
        let mut open = lock(OPEN.get_or_init(Mutex::default));
        if let Some(gpu) = open.get(&cuda.id()) {
            return Ok(gpu.clone());
        }
        let off = Off::from_environment()?;
        let gpu = Arc::new(Self::new(cuda)?);
        gpu.set_off(off);
        if !off.is_empty() {
            let variable = switches::VARIABLE;
            notices::notice(&format!("{variable}={off}: the GPU computes without these, slower than it can"));
        }
        open.insert(cuda.id(), gpu.clone());
        Ok(gpu)
    }

    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let module = context.load_module(Ptx::from_binary(KERNELS.to_vec())).map_err(refused("loading our kernels"))?;
        let ask = |attribute, what| context.attribute(attribute).map_err(refused(what));
        let count = ask(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            "asking for the number of multiprocessors",
        )?;
        let shared = ask(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            "asking for the size of shared memory",
        )?;
        Ok(Self {
            counters: device.alloc_zeros(COUNTERS)?,
            workspace: Mutex::default(),
            crossing: context.new_stream().map_err(refused("making a stream for uploads"))?,
            leaving: Leaving::new(context.new_stream().map_err(refused("making a stream for copies"))?),
            products: Mutex::default(),
            convolutions: Mutex::default(),
            functions: Mutex::default(),
            multiprocessors: count.max(1) as u32,
            shared_memory: (shared.max(0) as usize).saturating_sub(STATIC_SHARED),
            deterministic: AtomicBool::new(false),
            tf32: AtomicBool::new(false),
            choices: Mutex::default(),
            off: AtomicU8::default(),
            recordings: Arc::default(),
            module,
            stream,
            device: device.clone(),
        })
    }

    /// The stream everything is queued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The device in candle's terms.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Number of multiprocessors, which a launch should fill.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Dynamic shared memory that a block may have, in bytes.
    pub(crate) fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    /// Only algorithms whose result is the same bits every time.
    pub fn set_deterministic(&self, on: bool) {
        self.deterministic.store(on, Ordering::Relaxed);
    }

    pub(crate) fn deterministic(&self) -> bool {
        self.deterministic.load(Ordering::Relaxed)
    }

    /// Products of f32 on tensor cores, whose factors keep 10 bits of their mantissa.
    pub fn set_tf32(&self, on: bool) {
        self.tf32.store(on, Ordering::Relaxed);
    }

    pub(crate) fn tf32(&self) -> bool {
        self.tf32.load(Ordering::Relaxed)
    }

    /// Prepares to launch the kernel `name`.
    pub(crate) fn kernel(&self, name: &str) -> Result<Launch<'_>> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(name) {
            return Ok(Launch::new(self, function.clone()));
        }
        let function = self.module.load_function(name).map_err(refused(&format!("loading the kernel {name}")))?;
        // More than 48 KiB, static shared memory included, needs permission. It is given once, at its largest: the replay of a
        // recorded launch may see the permission of a later one.
        function
            .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.shared_memory as i32)
            .map_err(refused(&format!("asking for shared memory for {name}")))?;
        functions.insert(name.to_owned(), function.clone());
        Ok(Launch::new(self, function))
    }

    /// Prepares to launch the kernel `name` for tensors of `dtype`.
    pub(crate) fn float_kernel(&self, name: &'static str, dtype: DType) -> Result<Launch<'_>> {
        let suffix = match dtype {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            _ => return Err(KernelError::Layout { op: name, dtype, shape: Vec::new() }),
        };
        self.kernel(&format!("{name}_{suffix}"))
    }

    /// At least `bytes` of scratch memory, valid for the next launch only.
    pub(crate) fn workspace(&self, bytes: usize) -> Result<Address> {
        lock(&self.workspace).at_least(self, bytes)
    }

    /// `count` counters at zero; a kernel that uses them leaves them at zero.
    pub(crate) fn counters(&self, count: usize) -> Result<Address> {
        if count > COUNTERS {
            let error = format!("a launch may use {COUNTERS} counters, not {count}");
            return Err(KernelError::Gpu { what: "counting blocks".to_owned(), error });
        }
        Ok(Address::of(&self.counters, &self.stream))
    }

    /// Waits until all that is queued has run.
    ///
    /// # Errors
    /// Something queued before has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(refused("waiting for the GPU"))
    }
}

/// Locks a mutex whose holders never leave it half-changed, so that a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns a library's error into ours.
pub(crate) fn refused<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> KernelError {
    let what = what.to_owned();
    move |error| KernelError::Gpu { what, error: error.to_string() }
}

/// Turns the error of a request that takes memory into ours.
fn out_of_memory(what: String) -> impl FnOnce(DriverError) -> KernelError {
    move |error| match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => KernelError::OutOfMemory { what },
        _ => KernelError::Gpu { what, error: error.to_string() },
    }
}
