//! Helpers that the unit tests of this crate share: small pictures, Parquet files made on the spot, and a broken source.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "stores")]
pub(crate) mod server;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use ddpm_kernels::image_size::ImageSize;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::store::{FileInfo, Listing, Piece, Store, StoreError};
use crate::{Crop, DataError, Fitting, LoaderConfig, OnCorrupt, Origin, RawImage, Share, Shuffle, Source};

/// A colourful picture without symmetry.
pub(crate) fn gradient(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 11) as u8, (y * 7) as u8, (x * y) as u8])
    }))
}

pub(crate) fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG of one grey value.
pub(crate) fn grey_png(size: u32, value: u8) -> Vec<u8> {
    let image = image::GrayImage::from_pixel(size, size, image::Luma([value]));
    encode(&DynamicImage::ImageLuma8(image), ImageFormat::Png)
}

/// One row of a test file: the image's bytes and its label.
pub(crate) type Row = (Option<Vec<u8>>, Option<i64>);

/// How a test file is laid out.
pub(crate) struct Layout {
    pub(crate) rows_per_group: usize,
    pub(crate) page_bytes: usize,
    pub(crate) version: WriterVersion,
    pub(crate) dictionary: bool,
    pub(crate) compression: Compression,
    pub(crate) huggingface: Option<String>,
}

impl Default for Layout {
    fn default() -> Self {
        let (version, compression) = (WriterVersion::PARQUET_1_0, Compression::SNAPPY);
        Self { rows_per_group: 100, page_bytes: 1 << 20, version, dictionary: true, compression, huggingface: None }
    }
}

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (UTF8); }
    optional int64 label;
}";

/// A Parquet file in Hugging Face's convention, without paths.
pub(crate) fn parquet_bytes(rows: &[Row], layout: &Layout) -> Vec<u8> {
    let metadata = layout.huggingface.clone().map(|json| vec![KeyValue::new("huggingface".to_owned(), json)]);
    let properties = WriterProperties::builder()
        .set_writer_version(layout.version)
        .set_compression(layout.compression)
        .set_dictionary_enabled(layout.dictionary)
        .set_data_page_size_limit(layout.page_bytes)
        .set_write_batch_size(1)
        .set_key_value_metadata(metadata);
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).unwrap();
    for rows in rows.chunks(layout.rows_per_group) {
        let mut group = file.next_row_group().unwrap();
        let images: Vec<ByteArray> = rows.iter().filter_map(|(b, _)| b.clone()).map(ByteArray::from).collect();
        let levels: Vec<i16> = rows.iter().map(|(b, _)| if b.is_some() { 2 } else { 1 }).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().filter_map(|(_, l)| *l).collect();
        let levels: Vec<i16> = rows.iter().map(|(_, l)| i16::from(l.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.into_inner().unwrap()
}

/// A file with other columns than images.
pub(crate) fn parquet_of_text() -> Vec<u8> {
    let schema =
        Arc::new(parse_message_type("message schema { required binary text (UTF8); required int64 n; }").unwrap());
    SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap().into_inner().unwrap()
}

/// A store that is not the disk: many pieces at once, and unavailable when a test says so.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    pub(crate) files: Vec<(PathBuf, Bytes)>,
    pub(crate) at_once: usize,
    pub(crate) down: AtomicBool,
    /// The number of pieces of each call.
    pub(crate) calls: Mutex<Vec<usize>>,
    /// Where the pieces begin that will be needed.
    pub(crate) needed: Mutex<Vec<u64>>,
}

impl Store for Remote {
    fn place(&self, file: &Path) -> PathBuf {
        Path::new("s3://far").join(file)
    }

    fn list(&self) -> Result<Listing, StoreError> {
        let files = self.files.iter().map(|(name, bytes)| FileInfo {
            name: name.clone(),
            size: bytes.len() as u64,
            version: 0,
        });
        Ok(Listing { files: files.collect(), passed_over: Vec::new() })
    }

    fn is_far(&self) -> bool {
        self.at_once > 1
    }

    fn will_need(&self, pieces: &[Piece<'_>]) -> Result<(), StoreError> {
        self.needed.lock().unwrap().extend(pieces.iter().map(|piece| piece.range.start));
        Ok(())
    }

    fn at_once(&self) -> usize {
        self.at_once
    }

    fn read(&self, pieces: &[Piece<'_>]) -> Vec<Result<Bytes, StoreError>> {
        self.calls.lock().unwrap().push(pieces.len());
        let one = |piece: &Piece<'_>| {
            if self.down.load(Ordering::Relaxed) {
                let (place, reason) = ("s3://far".into(), "503 after 8 attempts".into());
                return Err(StoreError::Unavailable { place, reason });
            }
            let (_, bytes) = self.files.iter().find(|(name, _)| *name == piece.file.name).unwrap();
            Ok(bytes.slice(piece.range.start as usize..piece.range.end as usize))
        };
        pieces.iter().map(one).collect()
    }
}

/// A file with an image and a label that is text.
pub(crate) fn parquet_with_text_labels() -> Vec<u8> {
    parquet_of_two_columns("message schema { required binary image; required binary label (UTF8); }")
}

/// A file with an image and a column of bytes.
pub(crate) fn parquet_of_two_columns(schema: &str) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    for value in [grey_png(4, 1), b"cat".to_vec()] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from(value)], None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.into_inner().unwrap()
}

/// `len` grey pictures of 8x8, sample `i` of value `i % 256` and label `i % 10`; some are corrupt.
pub(crate) struct Greys {
    pub(crate) len: usize,
    pub(crate) corrupt: fn(usize) -> bool,
}

impl Source for Greys {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        let mut bytes = grey_png(8, (index % 256) as u8);
        if (self.corrupt)(index) {
            bytes.truncate(20);
        }
        Ok(RawImage { id: format!("grey {index}"), bytes: bytes.into(), label: Some((index % 10) as u32) })
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> &str {
        "greys"
    }

    fn describe(&self) -> String {
        "greys".into()
    }
}

/// Batches of 16 grey 8x8 images, mirrored and labelled.
pub(crate) fn config() -> LoaderConfig {
    LoaderConfig {
        seed: 3,
        share: Share::whole(16),
        origin: Origin::default(),
        shuffle: Shuffle::Auto,
        image_size: ImageSize::square(8),
        limits: crate::ImageLimits::default(),
        channels: 1,
        crop: Crop::Random,
        fitting: Fitting::default(),
        flip: true,
        num_classes: Some(10),
        on_corrupt: OnCorrupt::Skip,
        max_corrupt: 0.1,
        workers: 2,
        prefetch: 2,
    }
}
