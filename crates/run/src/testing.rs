//! Helpers that the unit tests of this crate share.
#![allow(clippy::unwrap_used)]

use std::fs;

/// A fresh folder with these files, by their paths in it.
pub(crate) fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}
