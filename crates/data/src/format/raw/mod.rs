//! Data sets that are arrays of pixels: the MNIST family (IDX) and CIFAR-10 (binary version), read by candle-datasets.
//!
//! Its loaders believe what a file says of itself, and read files from a disk whole; so each header is compared with the
//! file's size before, and the pixels stay in memory. As every source gives image files, a sample becomes a PNG when it is read.

mod cifar;
mod idx;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

pub(super) use self::cifar::open as open_cifar;
pub(super) use self::idx::open as open_idx;
use super::files::{Fingerprint, and_classes, slashed};
use super::split::{ALL, meaning};
use super::{RawImage, Source};
use crate::error::{DataError, counted, guard};
use crate::store::{FileInfo, Store};

/// Samples that are converted at a time: candle's loaders give four bytes a value.
const AT_ONCE: usize = 1000;

/// Images of one size, in memory.
#[derive(Debug)]
pub(super) struct RawSource {
    place: String,
    kind: &'static str,
    shape: Shape,
    /// `[N, H, W, C]`.
    pixels: Vec<u8>,
    labels: Vec<u8>,
    class_names: Option<Vec<String>>,
    fingerprint: String,
}

/// Of one image.
#[derive(Clone, Copy, Debug)]
struct Shape {
    height: usize,
    width: usize,
    channels: usize,
}

impl Shape {
    fn len(self) -> usize {
        self.height * self.width * self.channels
    }
}

/// Which of the two parts of such a data set are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    train: bool,
    test: bool,
}

impl Parts {
    fn of(split: Option<&str>, place: &str) -> Result<Self, DataError> {
        let (train, test) = match split {
            Some(ALL) => (true, true),
            None => (true, false),
            Some(name) => (meaning(name) == Some("train"), meaning(name) == Some("test")),
        };
        if train || test {
            return Ok(Self { train, test });
        }
        let (split, found) = (split.unwrap_or_default().to_owned(), ["train", "test"].map(str::to_owned).to_vec());
        Err(DataError::UnknownSplit { split, place: place.to_owned(), found })
    }
}

/// The files `names` of one folder, which is that of the first file that is called like one of them; on a disk.
fn find<'a>(
    place: &str,
    kind: &'static str,
    store: &dyn Store,
    files: &'a [FileInfo],
    names: &[&str],
) -> Result<(PathBuf, Vec<&'a FileInfo>), DataError> {
    let folder = files.iter().find(|file| names.iter().any(|name| file.name.ends_with(name)));
    let folder = folder.or(files.first()).and_then(|file| file.name.parent()).unwrap_or(Path::new(""));
    let of_name = |name: &&str| files.iter().find(|file| file.name == folder.join(name));
    let found: Vec<_> = names.iter().filter_map(of_name).collect();
    if found.len() < names.len() {
        let missing: Vec<&str> = names.iter().filter(|name| of_name(name).is_none()).copied().collect();
        let there: Vec<String> = files.iter().take(6).map(|file| slashed(&file.name)).collect();
        let reason = format!("{} must be there too; found {}", missing.join(", "), there.join(", "));
        return Err(DataError::NotWhole { place: place.to_owned(), kind, reason });
    }
    let Some(folder) = store.on_disk(folder) else {
        let reason = "it is read from a disk of this machine only".to_owned();
        return Err(DataError::NotWhole { place: place.to_owned(), kind, reason });
    };
    Ok((folder, found))
}

/// What candle-datasets gives, or its error.
fn load(
    place: &str,
    kind: &'static str,
    load: impl FnOnce() -> candle_core::Result<candle_datasets::vision::Dataset>,
) -> Result<candle_datasets::vision::Dataset, DataError> {
    let bad = |reason| DataError::BadFile { place: place.to_owned(), format: kind, reason };
    guard(|| load().map_err(|error| error.to_string())).map_err(bad)
}

impl RawSource {
    /// `parts` are images and labels of candle-datasets, the values from 0 to 1; `to_bytes` puts an image's channels last.
    fn new(
        place: &str,
        kind: &'static str,
        shape: Shape,
        parts: &[(Tensor, Tensor)],
        class_names: Option<Vec<String>>,
    ) -> Result<Self, DataError> {
        let bad = |reason| DataError::BadFile { place: place.to_owned(), format: kind, reason };
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for (images, classes) in parts {
            append(shape, images, &mut pixels).map_err(|error| bad(error.to_string()))?;
            labels.extend(classes.to_vec1::<u8>().map_err(|error| bad(error.to_string()))?);
        }
        if labels.is_empty() || pixels.len() != labels.len() * shape.len() {
            return Err(bad(format!("{} bytes of pixels for {} labels", pixels.len(), labels.len())));
        }
        if let Some((names, &class)) = class_names.as_ref().zip(labels.iter().max())
            && usize::from(class) >= names.len()
        {
            return Err(bad(format!("a label is {class}, but there are {} classes", names.len())));
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(&pixels);
        fingerprint.add(&labels);
        class_names.iter().flatten().for_each(|name| fingerprint.add(name.as_bytes()));
        let (place, fingerprint) = (place.to_owned(), fingerprint.finish());
        Ok(Self { place, kind, shape, pixels, labels, class_names, fingerprint })
    }
}

/// Appends `images`, from 0 to 1 and channels first, as bytes, channels last.
fn append(shape: Shape, images: &Tensor, pixels: &mut Vec<u8>) -> candle_core::Result<()> {
    let plane = shape.height * shape.width;
    pixels.reserve(images.elem_count());
    for start in (0..images.dim(0)?).step_by(AT_ONCE) {
        let count = AT_ONCE.min(images.dim(0)? - start);
        let values = images.narrow(0, start, count)?.flatten_all()?.to_vec1::<f32>()?;
        for image in values.chunks_exact(shape.len()) {
            let places = (0..plane).flat_map(|pixel| (0..shape.channels).map(move |channel| channel * plane + pixel));
            pixels.extend(places.map(|place| (image[place] * 255.0).round() as u8));
        }
    }
    Ok(())
}

impl Source for RawSource {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let Some(&label) = self.labels.get(index) else {
            return Err(DataError::NoSuchSample { index, len: self.len() });
        };
        let Shape { height, width, channels } = self.shape;
        let pixels = &self.pixels[index * self.shape.len()..][..self.shape.len()];
        let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let id = format!("image {index}");
        let mut bytes = Vec::with_capacity(pixels.len() + 128);
        // It is decoded again at once.
        let encoder =
            PngEncoder::new_with_quality(Cursor::new(&mut bytes), CompressionType::Fast, FilterType::NoFilter);
        match encoder.write_image(pixels, width as u32, height as u32, color) {
            Ok(()) => Ok(RawImage { id, bytes: bytes.into(), label: Some(label.into()) }),
            Err(error) => Err(DataError::Unreadable { sample: id, reason: error.to_string() }),
        }
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn describe(&self) -> String {
        let classes = and_classes(self.class_names.as_deref());
        format!("{}: {} of {}{classes}", self.place, counted(self.len(), "image"), self.kind)
    }
}
