//! Which files belong to `data.split`, and which are taken where it is not set.
//!
//! Hugging Face's conventions: folders `train/`, `validation/` and `test/` (with their other names) at the top of a
//! folder of images, and Parquet files named after a split, are parts of one data set and not classes or more of the
//! same. Where a source is laid out so and `data.split` is not set, `train` is taken, and a notice says so.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use super::files::shown;
use crate::error::DataError;
use crate::store::FileInfo;

/// The split that takes everything.
pub(super) const ALL: &str = "all";

/// The splits and the names that they go by, in lower case (`datasets.data_files`).
const NAMES: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The files of a split.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) files: Vec<FileInfo>,
    /// Whether the top folder names a split, and so no class.
    pub(super) below_split: bool,
    /// What a person should know about the choice.
    pub(super) notice: Option<String>,
}

/// The split that a whole name means.
pub(super) fn meaning(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    NAMES.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(split, _)| *split)
}

/// The split that the top folder of an image file names.
fn of_image(file: &Path) -> Option<&'static str> {
    let mut parts = file.iter();
    let top = parts.next()?.to_str()?;
    parts.next().and_then(|_| meaning(top))
}

/// The split that a folder or the name of a Parquet file names: `data/test-00000-of-00002.parquet`.
fn of_table(file: &Path) -> Option<&'static str> {
    let folders = file.parent()?.iter().filter_map(OsStr::to_str);
    let first_word = file.file_name()?.to_str()?.split(['-', '_', '.']).next()?;
    folders.chain([first_word]).find_map(meaning)
}

/// The images that belong to `split`; `place` names the source in messages.
///
/// Top folders are splits where every folder at the top that has images is named so. Images beside them belong to none.
pub(super) fn choose_images(place: &str, files: Vec<FileInfo>, split: Option<&str>) -> Result<Chosen, DataError> {
    let tops = || files.iter().filter(|file| file.name.iter().nth(1).is_some());
    let (splits, others): (Vec<_>, Vec<_>) = tops().partition(|file| of_image(&file.name).is_some());
    if !splits.is_empty() && others.is_empty() {
        return choose_known(place, files, split, of_image);
    }
    let doubtful = splits.first().zip(others.first()).filter(|_| split.is_none()).map(|(split, other)| {
        let top = |file: &FileInfo| file.name.iter().next().map(|top| shown(Path::new(top))).unwrap_or_default();
        let (split, other) = (top(split), top(other));
        format!("the folder {split} is taken for a class and not for a split, as {other} beside it is no split")
    });
    Ok(Chosen { notice: doubtful, ..choose_by_name(place, files, split)? })
}

/// The Parquet files that belong to `split`.
pub(super) fn choose_tables(place: &str, files: Vec<FileInfo>, split: Option<&str>) -> Result<Chosen, DataError> {
    if files.iter().all(|file| of_table(&file.name).is_some()) {
        choose_known(place, files, split, of_table)
    } else {
        choose_by_name(place, files, split)
    }
}

/// Chooses where `split_of` knows the splits of the files.
fn choose_known(
    place: &str,
    files: Vec<FileInfo>,
    split: Option<&str>,
    split_of: fn(&Path) -> Option<&'static str>,
) -> Result<Chosen, DataError> {
    let mut counts = BTreeMap::<&str, usize>::new();
    files.iter().for_each(|file| *counts.entry(split_of(&file.name).unwrap_or("no split")).or_default() += 1);
    let has = |name: &str| counts.contains_key(name);
    let wanted = match split {
        Some(ALL) => return Ok(Chosen { files, below_split: true, notice: None }),
        Some(name) => match meaning(name) {
            Some(split) if has(split) => split,
            _ => return choose_by_name(place, files, split),
        },
        None => {
            let there: Vec<&str> = NAMES.iter().map(|(name, _)| *name).filter(|&name| has(name)).collect();
            match there[..] {
                ["train", ..] => "train",
                [only] => only,
                _ => {
                    let found = there.into_iter().map(str::to_owned).collect();
                    return Err(DataError::NoTrainSplit { place: place.to_owned(), found });
                }
            }
        }
    };
    let files = files.into_iter().filter(|file| split_of(&file.name) == Some(wanted)).collect();
    let taken = counts.remove(wanted).unwrap_or(0);
    let left: Vec<String> = counts.iter().map(|(name, n)| format!("{n} of {name}")).collect();
    let notice = (split.is_none() && !left.is_empty()).then(|| {
        let left = left.join(", ");
        format!("data.split is not set: {taken} files of {wanted} are taken, and {left} are not (\"{ALL}\" takes all)")
    });
    Ok(Chosen { files, below_split: true, notice })
}

/// Whether a file or folder name belongs to `split`: "train", "train.parquet", "train-00000-of-00002.parquet".
pub(super) fn names_split(name: &OsStr, split: &str) -> bool {
    let rest = name.to_str().and_then(|n| n.strip_prefix(split));
    rest.is_some_and(|r| r.is_empty() || r.starts_with(['-', '_', '.']))
}

/// Keeps the files in a folder that is called like `split`, and those named after it.
fn choose_by_name(place: &str, files: Vec<FileInfo>, split: Option<&str>) -> Result<Chosen, DataError> {
    let Some(split) = split.filter(|split| *split != ALL) else {
        return Ok(Chosen { files, below_split: false, notice: None });
    };
    let belongs = |file: &FileInfo| file.name.iter().any(|part| names_split(part, split));
    let (files, others): (Vec<_>, Vec<_>) = files.into_iter().partition(belongs);
    if files.is_empty() {
        let found = others.iter().take(3).map(|file| shown(&file.name)).collect();
        return Err(DataError::UnknownSplit { split: split.into(), place: place.to_owned(), found });
    }
    Ok(Chosen { files, below_split: false, notice: None })
}
