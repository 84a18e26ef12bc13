//! Every call that changes what is on a disk, in one place: a run's files are made, renamed and removed through here.
//!
//! Some file systems cannot do what a checkpoint relies on: CIFS, 9p, some of FUSE and WSL cannot sync a directory, some of FUSE
//! and old overlays cannot rename one. A run must start there too. What is missing is replaced by the next safe thing, and a
//! warning says once what is lost (`weak`).
//!
//! Tests make the call number k fail, be cut short or be the last one of a killed process or machine: `faults`. Outside of
//! tests nothing of that is compiled.

#[cfg(test)]
pub(crate) mod faults;
pub(crate) mod weak;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, RenameFlags, renameat_with};
use rustix::process::umask;

/// Files of this process are at most 0644 and directories 0755 from now on, whatever the user's umask allows; a stricter umask
/// counts. To be called before there are threads, which share the mask.
pub fn limit_modes() {
    let others_may_not_write = Mode::WGRP | Mode::WOTH;
    // There is no other way to read it.
    let mask = umask(others_may_not_write);
    umask(mask | others_may_not_write);
}

/// A file that is being written.
#[derive(Debug)]
pub struct Output {
    pub(crate) file: File,
    #[cfg(test)]
    path: std::path::PathBuf,
}

impl Output {
    /// A new file; there must be none of that name.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        Self::open(File::options().write(true).create_new(true), path)
    }

    /// A file of that name, empty.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::open(File::options().write(true).create(true).truncate(true), path)
    }

    /// A file opened as `options` say.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(options: &OpenOptions, path: &Path) -> io::Result<Self> {
        #[cfg(test)]
        let is_new = !path.exists();
        let file = call(|| options.open(path))?;
        Ok(Self {
            file,
            #[cfg(test)]
            path: faults::opened(path, is_new),
        })
    }

    /// The same file, for another thread.
    ///
    /// # Errors
    /// Too many files are open.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            #[cfg(test)]
            path: self.path.clone(),
        })
    }

    /// Makes its bytes durable.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(done) = faults::file_synced(&self.path) {
            return done;
        }
        self.file.sync_all()
    }

    /// Whether it is still what stands at `path`: not removed, replaced, or hidden by another mount. If that cannot be told, it is.
    pub fn is_at(&self, path: &Path) -> bool {
        is_at(&self.file, path)
    }

    /// Cuts it to `length` bytes, or fills it up with zeros.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        call(|| self.file.set_len(length))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        let bytes = match faults::write(bytes) {
            Ok(bytes) => bytes,
            Err((torn, error)) => {
                self.file.write_all(torn)?;
                return Err(error);
            }
        };
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether this user may write into the directory, as far as can be told without writing.
pub fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

/// See [`Output::is_at`].
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let there = match fs::metadata(path) {
        Ok(there) => there,
        Err(error) => return !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    file.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (there.dev(), there.ino()))
}

/// A new directory; its parent exists.
///
/// # Errors
/// The disk refuses.
pub fn create_dir(path: &Path) -> io::Result<()> {
    call(|| fs::create_dir(path))
}

/// A directory, and those above it, where they are missing.
///
/// # Errors
/// The disk refuses.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    call(|| fs::create_dir_all(path))
}

/// Renames a file or a directory; a file of the new name is replaced at once.
///
/// # Errors
/// The disk refuses.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    let renaming = faults::Renaming::begin(from, to)?;
    call(|| fs::rename(from, to))?;
    #[cfg(test)]
    renaming.done();
    Ok(())
}

/// Exchanges two names at once, where the file system can.
///
/// # Errors
/// It cannot, or the disk refuses.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(test)]
    let renaming = faults::Renaming::exchange(a, b)?;
    call(|| Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?))?;
    #[cfg(test)]
    renaming.done();
    Ok(())
}

/// Gives the directory `from` the name `to`, which is free. Where directories cannot be renamed, its files are copied in `order`,
/// and removed in the reverse order: the file that comes last is only ever seen in a whole directory.
///
/// # Errors
/// The disk refuses. Then `from` is whole, or `to` is.
pub fn move_dir(from: &Path, to: &Path, order: impl Fn(&str) -> usize) -> io::Result<()> {
    match rename(from, to) {
        Err(error) if weak::cannot_rename(&error) => {
            weak::DIRECTORY_RENAME.warn(from, &error);
            let mut names = fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort_by_key(|name| (order(&name.to_string_lossy()), name.clone()));
            let copied = create_dir(to)
                .and_then(|()| names.iter().try_for_each(|name| copy(&from.join(name), &to.join(name))))
                .and_then(|()| sync_dir(to));
            if let Err(error) = copied {
                // The first error is the one to report.
                let _ = remove_any(to);
                return Err(error);
            }
            names.iter().rev().try_for_each(|name| remove_any(&from.join(name)))?;
            remove_any(from)
        }
        renamed => renamed,
    }
}

/// A durable copy of a file, or of a directory with all in it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(from)?.is_dir() {
        create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        return sync_dir(to);
    }
    let mut copied = Output::create_new(to)?;
    io::copy(&mut File::open(from)?, &mut copied)?;
    copied.sync()
}

/// Deletes a file, or a directory with all in it; a link is deleted, not followed. Nothing there is no error.
///
/// # Errors
/// The disk refuses.
pub fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_dir(path),
        Ok(_) => call(|| fs::remove_file(path)),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Deletes a directory with nothing in it.
pub(crate) fn remove_empty_dir(path: &Path) -> io::Result<()> {
    call(|| fs::remove_dir(path))
}

/// Call by call, as a kill may fall between any two.
fn remove_dir(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        remove_any(&entry?.path())?;
    }
    remove_empty_dir(path)
}

/// Makes the names in `dir` durable: what was created, renamed or removed there survives a crash from now on. Where a directory
/// cannot be synced, the whole file system is asked to be, and a warning says what that is worth.
///
/// # Errors
/// The disk refuses; that it cannot sync a directory is none.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    sync_names(dir).map(|_| ())
}

/// The same; returns whether the names are sure to be durable.
pub(crate) fn sync_names(dir: &Path) -> io::Result<bool> {
    let opened = File::open(dir)?;
    match sync_opened(&opened, dir) {
        Err(error) if weak::cannot_sync(&error) => {
            weak::DIRECTORY_SYNC.warn(dir, &error);
            // The best that is left; it may be unable to do this too.
            #[cfg(target_os = "linux")]
            let _ = rustix::fs::syncfs(&opened);
            Ok(false)
        }
        synced => synced.map(|()| true),
    }
}

#[cfg_attr(not(test), expect(unused_variables, reason = "tests know a directory by its path"))]
fn sync_opened(dir: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if let Some(done) = faults::dir_synced(path) {
        return done;
    }
    dir.sync_all()
}

/// A call that tests can count and make fail.
fn call<T>(run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    faults::call()?;
    run()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::faults::{Lacking, on};
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_renamed_is_copied_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::write(from.join("a"), "1").unwrap();
        fs::write(from.join("deep/b"), "2").unwrap();
        on(Lacking { dir_rename: true, ..Lacking::default() }, || move_dir(&from, &to, |_| 0)).unwrap();
        assert!(!from.exists());
        assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(to.join("deep/b")).unwrap(), "2");
    }

    #[test]
    fn a_directory_that_cannot_be_synced_is_no_error_and_one_that_is_gone_is() {
        let dir = tempfile::tempdir().unwrap();
        on(Lacking { dir_sync: true, ..Lacking::default() }, || sync_dir(dir.path())).unwrap();
        assert_eq!(sync_dir(&dir.path().join("gone")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_link_is_removed_and_what_it_points_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, link) = (dir.path().join("kept"), dir.path().join("folder"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir(&link).unwrap();
        std::os::unix::fs::symlink(&kept, link.join("link")).unwrap();
        remove_any(&link).unwrap();
        assert!(kept.exists() && !link.exists());
        remove_any(&link).unwrap();
    }
}
