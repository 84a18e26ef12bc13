//! Compiles the device code with the feature `cuda`: `cuda/*.cu` to one fat binary that holds machine code for Ampere
//! (sm_80) and Hopper (sm_90) and PTX for whatever comes later. Without the feature it does nothing and needs no nvcc.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the fat binary holds: compute capability and whether as machine code or PTX.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile(&PathBuf::from(env::var("OUT_DIR")?))?;
    }
    Ok(())
}

/// One file includes them all, so that they are one module and are loaded by one call.
fn compile(out_dir: &Path) -> Result<(), Box<dyn Error>> {
    let folder = env::current_dir()?.join("cuda");
    let mut sources: Vec<PathBuf> =
        folder.read_dir()?.map(|entry| Ok(entry?.path())).collect::<Result<_, Box<dyn Error>>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let includes: String = sources.iter().map(|path| format!("#include \"{}\"\n", path.display())).collect();
    let module = out_dir.join("kernels.cu");
    std::fs::write(&module, includes)?;
    let nvcc = nvcc();
    let status = Command::new(&nvcc)
        .args(["--fatbin", "-std=c++17", "-O3", "--threads=2", "-I"])
        .arg(&folder)
        .args(TARGETS.map(|target| format!("-gencode={target}")))
        .arg("-o")
        .arg(out_dir.join("kernels.fatbin"))
        .arg(&module)
        .status()
        .map_err(|error| {
            format!("{} cannot be run ({error}): scripts/cuda-toolchain makes a CUDA toolchain", nvcc.display())
        })?;
    if status.success() { Ok(()) } else { Err("nvcc refused the device code".into()) }
}

fn nvcc() -> PathBuf {
    match (env::var_os("NVCC"), env::var_os("CUDA_HOME")) {
        (Some(nvcc), _) => nvcc.into(),
        (None, Some(home)) => Path::new(&home).join("bin/nvcc"),
        (None, None) => "nvcc".into(),
    }
}
