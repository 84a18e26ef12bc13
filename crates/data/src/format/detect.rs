//! What a folder or a file holds, by the names in it, and what to do about what is not read.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use super::Format;
use super::files::{has_extension, shown};
use super::folder::EXTENSIONS;
use crate::store::FileInfo;

/// Endings of what often lies in the place of images: what it is, and what to do.
const OTHER_FORMATS: [(&[&str], &str, &str); 11] = [
    (&["zip", "7z", "rar"], "an archive", "unpack it, and give the folder"),
    (
        &["gz", "tgz", "bz2", "xz", "zst"],
        "a compressed file",
        "unpack it: in a compressed file nothing can be found by its place",
    ),
    (&["npz", "npy"], "NumPy's arrays", "save each image as a PNG file, in a folder for each class"),
    (&["h5", "hdf5", "mat"], "arrays in HDF5", "save each image as a PNG file, in a folder for each class"),
    (
        &["pkl", "pickle", "pt", "pth"],
        "Python's pickle, which runs code when it is read",
        "save each image as a PNG file",
    ),
    (
        &["bin"],
        "raw bytes (CIFAR-100's binary version is such, and is not read)",
        "take the data set as Parquet, as the Hugging Face hub has it",
    ),
    (&["tfrecord", "tfrecords"], "TensorFlow's records", "write them as tar shards or Parquet"),
    (&["mdb", "lmdb"], "an LMDB database", "write its images as tar shards or Parquet"),
    (&["heic", "heif", "avif", "jxl", "jp2"], "a kind of image that is not read", "convert them to JPEG or PNG"),
    (&["mp4", "mov", "avi", "mkv", "webm"], "a film", "save its frames as images"),
    (
        &["csv", "tsv", "jsonl"],
        "a table",
        "put it beside the images that it describes, as metadata.csv or metadata.jsonl",
    ),
];

/// What is not read about a file, and what to do; `None` for a file of no known kind.
pub(super) fn other_format(file: &Path) -> Option<(&'static str, &'static str)> {
    let known = OTHER_FORMATS.iter().find(|(endings, ..)| has_extension(file, endings));
    known.map(|&(_, what, advice)| (what, advice))
}

/// Whether a Parquet file holds images: in a folder of images, `metadata.parquet` would hold their labels.
pub(super) fn is_parquet(file: &FileInfo) -> bool {
    has_extension(&file.name, &["parquet"]) && !file.name.ends_with("metadata.parquet")
}

pub(super) fn is_tar(file: &FileInfo) -> bool {
    has_extension(&file.name, &["tar"])
}

pub(super) fn is_arrow(file: &FileInfo) -> bool {
    has_extension(&file.name, &["arrow"])
}

/// The name of a file of the MNIST family, perhaps compressed or with a dot for a dash.
pub(super) fn is_idx(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with("-ubyte") || name.ends_with(".idx")
}

/// The name of a file of CIFAR's binary or Python version.
pub(super) fn is_cifar(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("data_batch_") || name.starts_with("test_batch") || name == "batches.meta.txt"
}

/// Whether a file is of a kind.
type Is = fn(&FileInfo) -> bool;

/// How the files of a folder are best read.
pub(super) fn of_folder(files: &[FileInfo]) -> Format {
    let kinds: [(Format, Is); 6] = [
        (Format::Parquet, is_parquet),
        (Format::Folder, |file| has_extension(&file.name, EXTENSIONS)),
        (Format::Webdataset, is_tar),
        (Format::Arrow, is_arrow),
        (Format::Idx, |file| is_idx(&file.name)),
        (Format::Cifar, |file| is_cifar(&file.name)),
    ];
    kinds.into_iter().find(|(_, is)| files.iter().any(is)).map_or(Format::Folder, |(format, _)| format)
}

/// How a file is best read.
pub(super) fn of_file(file: &FileInfo) -> Option<Format> {
    let kinds = [
        (Format::Parquet, has_extension(&file.name, &["parquet"])),
        (Format::Webdataset, is_tar(file)),
        (Format::Arrow, is_arrow(file)),
    ];
    kinds.into_iter().find(|(_, is)| *is).map(|(format, _)| format)
}

/// What files there are, counted by ending, and what to do about those of a known kind.
pub(super) fn found(files: &[FileInfo]) -> String {
    let mut counts = BTreeMap::<String, (usize, &FileInfo)>::new();
    for file in files {
        let ending = file.name.extension().map_or("without an ending".into(), |e| format!(".{}", e.to_string_lossy()));
        counts.entry(ending).or_insert((0, file)).0 += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, (count, _))| Reverse(*count));
    let named: Vec<_> = counts.iter().take(6).map(|(e, (n, _))| format!("{n} {}", shown(Path::new(e)))).collect();
    let advice = counts.iter().find_map(|(ending, (_, file))| {
        other_format(&file.name).map(|(what, advice)| format!("; {} is {what}: {advice}", shown(Path::new(ending))))
    });
    match files.len() {
        0 => "found no files".to_owned(),
        1 => format!("found 1 file: {}{}", named.join(", "), advice.unwrap_or_default()),
        n => format!("found {n} files: {}{}", named.join(", "), advice.unwrap_or_default()),
    }
}
