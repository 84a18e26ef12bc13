//! `ddpm doctor`: what this machine has, and what to do about what it lacks.
//!
//! Libraries are looked for as files and never loaded: a broken driver must not take the doctor with it. Of the hub's
//! token only the presence is told.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::utils::cuda_is_available;
use ddpm_kernels::simd;
use serde::Serialize;
use serde_json::json;

use super::{Align, Output, Table};
use crate::error::Failure;
use crate::hub::{DEFAULT_ENDPOINT, Settings};
use crate::memory::{disk_free, format_bytes};

/// Below this a run is likely to meet a full disk.
const LITTLE_DISK: u64 = 2 << 30;
/// Where a distribution or NVIDIA's installer puts libraries.
const LIBRARY_FOLDERS: [&str; 8] = [
    "/usr/local/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/lib/wsl/lib",
];

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// It is there.
    Found,
    /// It is not, and nothing needs it.
    Absent,
    /// It is not as it should be.
    Problem,
}

/// One thing that was looked at.
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

/// Looks at everything and reports.
pub(super) fn run(output: &Output) -> Result<(), Failure> {
    let driver = driver();
    let has_gpu = driver.status == Status::Found;
    let hub = Settings::from_environment();
    let findings = [
        cpu(),
        vectors(),
        memory(),
        disk(),
        driver,
        library("CUDA", "libcudart.so", has_gpu),
        library("cuDNN", "libcudnn.so", has_gpu),
        library("NCCL", "libnccl.so", has_gpu),
        build(has_gpu),
        token(&hub),
        endpoint(&hub),
    ];
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

/// The instructions that the kernels were chosen for.
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

fn memory() -> Finding {
    let kib = |field| proc_field("/proc/meminfo", field)?.strip_suffix("kB")?.trim().parse::<u64>().ok();
    let (Some(total), Some(free)) = (kib("MemTotal"), kib("MemAvailable")) else {
        return Finding::absent("memory", "unknown on this system", "nothing: this is only for information");
    };
    let detail = format!("{} available of {}", format_bytes(free * 1024), format_bytes(total * 1024));
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

fn driver() -> Finding {
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let version = version.as_deref().and_then(|text| text.lines().next()).map(driver_version);
    let gpus = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    match version {
        Some(version) if gpus > 0 => Finding::found("NVIDIA driver", format!("{version}, {gpus} GPU")),
        Some(version) => {
            let advice = "is the GPU passed into this container or machine?";
            Finding::problem("NVIDIA driver", format!("{version}, but no GPU"), advice)
        }
        None => Finding::absent(
            "NVIDIA driver",
            "not found",
            "for a GPU: install NVIDIA's driver; in a container, start it with --gpus all",
        ),
    }
}

/// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue ...": the word that begins with digits.
fn driver_version(line: &str) -> String {
    let number =
        line.split_whitespace().find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()));
    number.unwrap_or(line).to_owned()
}

fn library(name: &'static str, file: &str, has_gpu: bool) -> Finding {
    match find_library(&library_folders(), file) {
        Some(path) => Finding::found(name, path.display().to_string()),
        None if has_gpu => {
            Finding::absent(name, format!("{file} not found"), "install it, or add its folder to LD_LIBRARY_PATH")
        }
        None => Finding::absent(name, format!("{file} not found"), "only a GPU needs it"),
    }
}

/// The folders of the dynamic linker, those the user named first.
fn library_folders() -> Vec<PathBuf> {
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let cuda =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|root| Path::new(&root).join("lib64"));
    let configured = fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten();
    let configured: Vec<PathBuf> = configured
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .flat_map(|text| text.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect::<Vec<_>>())
        .collect();
    env::split_paths(&named).chain(cuda).chain(configured).chain(LIBRARY_FOLDERS.map(PathBuf::from)).collect()
}

/// The first file in `folders` whose name begins with `file` (`libcudart.so.12.4`).
fn find_library(folders: &[PathBuf], file: &str) -> Option<PathBuf> {
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file));
    folders.iter().find_map(|folder| {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(named).collect();
        paths.sort();
        paths.into_iter().next()
    })
}

fn build(has_gpu: bool) -> Finding {
    if cuda_is_available() {
        return Finding::found("this build", "CPU and CUDA");
    }
    if has_gpu {
        return Finding::absent("this build", "CPU only", "this version trains on the CPU; the GPU stays idle");
    }
    Finding::found("this build", "CPU only")
}

fn token(hub: &Result<Settings, Failure>) -> Finding {
    match hub {
        Ok(Settings { token: Some(token), .. }) => Finding::found("hub token", format!("in {}", token.place)),
        _ => Finding::absent("hub token", "not found", "only uploads and private models need one: set HF_TOKEN"),
    }
}

fn endpoint(hub: &Result<Settings, Failure>) -> Finding {
    const NAME: &str = "hub endpoint";
    match hub {
        Err(failure) => Finding::problem(NAME, &failure.message, failure.hint.as_deref().unwrap_or_default()),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_library_is_found_by_the_beginning_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libcudart.so.12"), "").unwrap();
        let folders = [PathBuf::from("/does/not/exist"), folder.path().to_owned()];
        assert_eq!(find_library(&folders, "libcudart.so"), Some(folder.path().join("libcudart.so.12")));
        assert_eq!(find_library(&folders, "libcudnn.so"), None);
    }

    #[test]
    fn the_driver_version_is_the_number_in_the_line() {
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024";
        assert_eq!(driver_version(line), "550.54.15");
    }
}
