//! The part of a run that a profiler sees: `DDPM_GPU_PROFILE=1` with `ncu --profile-from-start off` or `nsys profile -c
//! cudaProfilerApi`.

use candle_core::cuda_backend::cudarc::driver::{profiler_start, profiler_stop};

use super::{Gpu, refused};
use crate::error::{KernelError, Result};

/// The environment variable.
const VARIABLE: &str = "DDPM_GPU_PROFILE";

impl Gpu {
    /// Runs `work` between the calls that start and stop a waiting profiler, so that it sees this work and nothing else.
    ///
    /// # Errors
    /// The work's own; the driver refuses.
    pub fn profiled<T, E: From<KernelError>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty() || value == "0") {
            return work();
        }
        let fail = || refused("asking a profiler to look");
        self.synchronize()?;
        profiler_start().map_err(fail())?;
        let done = work();
        let ended = self.synchronize().and_then(|()| profiler_stop().map_err(fail()));
        let done = done?;
        ended?;
        Ok(done)
    }
}
