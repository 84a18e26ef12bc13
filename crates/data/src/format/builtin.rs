//! Data that is part of the binary, so that the quick start needs no network and no file.

use std::path::Path;
use std::sync::Arc;

use super::parquet::ParquetSource;
use super::split;
use crate::error::DataError;
use crate::store::{EmbeddedStore, Store};

/// The first 10,000 training images of Fashion-MNIST: 28x28 grey PNGs, ten classes (Zalando Research, MIT licence).
const FASHION10K: &[u8] = include_bytes!("../../../../assets/fashion10k.parquet");

const KNOWN: EmbeddedStore = EmbeddedStore(&[("builtin:fashion10k", FASHION10K)]);

/// Opens `builtin:NAME`; each embedded set is a training split.
pub(super) fn open(name: &str, split: Option<&str>) -> Result<ParquetSource, DataError> {
    if let Some(split) = split.filter(|split| !["train", split::ALL].contains(split)) {
        let (split, place, found) = (split.to_owned(), format!("builtin:{name}"), vec!["train".to_owned()]);
        return Err(DataError::UnknownSplit { split, place, found });
    }
    let place = format!("builtin:{name}");
    let Some(file) = KNOWN.list()?.files.into_iter().find(|file| file.name == Path::new(&place)) else {
        let known = KNOWN.0.iter().map(|(known, _)| *known).collect();
        return Err(DataError::UnknownBuiltin { name: name.to_owned(), known });
    };
    let store: Arc<dyn Store> = Arc::new(KNOWN);
    ParquetSource::open(&place, &store, vec![file], None)
}
