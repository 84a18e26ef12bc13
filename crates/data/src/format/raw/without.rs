//! Stands in for the readers of IDX and CIFAR in a build without candle-datasets.

use super::folder::FolderSource;
use crate::error::DataError;
use crate::store::{FileInfo, Store};

const FORMAT: &str = "a set of raw pixels (the feature `datasets` is not part of this build)";

fn refuse(place: &str) -> Result<FolderSource, DataError> {
    Err(DataError::Unsupported { found: place.to_owned(), format: FORMAT })
}

/// Refuses.
pub(super) fn open_idx(place: &str, _: &dyn Store, _: &[FileInfo], _: Option<&str>) -> Result<FolderSource, DataError> {
    refuse(place)
}

/// Refuses.
pub(super) fn open_cifar(
    place: &str,
    _: &dyn Store,
    _: &[FileInfo],
    _: Option<&str>,
) -> Result<FolderSource, DataError> {
    refuse(place)
}
