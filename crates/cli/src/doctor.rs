//! `ddpm doctor`: reports what this machine has, and what to do about what is missing.
//!
//! A build for GPUs calls NVIDIA's libraries (`gpu`); any other looks for their files (`files`) and loads none. It reports only
//! whether the hub's token is present.

#[cfg_attr(feature = "cuda", path = "doctor/gpu.rs")]
#[cfg_attr(not(feature = "cuda"), path = "doctor/files.rs")]
mod nvidia;

use std::env;
use std::fs;
use std::path::Path;

use ddpm_hub::{DEFAULT_ENDPOINT, HubError, Settings};
use ddpm_kernels::simd;
use ddpm_run::limits;
use ddpm_run::memory::{self, disk_free, format_bytes};
use ddpm_run::metrics::GpuState;
use ddpm_train::sensors::Sensors;
use serde::Serialize;
use serde_json::json;

use super::{Align, Output, Table};
use crate::failure::Failure;

/// With less free space a run is likely to fill the disk.
const LITTLE_DISK: u64 = 2 << 30;
/// The state of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// It is there.
    Found,
    /// It is missing, but not needed.
    Absent,
    /// There is a problem with it.
    Problem,
}

/// An item that was checked.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    detail: String,
    /// What to do.
    advice: Option<String>,
}

impl Finding {
    fn found(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Found, detail: detail.into(), advice: None }
    }

    fn absent(name: &'static str, detail: impl Into<String>, advice: &str) -> Self {
        Self { name, status: Status::Absent, detail: detail.into(), advice: Some(advice.to_owned()) }
    }

    fn problem(name: &'static str, detail: impl Into<String>, advice: &str) -> Self {
        Self { status: Status::Problem, ..Self::absent(name, detail, advice) }
    }
}

/// Checks everything and reports.
pub(super) fn run(output: &Output) -> Result<(), Failure> {
    let hub = Settings::from_environment();
    let mut findings = vec![cpu(), vectors(), memory_of_machine(), disk()];
    findings.extend(nvidia::findings());
    findings.extend(sensors());
    findings.extend([token(&hub), endpoint(&hub)]);
    let version = env!("CARGO_PKG_VERSION");
    output.result(&json!({"version": version, "findings": findings}), || {
        let mut table = Table::new(&[Align::Left, Align::Left, Align::Left]);
        for Finding { name, status, detail, advice } in &findings {
            let mark = match status {
                Status::Found => "+",
                Status::Absent => "-",
                Status::Problem => "!",
            };
            table.row(&[&mark, name, detail]);
            if let Some(advice) = advice {
                table.row(&[&"", &"", &format!("  {advice}")]);
            }
        }
        let legend = "+ found   - not found, not needed on the CPU   ! needs attention";
        format!("ddpm {version}\n\n{}\n{legend}", table.render())
    })
}

fn cpu() -> Finding {
    let model = proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Finding::found("CPU", format!("{model}, {cores} cores available, {} threads used", rayon::current_num_threads()))
}

/// The instruction set that the kernels use.
fn vectors() -> Finding {
    let level = simd::level();
    let detail = format!("the kernels use {}", level.name());
    if level == simd::Level::Baseline && cfg!(target_arch = "x86_64") {
        return Finding::problem(
            "vectors",
            detail,
            "a CPU with AVX2 and FMA (2013 and later) is about five times faster",
        );
    }
    Finding::found("vectors", detail)
}

fn memory_of_machine() -> Finding {
    let (Some(total), Some(free)) = (memory::total(), memory::available()) else {
        return Finding::absent("memory", "unknown on this system", "nothing: this is only for information");
    };
    let mut detail = format!("{} available of {}", format_bytes(free), format_bytes(total));
    let machine = memory::of_machine("MemTotal:");
    if let Some((limit, machine)) = limits::memory(machine).zip(machine) {
        detail += &format!(" that {} allows, of the machine's {}", limit.by, format_bytes(machine));
    }
    Finding::found("memory", detail)
}

/// The disk of the current directory, where `runs/` goes.
fn disk() -> Finding {
    match disk_free(Path::new(".")) {
        Ok(free) if free < LITTLE_DISK => {
            let advice = "a run keeps several checkpoints: choose another disk with --run-dir";
            Finding::problem("disk", format!("only {} free here", format_bytes(free)), advice)
        }
        Ok(free) => Finding::found("disk", format!("{} free here", format_bytes(free))),
        Err(error) => Finding::problem("disk", error.to_string(), "check the current directory"),
    }
}

/// What GPUs say of themselves, in a build that asks them.
fn sensors() -> Vec<Finding> {
    let gpus = Sensors::open().map(|sensors| sensors.read()).unwrap_or_default();
    let finding = |(name, state): (String, GpuState)| {
        let GpuState { busy, memory_bytes, temperature_celsius, power_watts } = state;
        let parts = [
            busy.map(|busy| format!("{:.0}% busy", 100.0 * busy)),
            memory_bytes.map(|bytes| format!("{} taken", format_bytes(bytes))),
            temperature_celsius.map(|degrees| format!("{degrees} °C")),
            power_watts.map(|watts| format!("{watts:.0} W")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        Finding::found("GPU now", format!("{name}: {}", parts.join(", ")))
    };
    gpus.into_iter().map(finding).collect()
}

fn token(hub: &Result<Settings, HubError>) -> Finding {
    match hub {
        Ok(Settings { token: Some(token), .. }) => Finding::found("hub token", format!("in {}", token.place)),
        _ => Finding::absent("hub token", "not found", "only uploads and private models need one: set HF_TOKEN"),
    }
}

fn endpoint(hub: &Result<Settings, HubError>) -> Finding {
    const NAME: &str = "hub endpoint";
    match hub {
        Err(error) => Finding::problem(NAME, error.to_string(), &error.help()),
        Ok(_) if !cfg!(feature = "hub") => {
            Finding::absent(NAME, "not in this build", "build with the feature `hub` to push and pull")
        }
        Ok(hub) if hub.offline => {
            Finding::absent(NAME, "not used: HF_HUB_OFFLINE is set", "unset it to use the network")
        }
        Ok(hub) if hub.endpoint == DEFAULT_ENDPOINT => Finding::found(NAME, DEFAULT_ENDPOINT),
        Ok(hub) => Finding::found(NAME, format!("{} (HF_ENDPOINT)", hub.endpoint)),
    }
}

/// The value of the first `name : value` line of a file in /proc.
fn proc_field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, v)| v.trim().to_owned())
}
