//! Labels from `metadata.csv` or `metadata.jsonl`, by Hugging Face's ImageFolder conventions: a row for each image, with its
//! path relative to the file in `file_name` and its class in a column of a usual name.
//!
//! Classes that are whole numbers are taken as they are; any other values are names, and are numbered in their order.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::LABEL_NAMES;
use super::classes::Classes;
use super::files::shown;
use crate::error::DataError;
use crate::store::{FileInfo, Store};

/// A million rows have some 50 MB.
const MAX_BYTES: u64 = 256 << 20;
/// The column with the path.
const FILE_NAME: &str = "file_name";

/// The classes of a folder's images.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// A class for each of the images; `None` for one that no row names, or whose row has none.
    pub(super) labels: Vec<Option<u32>>,
    /// In the order of the classes, where they have names.
    pub(super) class_names: Option<Vec<String>>,
    pub(super) notices: Vec<String>,
}

/// One row: the values of its columns; an absent value has no entry.
type Row = BTreeMap<String, String>;

/// Records with the lines that they begin in, or the line with an error and why.
type Lines<T> = Result<Vec<(usize, T)>, (usize, String)>;

/// The labels of `images` from the metadata files among `files`; `None` where there are no such files, or none has a
/// column of labels.
pub(super) fn read(
    store: &Arc<dyn Store>,
    files: &[FileInfo],
    images: &[FileInfo],
) -> Result<Option<Labels>, DataError> {
    let mut values = HashMap::<PathBuf, Option<String>>::new();
    let (mut notices, mut labelled) = (Vec::new(), false);
    for file in files {
        let parse = match file.name.file_name().and_then(|name| name.to_str()) {
            Some("metadata.csv") => parse_csv,
            Some("metadata.jsonl") => parse_jsonl,
            _ => continue,
        };
        let bad = |(line, reason)| DataError::BadMetadata { path: store.place(&file.name), line, reason };
        if file.size > MAX_BYTES {
            return Err(bad((1, "the file is larger than 256 MiB".into())));
        }
        let bytes = store.read_one(file, 0..file.size)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| bad((1, "the file is not UTF-8 text".into())))?;
        let rows = parse(text.trim_start_matches('\u{feff}')).map_err(bad)?;
        let column = LABEL_NAMES.iter().find(|&&name| rows.iter().any(|(_, row)| row.contains_key(name)));
        labelled |= column.is_some();
        if column.is_none() {
            let columns: Vec<&str> = rows.iter().take(1).flat_map(|(_, row)| row.keys().map(String::as_str)).collect();
            let (name, columns, looked) = (shown(&file.name), columns.join(", "), LABEL_NAMES.join(", "));
            notices.push(format!("{name} gives no classes: it has {columns}, and a label would be one of {looked}"));
        }
        let folder = file.name.parent().unwrap_or(Path::new(""));
        for (line, mut row) in rows {
            let Some(name) = row.remove(FILE_NAME) else {
                return Err(bad((line, format!("there is no {FILE_NAME}"))));
            };
            values.insert(folder.join(name), column.and_then(|column| row.remove(*column)));
        }
    }
    if !labelled {
        return Ok((!notices.is_empty()).then_some(Labels { notices, ..Labels::default() }));
    }
    let of_each: Vec<Option<String>> = images.iter().map(|image| values.remove(&image.name).flatten()).collect();
    let without = of_each.iter().filter(|value| value.is_none()).count();
    if without > 0 {
        notices.push(format!("{without} of {} images have no label in the metadata", images.len()));
    }
    let (labels, class_names) = number(&of_each);
    Ok(Some(Labels { labels, class_names, notices }))
}

/// Values as classes, and their names where they have some.
fn number(values: &[Option<String>]) -> (Vec<Option<u32>>, Option<Vec<String>>) {
    let classes = Classes::of(values.iter().flatten().map(String::as_str));
    let label = |value: &Option<String>| classes.class(value.as_deref()?);
    (values.iter().map(label).collect(), classes.into_names())
}

/// A row is a JSON object in a line.
fn parse_jsonl(text: &str) -> Lines<Row> {
    let plain = |value: Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(number, line): (usize, &str)| {
        let columns: Map<String, Value> = serde_json::from_str(line).map_err(|e| (number + 1, e.to_string()))?;
        Ok((number + 1, columns.into_iter().filter_map(|(name, value)| Some((name, plain(value)?))).collect()))
    };
    lines.map(row).collect()
}

/// Comma-separated values with a header (RFC 4180); an empty value is an absent one.
fn parse_csv(text: &str) -> Lines<Row> {
    let mut records = csv_records(text)?.into_iter();
    let Some((_, header)) = records.next() else { return Err((1, "the file is empty".into())) };
    let row = |(line, record): (usize, Vec<String>)| {
        if record.len() != header.len() {
            return Err((line, format!("{} values, but the header has {} columns", record.len(), header.len())));
        }
        let filled = header.iter().cloned().zip(record).filter(|(_, value)| !value.is_empty());
        Ok((line, filled.collect()))
    };
    records.map(row).collect()
}

/// The records of a CSV file. A quoted value may hold commas, line breaks and doubled quotes.
fn csv_records(text: &str) -> Lines<Vec<String>> {
    let (mut records, mut record, mut value) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut begun, mut quoted) = (1, 1, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        line += usize::from(letter == '\n');
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => value.push('"'),
            '"' if quoted || value.is_empty() => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut value)),
            '\r' if !quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                record.push(std::mem::take(&mut value));
                let whole = std::mem::take(&mut record);
                if whole.iter().any(|value| !value.is_empty()) {
                    records.push((begun, whole));
                }
                begun = line;
            }
            other => value.push(other),
        }
    }
    if quoted {
        return Err((begun, "a quote is not closed".into()));
    }
    if !value.is_empty() || !record.is_empty() {
        record.push(value);
        records.push((begun, record));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pairs(rows: &[(usize, Row)]) -> Vec<(usize, Vec<(&str, &str)>)> {
        rows.iter().map(|(n, row)| (*n, row.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect())).collect()
    }

    #[test]
    fn quoted_values_hold_commas_quotes_and_line_breaks() {
        let text = "file_name,label\r\na.png,\"big, \"\"bad\"\" cat\"\n\n\"b\nc.png\",\nlast.png,dog";
        let rows = parse_csv(text).unwrap();
        let want = vec![
            (2, vec![("file_name", "a.png"), ("label", "big, \"bad\" cat")]),
            (4, vec![("file_name", "b\nc.png")]),
            (6, vec![("file_name", "last.png"), ("label", "dog")]),
        ];
        assert_eq!(pairs(&rows), want);
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_line() {
        assert_eq!(parse_csv("").unwrap_err(), (1, "the file is empty".into()));
        assert_eq!(parse_csv("a,b\n1,2\n3\n").unwrap_err(), (3, "1 values, but the header has 2 columns".into()));
        assert_eq!(parse_csv("a,b\n1,\"2\n3,4\n").unwrap_err(), (2, "a quote is not closed".into()));
        assert_eq!(parse_jsonl("{\"a\": 1}\n\n[2]\n").unwrap_err().0, 3);
    }

    #[test]
    fn whole_numbers_are_classes_and_other_values_are_their_names() {
        let values = |texts: &[&str]| texts.iter().map(|&t| Some(t.to_owned()).filter(|t| !t.is_empty())).collect();
        let values: [Vec<_>; 2] = [values(&["3", "", "-1", "0"]), values(&["dog", "7", "", "cat"])];
        assert_eq!(number(&values[0]), (vec![Some(3), None, None, Some(0)], None));
        let names = ["7", "cat", "dog"].map(str::to_owned).to_vec();
        assert_eq!(number(&values[1]), (vec![Some(2), Some(0), None, Some(1)], Some(names)));
    }
}
