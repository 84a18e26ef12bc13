//! The emulator's counters of the driver's calls. The model crate's tests use this file too.

use std::ffi::{CString, c_char, c_long, c_void};

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

    /// How often what begins so was called.
    pub(crate) fn get(&self, prefix: &str) -> i64 {
        let prefix = CString::new(prefix).unwrap();
        (self.get)(prefix.as_ptr())
    }
}
