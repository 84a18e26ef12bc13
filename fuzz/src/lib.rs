//! What the fuzz targets share: limits on memory, panics that leave a parser, and files that hold the bytes.
//!
//! A target hands its bytes to what the program calls when it meets such a file; whatever comes of it is right, an error included,
//! but a panic that leaves the library, more than [`LIMIT`] bytes at once, or no end (libFuzzer's `-timeout`). A panic that the
//! library catches is an error like any other: the walls around decoders of others are meant.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use ddpm_data::{ImageLimits, ImageSize, OpenOptions, Source, StoreOptions, inspect};
use tempfile::TempDir;

/// Bytes that may be held at once; libFuzzer's own limits see only what was touched, and only now and then.
pub const LIMIT: usize = 512 << 20;

/// What was asked for beyond the limit is refused, which ends the process unless the library can do without.
struct Limited;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Limited = Limited;

impl Limited {
    fn take(bytes: usize) -> bool {
        if HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= LIMIT {
            return true;
        }
        HELD.fetch_sub(bytes, Ordering::Relaxed);
        eprintln!("{bytes} bytes beside {} that are held: more than {LIMIT}", HELD.load(Ordering::Relaxed));
        eprintln!("{}", Backtrace::force_capture());
        false
    }
}

// SAFETY: all memory comes from `System` with the layouts that it was asked for, and goes back there; a null pointer is an allocator's
// word for a refusal. What a refusal prints allocates little, and so is not refused in turn.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        if Self::take(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        if Self::take(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `memory` came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The last panic, which is printed if it leaves the library.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// To be called once, before the first input.
pub fn begin() {
    std::panic::set_hook(Box::new(|panic| {
        let text = format!("{panic}\n{}", Backtrace::force_capture());
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }));
}

/// Runs the library; a panic that leaves it ends the process, as libFuzzer wants it.
pub fn survives<T>(run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        eprintln!("{}", PANIC.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort()
    })
}

/// A folder for the files of one input after another. scripts/fuzz removes it with all others in `$TMPDIR`.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// The path of `name` in the folder.
pub fn path(name: &str) -> PathBuf {
    FOLDER.path().join(name)
}

/// Writes a file, and the folders around it.
pub fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = path(name);
    std::fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("a folder");
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// Opens the file or folder `name` as data and looks at images, as `ddpm data inspect` does and training would.
pub fn look(name: &str) {
    survives(|| {
        // Without a folder for indices, or the second look at an input would not be the first.
        let stores = StoreOptions { cache_dir: Some(path("no/cache")), ..StoreOptions::default() };
        let options = OpenOptions { split: Some("all".to_owned()), stores, ..OpenOptions::default() };
        let Ok(source) = ddpm_data::open(&path(name).display().to_string(), &options) else { return };
        look_at(&*source);
    });
    let _ = std::fs::remove_dir_all(path("no"));
}

/// All images of a few; of many, as damaged files may claim, the first, one in the middle and the last.
pub fn look_at(source: &dyn Source) {
    let _ = (source.describe(), source.notices(), source.class_names(), source.fingerprint());
    if source.len() > 64 {
        for index in [0, 1, source.len() / 2, source.len() - 1] {
            let _ = source.read(index);
        }
        return;
    }
    if let Ok(found) = inspect(source, 1, ImageLimits::default(), &|_| {}) {
        let _ = found.preview(source, 4, ImageSize::square(32), 3);
        let _ = found.preview(source, 1, ImageSize::square(16), 1);
    }
}
