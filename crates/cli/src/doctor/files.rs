//! NVIDIA's driver and libraries as files, in a build that does not use them: what a build for GPUs would find.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Finding, Status};

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

/// Driver, libraries, and whether this build can use them.
pub(super) fn findings() -> Vec<Finding> {
    let driver = driver();
    let has_gpu = driver.status == Status::Found;
    vec![
        driver,
        library("CUDA", "libcudart.so", has_gpu),
        library("cuDNN", "libcudnn.so", has_gpu),
        library("NCCL", "libnccl.so", has_gpu),
        build(has_gpu),
    ]
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
    if has_gpu {
        let advice = "to use the GPU, build with --features cuda (docs/cuda.md)";
        return Finding::absent("this build", "CPU only", advice);
    }
    Finding::found("this build", "CPU only")
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
