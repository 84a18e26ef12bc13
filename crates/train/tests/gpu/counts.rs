//! What a training step asks of the driver, counted by the emulator: a step is one upload, one replay of a graph, two small
//! copies back, and nothing that waits.

use std::ffi::{CString, c_char, c_long, c_void};

use ddpm_train::config::presets;
use ddpm_train::training::step::Trainer;

use crate::{TINY, batches, gpu, plan};

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: i32) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The emulator's counters, if it is the emulator that runs.
pub(crate) struct Counters {
    reset: extern "C" fn(),
    get: extern "C" fn(*const c_char) -> c_long,
}

impl Counters {
    /// The driver must be loaded: open the GPU first.
    pub(crate) fn find() -> Option<Self> {
        const LOADED: i32 = 0x4 | 0x1;
        // SAFETY: looks up names in a library that is loaded already, and nothing else.
        let (reset, get) = unsafe {
            let library = dlopen(c"libcuda.so.1".as_ptr(), LOADED);
            if library.is_null() {
                return None;
            }
            (dlsym(library, c"emu_reset".as_ptr()), dlsym(library, c"emu_get".as_ptr()))
        };
        if reset.is_null() || get.is_null() {
            return None;
        }
        // SAFETY: the emulator's header declares them so.
        Some(unsafe {
            Self {
                reset: std::mem::transmute::<*mut c_void, extern "C" fn()>(reset),
                get: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_long>(get),
            }
        })
    }

    pub(crate) fn reset(&self) {
        (self.reset)();
    }

    pub(crate) fn get(&self, prefix: &str) -> i64 {
        let prefix = CString::new(prefix).unwrap();
        (self.get)(prefix.as_ptr())
    }
}

/// Launches that a step of the CIFAR-10 model may have; a launch costs the GPU about two microseconds.
const MOST_LAUNCHES: i64 = 1_200;

/// Where the emulator skips the arithmetic (GPU_EMULATOR_SKIP), of Ho's CIFAR-10 model; else of one that is computed quickly.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_step_is_one_upload_and_one_replay() {
    let (device, _turn) = gpu();
    let Some(counters) = Counters::find() else { return };
    let settings = [
        ("run.device", "cuda"),
        ("data.source", "builtin:fashion10k"),
        ("train.batch_size", "2"),
        ("train.precision", "bf16"),
    ];
    let text = match std::env::var_os("GPU_EMULATOR_SKIP") {
        Some(_) => presets::find("cifar10-ddpm").unwrap().text,
        None => TINY,
    };
    let plan = plan(text, &settings);
    let mut trainer = Trainer::new(&plan, &device).unwrap();
    let batches = batches(&plan);
    for step in 0..2 {
        trainer.step(&batches.batch_at(step).unwrap()).unwrap();
    }
    counters.reset();
    let batch = batches.batch_at(2).unwrap();
    counters.reset();
    trainer.step(&batch).unwrap();
    let count = |name| counters.get(name);
    let launches = count("graph kernel");
    println!("{launches} launches in a step");
    assert!(launches > 50, "{launches} launches: the step was not replayed");
    assert!(launches <= MOST_LAUNCHES, "{launches} launches");
    assert_eq!(count("api graph launch"), 1);
    assert_eq!(count("api HtoD"), 1, "uploads");
    assert_eq!(count("api DtoH"), 2, "downloads");
    // Without an event behind each copy the host would read and overwrite memory that is still being copied.
    assert_eq!(count("api cuEventRecord"), 2, "events recorded");
    for name in ["kernel", "api cuMemAlloc", "api memset", "api sync", "api cudnn", "api cublasLt heuristics"] {
        assert_eq!(count(name), 0, "{name}");
    }
}
