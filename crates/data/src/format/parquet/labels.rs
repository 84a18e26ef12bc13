//! Labels that are texts: all of them are read when a source is opened, as only together they say which classes there are.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Group, ParquetFile, blocks};
use crate::error::DataError;
use crate::format::classes::Classes;
use crate::format::ranges::Span;

/// Rows of a group whose texts may be in memory at a time: some hundred megabytes.
const MAX_ROWS: usize = 4_000_000;

/// The labels of a source.
#[derive(Debug)]
pub(super) struct TextLabels {
    /// The class of each row; [`Span::NONE`] for a null.
    pub(super) rows: Vec<u32>,
    /// The names of the classes, unless all texts are numbers.
    pub(super) names: Option<Vec<String>>,
}

/// Reads all labels; `None` where they are numbers already.
pub(super) fn read(files: &[ParquetFile], groups: &[Group]) -> Result<Option<TextLabels>, DataError> {
    let is_text = |file: &&ParquetFile| file.columns.label.as_ref().is_some_and(|label| label.text);
    let Some(first) = files.iter().find(is_text) else { return Ok(None) };
    if let Some(other) = files.iter().find(|file| !is_text(file)) {
        return Err(DataError::ClassNamesDiffer { first: first.name.clone(), second: other.name.clone() });
    }
    let (mut texts, mut places, mut rows) = (Vec::<String>::new(), HashMap::<Bytes, u32>::new(), Vec::new());
    for group in groups {
        let file = &files[group.file];
        for text in texts_of(file, group)? {
            rows.push(text.map_or(Span::NONE, |text| {
                *places.entry(text).or_insert_with_key(|text| {
                    texts.push(String::from_utf8_lossy(text).into_owned());
                    texts.len() as u32 - 1
                })
            }));
        }
    }
    let classes = Classes::of(texts.iter().map(String::as_str));
    let of_text = classes.labels(&texts);
    rows.iter_mut().for_each(|row| *row = of_text.get(*row as usize).copied().unwrap_or(Span::NONE));
    Ok(Some(TextLabels { rows, names: classes.into_names() }))
}

/// The texts of a row group.
fn texts_of(file: &ParquetFile, group: &Group) -> Result<Vec<Option<Bytes>>, DataError> {
    let place = || file.stored.place().display().to_string();
    let Some(label) = file.columns.label.as_ref().filter(|_| group.rows <= MAX_ROWS) else {
        let reason = format!("row group {} has {} rows with labels that are texts", group.number, group.rows);
        return Err(DataError::BadParquet { place: place(), reason });
    };
    let texts = blocks::read_texts(&file.stored, file.metadata.row_group(group.number), label.leaf, group.rows);
    texts.map_err(|fault| match fault.of_sample(place()) {
        DataError::Unreadable { sample: place, reason } => DataError::BadParquet { place, reason },
        other => other,
    })
}
