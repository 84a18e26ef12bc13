//! Data that is part of the binary, so that the quick start needs no network and no file.

use super::parquet::ParquetSource;
use crate::error::DataError;

/// The first 10,000 training images of Fashion-MNIST: 28x28 grey PNGs, ten classes (Zalando Research, MIT licence).
const FASHION10K: &[u8] = include_bytes!("../../../../assets/fashion10k.parquet");

const KNOWN: &[(&str, &[u8])] = &[("fashion10k", FASHION10K)];

/// Opens `builtin:NAME`; each embedded set is a training split.
pub(super) fn open(name: &str, split: Option<&str>) -> Result<ParquetSource, DataError> {
    if let Some(split) = split.filter(|split| *split != "train") {
        let (split, place, found) = (split.to_owned(), format!("builtin:{name}"), vec!["train".to_owned()]);
        return Err(DataError::UnknownSplit { split, place, found });
    }
    match KNOWN.iter().find(|(known, _)| *known == name) {
        Some((known, bytes)) => ParquetSource::embedded(&format!("builtin:{known}"), bytes),
        None => {
            let known = KNOWN.iter().map(|(known, _)| *known).collect();
            Err(DataError::UnknownBuiltin { name: name.to_owned(), known })
        }
    }
}
