//! Versions and devices that the driver and NVIDIA's libraries report, without opening a GPU: for reports on a machine.

use std::ffi::CStr;

use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice, CUdevice_attribute};
use candle_core::cuda_backend::cudarc::driver::{DriverError, result, sys};
use candle_core::cuda_backend::cudarc::{cublaslt, cudnn};

/// The smallest number that can be a version; smaller ones are the error codes that stand for a library that could not be loaded.
const SMALLEST_VERSION: usize = 10_000;

/// The answers of all of them.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The newest CUDA that the driver knows (major, minor) and its GPUs, or why it does not answer.
    pub driver: Result<((i32, i32), Vec<GpuFacts>), String>,
    /// cuDNN's version: major, minor, patch.
    pub cudnn: Option<[usize; 3]>,
    /// cuBLASLt's.
    pub cublas_lt: Option<[usize; 3]>,
}

/// A GPU.
#[derive(Clone, Debug)]
pub struct GpuFacts {
    /// The product.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
}

/// Asks all of them.
pub fn survey() -> Survey {
    let (cudnn, cublas_lt) = library_versions();
    Survey { driver: driver().map_err(|error| in_words(&error)), cudnn: version(cudnn), cublas_lt: version(cublas_lt) }
}

fn driver() -> Result<((i32, i32), Vec<GpuFacts>), DriverError> {
    result::init()?;
    let version = driver_version()?;
    let gpus = (0..result::device::get_count()?).map(|ordinal| facts(result::device::get(ordinal)?));
    Ok(((version / 1000, version % 1000 / 10), gpus.collect::<Result<_, _>>()?))
}

/// The newest CUDA that the driver knows, in the driver's own number: 13000 is 13.0.
pub(super) fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: writes one number, to a place for it.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

/// cuDNN's and cuBLASLt's, in their own numbers.
pub(super) fn library_versions() -> (usize, usize) {
    // SAFETY: functions without arguments that need no context; a library that is missing answers with a small number.
    unsafe { (cudnn::sys::cudnnGetVersion(), cublaslt::sys::cublasLtGetVersion()) }
}

fn facts(device: CUdevice) -> Result<GpuFacts, DriverError> {
    // SAFETY: a device that the driver has just named.
    let ask = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let major = ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // SAFETY: as before.
    let memory = unsafe { result::device::total_mem(device) }?;
    Ok(GpuFacts { name: result::device::get_name(device)?, capability: (major, minor), memory })
}

/// The driver's text for an error, and its name.
pub(super) fn in_words(error: &DriverError) -> String {
    let text = |text: Result<&CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned()).ok();
    match (text(error.error_string()), text(error.error_name())) {
        (Some(words), Some(name)) => format!("{words} ({name})"),
        (Some(words), None) => format!("{words} ({:?})", error.0),
        _ => format!("{:?}", error.0),
    }
}

/// `91900` is 9.19.0, `130100` is 13.1.0. What a missing library answers is an `int`, whose upper half means nothing.
fn version(number: usize) -> Option<[usize; 3]> {
    let number = number & 0xFFFF_FFFF;
    (number >= SMALLEST_VERSION).then_some([number / 10_000, number / 100 % 100, number % 100])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_error_codes_are_none() {
        assert_eq!(version(91_900), Some([9, 19, 0]));
        assert_eq!(version(130_102), Some([13, 1, 2]));
        assert_eq!(version(1001), None);
        assert_eq!(version(0x7F00_0000_0001), None);
    }
}
