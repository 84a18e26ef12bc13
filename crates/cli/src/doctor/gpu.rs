//! NVIDIA's driver and libraries, by calling them, in a build for GPUs.

use ddpm_kernels::cuda::survey::{GpuFacts, survey};
use ddpm_kernels::cuda::switches::{Off, VARIABLE};
use ddpm_run::memory::format_bytes;

use super::Finding;

/// The kernels' PTX is for this compute capability and those above.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// The CUDA that this program is built with, which the driver must know.
const CUDA: i32 = 13;
/// The cuDNN it calls.
const CUDNN: usize = 9;
const PLACES: &str =
    "put its folder into LD_LIBRARY_PATH or CUDA_LIB_DIRS; CUDA_LAZY_VERBOSE=1 says why it could not be loaded";

/// Driver, GPUs, libraries.
pub(super) fn findings() -> Vec<Finding> {
    let survey = survey();
    let has_gpu = survey.driver.as_ref().is_ok_and(|(_, gpus)| !gpus.is_empty());
    let mut findings = vec![driver(&survey.driver)];
    findings.extend(survey.driver.iter().flat_map(|(_, gpus)| gpus.iter().enumerate().map(gpu)));
    findings.push(library("cuBLAS", survey.cublas_lt, CUDA as usize, has_gpu));
    findings.push(library("cuDNN", survey.cudnn, CUDNN, has_gpu));
    findings.push(Finding::found("this build", "CPU and CUDA"));
    findings.extend(turned_off());
    findings
}

/// The features that the environment turns off, if any.
fn turned_off() -> Option<Finding> {
    match Off::from_environment() {
        Ok(off) if off.is_empty() => None,
        Ok(off) => Some(Finding::problem(VARIABLE, format!("{off}: off"), "unset it for the speed that a GPU has")),
        Err(error) => Some(Finding::problem(VARIABLE, error.to_string(), "a GPU is not opened like this")),
    }
}

fn driver(answer: &Result<((i32, i32), Vec<GpuFacts>), String>) -> Finding {
    const NAME: &str = "NVIDIA driver";
    match answer {
        Err(error) => {
            let advice = "for a GPU: install NVIDIA's driver, 580 or newer; in a container, start it with --gpus all";
            Finding::absent(NAME, format!("does not answer: {error}"), advice)
        }
        Ok(((major, minor), gpus)) => {
            let detail =
                format!("knows CUDA {major}.{minor}, {} GPU{}", gpus.len(), if gpus.len() == 1 { "" } else { "s" });
            if gpus.is_empty() {
                Finding::problem(NAME, detail, "is the GPU passed into this container or machine?")
            } else if *major < CUDA {
                Finding::problem(NAME, detail, "this program needs CUDA 13: install a driver of version 580 or newer")
            } else {
                Finding::found(NAME, detail)
            }
        }
    }
}

fn gpu((number, facts): (usize, &GpuFacts)) -> Finding {
    let GpuFacts { name, capability, memory } = facts;
    let (major, minor) = capability;
    let detail = format!("cuda:{number}: {name}, compute capability {major}.{minor}, {}", format_bytes(*memory as u64));
    if *capability < LEAST_CAPABILITY {
        let (major, minor) = LEAST_CAPABILITY;
        let advice = format!("too old: the kernels need compute capability {major}.{minor} (Ampere) or newer");
        return Finding::problem("GPU", detail, &advice);
    }
    Finding::found("GPU", detail)
}

fn library(name: &'static str, version: Option<[usize; 3]>, needed: usize, has_gpu: bool) -> Finding {
    match version {
        Some([major, minor, patch]) if major == needed => Finding::found(name, format!("{major}.{minor}.{patch}")),
        Some([major, minor, patch]) => Finding::problem(
            name,
            format!("{major}.{minor}.{patch}, not {needed}"),
            &format!("install {name} {needed}: {PLACES}"),
        ),
        None if has_gpu => {
            Finding::problem(name, "could not be loaded", &format!("install {name} {needed}, or {PLACES}"))
        }
        None => Finding::absent(name, "could not be loaded", "only a GPU needs it"),
    }
}
