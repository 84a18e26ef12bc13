//! CIFAR-10, binary version: six files of 10,000 records, a label and 32x32 red, green and blue values.

use super::{Parts, RawSource, Shape, find, load};
use crate::error::DataError;
use crate::store::{FileInfo, Store};

const KIND: &str = "CIFAR-10 (binary version)";
/// As candle-datasets expects them.
const NAMES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
const SHAPE: Shape = Shape { height: 32, width: 32, channels: 3 };
const FILE_BYTES: u64 = 10_000 * (1 + 3 * 32 * 32);
const CLASSES: usize = 10;
/// The names of the classes, one a line.
const META: &str = "batches.meta.txt";

/// Opens the files among `files`.
pub(in crate::format) fn open(
    place: &str,
    store: &dyn Store,
    files: &[FileInfo],
    split: Option<&str>,
) -> Result<RawSource, DataError> {
    let parts = Parts::of(split, place)?;
    let (folder, found) = find(place, KIND, store, files, &NAMES)?;
    if let Some(odd) = found.iter().find(|file| file.size != FILE_BYTES) {
        let reason = format!("{} bytes, expected {FILE_BYTES}", odd.size);
        let place = store.place(&odd.name).display().to_string();
        return Err(DataError::BadFile { place, format: "batch of CIFAR-10", reason });
    }
    let names = names(store, files)?;
    let data = load(place, KIND, || candle_datasets::vision::cifar::load_dir(folder))?;
    let (train, test) = ((data.train_images, data.train_labels), (data.test_images, data.test_labels));
    let parts: Vec<_> =
        [(parts.train, train), (parts.test, test)].into_iter().filter(|(t, _)| *t).map(|(_, p)| p).collect();
    RawSource::new(place, KIND, SHAPE, &parts, names)
}

fn names(store: &dyn Store, files: &[FileInfo]) -> Result<Option<Vec<String>>, DataError> {
    let Some(file) = files.iter().find(|file| file.name.ends_with(META) && file.size < 1 << 16) else {
        return Ok(None);
    };
    let bytes = store.read_one(file, 0..file.size)?;
    let text = String::from_utf8_lossy(&bytes);
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Ok(Some(names).filter(|names| names.len() == CLASSES))
}
