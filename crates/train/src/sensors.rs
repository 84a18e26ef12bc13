//! What the GPUs of this machine say of themselves: how busy and how warm they are, how much memory and power they take. NVIDIA's library
//! NVML is loaded when the program runs; where there is none, or it does not know a number, that is left out.
//!
//! It counts all GPUs of the machine in its own order, whatever `CUDA_VISIBLE_DEVICES` says, and what other processes do counts too.

use std::ffi::OsStr;

use ddpm_run::metrics::GpuState;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

/// The library under the name that a driver installs; the other is a link that only development packages bring.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// See the module.
#[derive(Debug)]
pub struct Sensors(Nvml);

impl Sensors {
    /// Those of this machine, if it has a driver.
    pub fn open() -> Option<Self> {
        Self::of(LIBRARY.as_ref())
    }

    fn of(library: &OsStr) -> Option<Self> {
        Nvml::builder().lib_path(library).init().ok().map(Self)
    }

    /// The GPUs' names and what they say now.
    pub fn read(&self) -> Vec<(String, GpuState)> {
        let devices = (0..self.0.device_count().unwrap_or(0)).filter_map(|index| self.0.device_by_index(index).ok());
        let read = devices.map(|device| {
            let state = GpuState {
                busy: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
                memory_bytes: device.memory_info().ok().map(|memory| memory.used),
                temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
                power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
            };
            (device.name().unwrap_or_else(|_| "unknown".to_owned()), state)
        });
        read.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    /// As much of NVML as is called: two GPUs, of which the second has no fan to measure power at.
    const FAKE: &str = r#"
        #include <string.h>
        typedef struct { unsigned gpu, memory; } rates;
        typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
        int nvmlInit_v2(void) { return 0; }
        int nvmlShutdown(void) { return 0; }
        int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
        int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(long)(index + 1); return 0; }
        int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "Fake 100", length); return 0; }
        int nvmlDeviceGetUtilizationRates(void *device, rates *r) { r->gpu = 37; r->memory = 12; return 0; }
        int nvmlDeviceGetMemoryInfo_v2(void *device, memory *m) { m->total = 1000; m->used = 321; return 0; }
        int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *t) { *t = 61; return 0; }
        int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) { if (device == (void *)2) return 3; *mw = 70500; return 0; }
    "#;

    #[test]
    fn the_numbers_are_those_of_the_library_and_what_it_does_not_know_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (source, library) = (dir.path().join("fake.c"), dir.path().join("libnvidia-ml.so.1"));
        std::fs::write(&source, FAKE).unwrap();
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
        assert!(built.success());
        let state = GpuState {
            busy: Some(0.37),
            memory_bytes: Some(321),
            temperature_celsius: Some(61),
            power_watts: Some(70.5),
        };
        let second = GpuState { power_watts: None, ..state };
        let name = || "Fake 100".to_owned();
        let sensors = Sensors::of(library.as_os_str()).unwrap();
        assert_eq!(sensors.read(), [(name(), state), (name(), second)]);
    }

    #[test]
    fn no_library_is_no_error() {
        assert!(Sensors::of("/nowhere/libnvidia-ml.so.1".as_ref()).is_none());
    }
}
