//! The emulator: its counters of the driver's calls, and the size of its memory. The model crate's tests use this file too.

use std::ffi::{CString, c_char, c_long, c_void};

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: i32) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The emulator, if it is loaded.
pub(crate) struct Emulator {
    reset: extern "C" fn(),
    get: extern "C" fn(*const c_char) -> c_long,
    live_bytes: extern "C" fn() -> c_long,
}

impl Emulator {
    /// The driver must be loaded: open the GPU first.
    pub(crate) fn find() -> Option<Self> {
        const LOADED: i32 = 0x4 | 0x1;
        // SAFETY: looks up names in a library that is loaded already, and nothing else.
        let (reset, get, live_bytes) = unsafe {
            let library = dlopen(c"libcuda.so.1".as_ptr(), LOADED);
            if library.is_null() {
                return None;
            }
            let find = |name: &std::ffi::CStr| dlsym(library, name.as_ptr());
            (find(c"emu_reset"), find(c"emu_get"), find(c"emu_live_bytes"))
        };
        if reset.is_null() || get.is_null() || live_bytes.is_null() {
            return None;
        }
        // SAFETY: the emulator's header declares them so.
        Some(unsafe {
            Self {
                reset: std::mem::transmute::<*mut c_void, extern "C" fn()>(reset),
                get: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_long>(get),
                live_bytes: std::mem::transmute::<*mut c_void, extern "C" fn() -> c_long>(live_bytes),
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

    /// Bytes of device memory that are allocated.
    pub(crate) fn live_bytes(&self) -> i64 {
        (self.live_bytes)()
    }

    /// Makes allocations fail beyond so many bytes, or ends that.
    pub(crate) fn limit_memory(&self, bytes: Option<i64>) {
        set("GPU_EMULATOR_MEMORY", bytes.map(|bytes| bytes.to_string()).as_deref());
    }

    /// Makes cuDNN fail, `WHERE:CODE`, or ends that.
    #[allow(dead_code, reason = "the model crate's tests have no use for it")]
    pub(crate) fn fail_cudnn(&self, fault: Option<&str>) {
        set("GPU_EMULATOR_CUDNN_FAULT", fault);
    }
}

fn set(name: &str, value: Option<&str>) {
    // SAFETY: tests that use the GPU take turns, and nothing else here reads the environment meanwhile.
    unsafe {
        match value {
            Some(value) => std::env::set_var(name, value),
            None => std::env::remove_var(name),
        }
    }
}
