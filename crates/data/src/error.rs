//! Errors of the data, each with what a person can do about it.
//!
//! Every message names the file or the configuration key, what was found and what was expected;
//! [`DataError::help`] says what to do next. A sample that cannot be read is [`DataError::Unreadable`] and may be
//! skipped (`data.on_corrupt`); everything else ends the run.

mod guard;
mod help;
mod refusal;
mod words;

use std::path::PathBuf;

use ddpm_kernels::image_size::ImageSize;

pub(crate) use self::guard::{guard, panic_message};
pub use self::refusal::Refusal;
pub use self::words::{counted, shown};
use self::words::{listed, shown_path};

/// The formats [`crate::open`] reads, for messages.
pub(crate) const WORKS_TODAY: &str = "builtin:fashion10k, a folder of images (png, jpg, webp, gif, bmp, tiff), .parquet files, .tar shards, or an Arrow, IDX or CIFAR folder; on a disk, or behind s3://, gs://, az://, https:// or hf://datasets/";

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path of `data.source` does not exist.
    #[error("data.source = {}: no such file or folder", shown(path))]
    NotFound {
        /// The path as it was given.
        path: String,
    },
    /// The operating system refused something.
    #[error("{}: cannot {action}", shown_path(path))]
    Io {
        /// What was tried: "open", "list the folder", "read".
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// A file has changed since the start.
    #[error("{}: the file has changed since it was listed: {what}", shown_path(path))]
    Changed {
        /// Where.
        path: PathBuf,
        /// What is other than it was.
        what: String,
    },
    /// A store behind a network does not give this.
    #[error("{}: {refusal}", shown_path(place))]
    Refused {
        /// The object, or the folder.
        place: PathBuf,
        /// Why not.
        refusal: Refusal,
    },
    /// `data.source` is an address that cannot be one of data.
    #[error("data.source = {}: {reason}", shown(found))]
    BadAddress {
        /// The source, without its query.
        found: String,
        /// What is wrong.
        reason: String,
        /// What to write.
        help: &'static str,
    },
    /// The whole source is out of reach, so that no sample of it can be judged.
    #[error("{}: the data cannot be reached: {reason}", shown_path(place))]
    Unavailable {
        /// The folder, or the server.
        place: PathBuf,
        /// What was found.
        reason: String,
    },
    /// `builtin:NAME` with a name that is not embedded.
    #[error("data.source = builtin:{}: there is no such embedded data set", shown(name))]
    UnknownBuiltin {
        /// The name after `builtin:`.
        name: String,
        /// The sources that exist, with their prefix.
        known: Vec<&'static str>,
    },
    /// A format or a place that this version does not read.
    #[error("data.source = {}: {format} is not read by this version", shown(found))]
    Unsupported {
        /// The source as it was given.
        found: String,
        /// The format or the place, by name.
        format: &'static str,
    },
    /// `data.format` contradicts what lies at `data.source`.
    #[error("data.format = {format}, but {} is {found}", shown_path(path))]
    FormatMismatch {
        /// The format asked for.
        format: &'static str,
        /// The source.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// `data.split` names no part of the source.
    #[error("data.split = {}: nothing in {} belongs to that split", shown(split), shown(place))]
    UnknownSplit {
        /// The split asked for.
        split: String,
        /// The source.
        place: String,
        /// Some names that are there.
        found: Vec<String>,
    },
    /// A source is laid out in splits, of which none is `train`.
    #[error("{}: data.split is not set, and there is no train; found {}", shown(place), listed(found))]
    NoTrainSplit {
        /// The source.
        place: String,
        /// The splits that are there.
        found: Vec<String>,
    },
    /// `metadata.csv` or `metadata.jsonl` cannot be read.
    #[error("{} line {line}: {reason}", shown_path(path))]
    BadMetadata {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// `data.split` has brackets without a slice in them, or with one that holds no sample.
    #[error("data.split = {split}: {}", match len {
        Some(len) => format!("no sample lies there: the source has {len}"),
        None => "expected NAME[FROM:TO] with whole numbers or percentages".to_owned(),
    })]
    BadSlice {
        /// The split asked for.
        split: String,
        /// The samples of the source, where it is known.
        len: Option<usize>,
    },
    /// The source holds no image.
    #[error("{}: no images ({detail})", shown(place))]
    Empty {
        /// The source.
        place: String,
        /// What was looked for, and what was found.
        detail: String,
    },
    /// A `.parquet` file whose structure cannot be read.
    #[error("{}: not a readable Parquet file: {reason}", shown(place))]
    BadParquet {
        /// The file.
        place: String,
        /// The reader's words.
        reason: String,
    },
    /// A Parquet file in which no column holds images.
    #[error(
        "{}: no image column; expected a struct with a binary field `bytes` (Hugging Face's image feature), found {}",
        shown(place),
        listed(columns)
    )]
    NoImageColumn {
        /// The file.
        place: String,
        /// Its columns with their types.
        columns: Vec<String>,
        /// What to do about one of them, where that is known.
        advice: Option<String>,
    },
    /// Two Parquet files of one source give the labels different names.
    #[error("{} names the classes otherwise than {}, so their labels cannot be mixed", shown(second), shown(first))]
    ClassNamesDiffer {
        /// The file whose names were taken.
        first: String,
        /// The file that contradicts it.
        second: String,
    },
    /// One sample is corrupt. With `data.on_corrupt = "skip"` another takes its place.
    #[error("{}: {reason}", shown(sample))]
    Unreadable {
        /// The sample's id.
        sample: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// An index at or beyond the source's length.
    #[error("sample {index} was asked for, but the source has {len}")]
    NoSuchSample {
        /// The index asked for.
        index: usize,
        /// The source's length.
        len: usize,
    },
    /// More corrupt samples than `data.max_corrupt` allows.
    #[error(
        "{bad} unreadable among {among} samples, more than data.max_corrupt = {max_corrupt} allows; the last: {last}"
    )]
    TooManyUnreadable {
        /// Distinct unreadable samples so far.
        bad: usize,
        /// The number of samples they are a share of.
        among: usize,
        /// The limit, a fraction.
        max_corrupt: f64,
        /// The last one, with its reason.
        last: String,
    },
    /// No readable sample was found near a corrupt one.
    #[error("{count} samples in a row are unreadable, the last: {last}")]
    NothingReadable {
        /// How many were tried.
        count: u64,
        /// The last one, with its reason.
        last: String,
    },
    /// A configuration value outside what is possible.
    #[error("{key} = {found}: expected {expected}")]
    Setting {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Classes were asked for, but the source has no labels.
    #[error("data.num_classes = {num_classes}, but {} has no labels", shown(place))]
    NoLabels {
        /// The number of classes asked for.
        num_classes: usize,
        /// The source.
        place: String,
    },
    /// Classes of a source that a model does not know.
    #[error("{}: {unknown} is no class of the model, which knows {known}", shown(place))]
    UnknownClasses {
        /// The source.
        place: String,
        /// The classes, by name.
        unknown: String,
        /// Those of the model.
        known: String,
    },
    /// Classes were asked for, but some samples are known to have none.
    #[error(
        "{}: {count} of {len} images have no label, but data.num_classes = {num_classes} asks for one of each",
        shown(place)
    )]
    Unlabelled {
        /// What was opened: [`Source::describe`](crate::Source::describe).
        place: String,
        /// Those without.
        count: usize,
        /// All.
        len: usize,
        /// The number of classes asked for.
        num_classes: usize,
    },
    /// Classes were asked for, but this sample has no label.
    #[error("{}: no label, but data.num_classes = {num_classes} asks for one", shown(sample))]
    LabelMissing {
        /// The sample's id.
        sample: String,
        /// The number of classes asked for.
        num_classes: usize,
    },
    /// A label that is no class.
    #[error(
        "{}: label {label}, but data.num_classes = {num_classes} allows 0 to {}",
        shown(sample),
        num_classes.saturating_sub(1)
    )]
    LabelOutOfRange {
        /// The sample's id.
        sample: String,
        /// Its label.
        label: u32,
        /// The number of classes asked for.
        num_classes: usize,
    },
    /// `data.crop = "none"` and an image that is too large.
    #[error(
        "{}: {width}x{height} pixels, but data.crop = \"none\" expects at most {}",
        shown(sample),
        image_size.width_x_height()
    )]
    CropNeeded {
        /// The sample's id.
        sample: String,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// `data.image_size`.
        image_size: ImageSize,
    },
    /// A worker thread panicked: a bug in this program.
    #[error("a data worker panicked at step {step}: {message}")]
    WorkerPanicked {
        /// The batch it was making.
        step: u64,
        /// The panic's message.
        message: String,
    },
    /// The system would not start a worker thread.
    #[error("cannot start data worker {worker}")]
    NoThread {
        /// Its number.
        worker: usize,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// A file of a kind that is not read.
    #[error("{} is not read: {what}", shown(found))]
    OtherFormat {
        /// The file.
        found: String,
        /// What it is.
        what: String,
        /// What to do; may be empty.
        advice: &'static str,
    },
    /// `data.source` has braces that stand for no files.
    #[error("data.source = {}: {reason}", shown(found))]
    BadPattern {
        /// The source as it was given.
        found: String,
        /// What is wrong.
        reason: String,
    },
    /// A data set of several files of which some are missing, or lie where they cannot be read.
    #[error("{}: not a whole {kind}: {reason}", shown(place))]
    NotWhole {
        /// The source.
        place: String,
        /// The data set.
        kind: &'static str,
        /// What is missing.
        reason: String,
    },
    /// A folder that nothing can be packed into.
    #[error("--to {}: {reason}", shown_path(to))]
    PackTarget {
        /// The folder, or a file in it.
        to: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file of another kind whose structure cannot be read.
    #[error("{}: not a readable {format}: {reason}", shown(place))]
    BadFile {
        /// The file.
        place: String,
        /// What it should be.
        format: &'static str,
        /// What is wrong, and where.
        reason: String,
    },
    /// A chunk of a kept index is damaged.
    #[error("{}: the index of the data set that was kept there is damaged", shown_path(path))]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// Whether it was removed, or somebody else has to.
        removed: bool,
    },
    /// The loader was asked again after it had returned an error; or the run is to stop, and a store was waited for.
    #[error("reading the data was stopped")]
    Stopped,
}

impl DataError {
    /// Whether a network is to blame: then the same may succeed later.
    pub fn is_network(&self) -> bool {
        matches!(self, Self::Unavailable { place, .. } if place.to_string_lossy().contains("://"))
    }

    /// Whether a setting is wrong, rather than the data.
    pub fn is_setting(&self) -> bool {
        matches!(
            self,
            Self::UnknownBuiltin { .. }
                | Self::Unsupported { .. }
                | Self::OtherFormat { .. }
                | Self::BadAddress { .. }
                | Self::BadPattern { .. }
                | Self::PackTarget { .. }
                | Self::FormatMismatch { .. }
                | Self::UnknownSplit { .. }
                | Self::NoTrainSplit { .. }
                | Self::BadSlice { .. }
                | Self::Setting { .. }
                | Self::NoLabels { .. }
                | Self::LabelOutOfRange { .. }
                | Self::UnknownClasses { .. }
                | Self::CropNeeded { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_line_breaks_or_escape_codes_are_quoted_wherever_they_stand() {
        let name = || "a\n\x1b[2Jb".to_owned();
        let cause = || std::io::ErrorKind::NotFound.into();
        for error in [
            DataError::NotFound { path: name() },
            DataError::Io { action: "open", path: name().into(), cause: cause() },
            DataError::Refused { place: name().into(), refusal: Refusal::Missing },
            DataError::BadAddress { found: name(), reason: String::new(), help: "" },
            DataError::Unavailable { place: name().into(), reason: String::new() },
            DataError::UnknownSplit { split: name(), place: name(), found: vec![name()] },
            DataError::NoTrainSplit { place: name(), found: vec![name()] },
            DataError::NoImageColumn { place: name(), columns: vec![name()], advice: None },
            DataError::ClassNamesDiffer { first: name(), second: name() },
            DataError::Unlabelled { place: name(), count: 1, len: 2, num_classes: 2 },
            DataError::BadFile { place: name(), format: "table", reason: String::new() },
            DataError::PackTarget { to: name().into(), reason: String::new() },
        ] {
            let text = error.to_string();
            assert!(!text.contains(char::is_control) && text.contains("\\u{1b}[2J"), "{text:?}");
        }
    }

    #[test]
    fn messages_name_the_key_the_value_and_the_way_out() {
        let error = DataError::LabelOutOfRange { sample: "a.parquet row 3".into(), label: 10, num_classes: 10 };
        assert_eq!(error.to_string(), "a.parquet row 3: label 10, but data.num_classes = 10 allows 0 to 9");
        assert_eq!(error.help().as_deref(), Some("set data.num_classes to at least 11"));
        assert!(error.is_setting());
    }
}
