//! What a file system cannot do, and what is lost by that, said once per process.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// Something that a run relies on, and what it is worth without.
pub(crate) struct Weakness {
    what: &'static str,
    said: AtomicBool,
}

/// `fsync` of a directory.
pub(super) static DIRECTORY_SYNC: Weakness = Weakness::new(
    "cannot sync directories: a kill still loses nothing, but after a power failure the newest checkpoint may be missing and \
     the run goes on from the one before, which is kept for that",
);

/// `rename` of a directory.
pub(super) static DIRECTORY_RENAME: Weakness = Weakness::new(
    "cannot rename directories: checkpoints are copied into place, which takes twice the time and the space; one that a kill \
     leaves half-written is recognised and skipped",
);

/// `flock`.
pub(crate) static LOCKS: Weakness = Weakness::new(
    "cannot lock files: a lease file stands for the lock; a second process is refused while the first one renews it, but two \
     that start within the same second on two machines may not see each other",
);

impl Weakness {
    const fn new(what: &'static str) -> Self {
        Self { what, said: AtomicBool::new(false) }
    }

    /// Warns, unless that was done before.
    pub(crate) fn warn(&self, place: &Path, error: &io::Error) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!("{}: this file system {} ({error})", place.display(), self.what);
        }
    }
}

/// Whether a failed sync of a directory says that there is no such thing there. CIFS has EINVAL, some of FUSE ENOSYS, others EIO,
/// which on a file would be a broken disk.
pub(super) fn cannot_sync(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF | Errno::IO | Errno::NOSYS | Errno::ISDIR)
    )
}

/// Whether a failed rename of a directory says so. An overlay answers EXDEV for directories of its lower layers.
pub(super) fn cannot_rename(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::PERM))
}

/// Whether a failed `flock` says so.
pub(crate) fn cannot_lock(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::NOSYS | Errno::NOLCK | Errno::BADF | Errno::OPNOTSUPP))
        || error.kind() == io::ErrorKind::Unsupported
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}
