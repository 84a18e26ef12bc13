//! Files of the user's cache, which processes share.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A file beside its place that nobody wrote to for so long was left by a process that was killed.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Writes a file by `fill` beside its place, as `NAME.PROCESS-NUMBER.tmp`, and renames it: so nobody ever reads half of it.
pub(crate) fn write_beside(path: &Path, fill: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let unique = format!("{}-{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let beside = path.with_extension(unique);
    let written = File::create(&beside).and_then(fill).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Perhaps it was never made.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Removes what killed processes left in a folder of the cache. By age, as a process of another machine may share the folder; one
/// that still writes after all only fails to keep its file.
pub(crate) fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let is_beside = |path: &PathBuf| path.extension().is_some_and(|end| end == "tmp");
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_beside) {
        let age = path.metadata().and_then(|known| known.modified()).ok().and_then(|changed| changed.elapsed().ok());
        if age.is_some_and(|age| age > FORGOTTEN) {
            // Another process may have been faster.
            let _ = fs::remove_file(path);
        }
    }
}
