//! The four IDX files of MNIST, Fashion-MNIST, KMNIST, ...: big-endian numbers, then bytes.

use super::{Parts, RawSource, Shape, find, load};
use crate::error::DataError;
use crate::store::{FileInfo, Store};

const KIND: &str = "IDX data set";
/// Images and labels to learn from, then those of the test, as candle-datasets expects them.
const NAMES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
/// Unsigned bytes in three dimensions, and in one.
const IMAGES: u32 = 0x0803;
const LABELS: u32 = 0x0801;
/// A file of this size takes nine times as much while it is read, as candle-datasets makes floats of it, and these twice.
const MAX_BYTES: u64 = 256 << 20;
const MAX_SIDE: u64 = 4096;

/// Opens the files among `files`.
pub(in crate::format) fn open(
    place: &str,
    store: &dyn Store,
    files: &[FileInfo],
    split: Option<&str>,
) -> Result<RawSource, DataError> {
    let parts = Parts::of(split, place)?;
    let (folder, found) = find(place, KIND, store, files, &NAMES)?;
    let mut shapes = Vec::new();
    for pair in found.chunks_exact(2) {
        let [count, height, width] = header(store, pair[0], IMAGES)?;
        let [labels] = header(store, pair[1], LABELS)?;
        if labels != count {
            return Err(bad(store, pair[1], format!("{labels} labels for {count} images")));
        }
        if height.max(width) > MAX_SIDE || height.min(width) == 0 {
            return Err(bad(store, pair[0], format!("images of {width}x{height} pixels")));
        }
        shapes.push(Shape { height: height as usize, width: width as usize, channels: 1 });
    }
    let shape = shapes[0];
    if shapes.iter().any(|other| (other.height, other.width) != (shape.height, shape.width)) {
        return Err(bad(store, found[2], "images of another size than those to learn from".to_owned()));
    }
    let data = load(place, KIND, || candle_datasets::vision::mnist::load_dir(folder))?;
    let (train, test) = ((data.train_images, data.train_labels), (data.test_images, data.test_labels));
    let parts: Vec<_> =
        [(parts.train, train), (parts.test, test)].into_iter().filter(|(t, _)| *t).map(|(_, p)| p).collect();
    RawSource::new(place, KIND, shape, &parts, None)
}

fn bad(store: &dyn Store, file: &FileInfo, reason: String) -> DataError {
    DataError::BadFile { place: store.place(&file.name).display().to_string(), format: "IDX file", reason }
}

/// The sizes of the dimensions, which must be those of the file.
fn header<const N: usize>(store: &dyn Store, file: &FileInfo, magic: u32) -> Result<[u64; N], DataError> {
    let length = 4 + 4 * N as u64;
    if !(length..=MAX_BYTES).contains(&file.size) {
        return Err(bad(store, file, format!("{} bytes, expected {length} to {MAX_BYTES}", file.size)));
    }
    let bytes = store.read_one(file, 0..length)?;
    let mut numbers = bytes.chunks_exact(4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap_or_default()));
    let found = numbers.next().unwrap_or(0);
    if found != magic {
        return Err(bad(store, file, format!("it begins with {found:#010x}, expected {magic:#010x}")));
    }
    let mut sizes = [0; N];
    sizes.iter_mut().zip(numbers).for_each(|(size, number)| *size = u64::from(number));
    let claimed = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
    if sizes[0] == 0 || claimed.and_then(|claimed| claimed.checked_add(length)) != Some(file.size) {
        let sizes = sizes.map(|size| size.to_string()).join(" x ");
        return Err(bad(
            store,
            file,
            format!("it claims {sizes} values, but has {} bytes of them", file.size - length),
        ));
    }
    Ok(sizes)
}
