//! Which columns of a Parquet file hold the images and the labels, and what the classes are called.
//!
//! Hugging Face's convention: an image is a struct `{bytes: binary, path: string}`; the schema metadata `huggingface`
//! is JSON with the features, in which a `ClassLabel` lists its names.

use parquet::basic::Type as Physical;
use parquet::file::metadata::{FileMetaData, RowGroupMetaData};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::Value;

use crate::format::classes::names_of_feature;
use crate::format::{IMAGE_NAMES, LABEL_NAMES};

/// Leaf indices of the columns that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) bytes: usize,
    pub(super) path: Option<usize>,
    pub(super) label: Option<Label>,
}

impl Columns {
    /// What is wrong with the columns' entries in the footer's description of `group`, if anything: the `parquet`
    /// crate panics at a negative place, and a wrong number of rows would make a source of any length.
    pub(super) fn fault_in(&self, group: &RowGroupMetaData) -> Option<String> {
        let label = self.label.as_ref().map(|label| label.leaf);
        [Some(self.bytes), self.path, label].into_iter().flatten().find_map(|leaf| {
            let Some(chunk) = group.columns().get(leaf) else { return Some(format!("lacks column {leaf}")) };
            let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
            if start < 0 || chunk.compressed_size() < 0 {
                return Some(format!("has column {leaf} at a negative place"));
            }
            let (rows, values) = (group.num_rows(), chunk.num_values());
            (rows != values).then(|| format!("claims {rows} rows, but {values} values in column {leaf}"))
        })
    }
}

/// A label column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) leaf: usize,
    pub(super) name: String,
}

/// Finds the columns, or returns the name and type of each column there is.
pub(super) fn find(schema: &SchemaDescriptor) -> Result<Columns, Vec<String>> {
    let leaf = |path: &[&str], types: &[Physical]| {
        schema.columns().iter().position(|column| {
            let same = column.path().parts().iter().map(String::as_str).eq(path.iter().copied());
            same && column.max_rep_level() == 0 && types.contains(&column.physical_type())
        })
    };
    let fields = schema.root_schema().get_fields();
    let preferred = IMAGE_NAMES.into_iter().filter(|name| fields.iter().any(|f| f.name() == *name));
    let candidates: Vec<&str> = preferred.chain(fields.iter().map(|f| f.name())).collect();
    let binary = [Physical::BYTE_ARRAY];
    let in_struct = candidates.iter().find_map(|&name| {
        let bytes = leaf(&[name, "bytes"], &binary)?;
        Some((bytes, leaf(&[name, "path"], &binary)))
    });
    let plain = || IMAGE_NAMES.iter().find_map(|&name| Some((leaf(&[name], &binary)?, None)));
    let (bytes, path) = in_struct.or_else(plain).ok_or_else(|| describe(schema))?;
    let label = LABEL_NAMES.iter().find_map(|&name| {
        let leaf = leaf(&[name], &[Physical::INT32, Physical::INT64])?;
        Some(Label { leaf, name: name.to_owned() })
    });
    Ok(Columns { bytes, path, label })
}

fn describe(schema: &SchemaDescriptor) -> Vec<String> {
    let one = |column: &ColumnDescriptor| format!("{} ({:?})", column.path().string(), column.physical_type());
    schema.columns().iter().map(|column| one(column)).collect()
}

/// The notice for a column that is named like a label but holds no whole numbers.
pub(super) fn odd_label(schema: &SchemaDescriptor) -> Option<String> {
    let odd = |name: &&str| schema.columns().iter().find(|column| column.path().parts()[0] == **name);
    let column = LABEL_NAMES.iter().find_map(odd)?;
    let (name, found) = (&column.path().parts()[0], column.physical_type());
    Some(format!("the column {name} is no class, as it holds {found:?} and no whole numbers"))
}

/// The names of the classes of `label_column`, where the file's metadata has them.
pub(super) fn class_names(metadata: &FileMetaData, label_column: &str) -> Option<Vec<String>> {
    let entry = metadata.key_value_metadata()?.iter().find(|entry| entry.key == "huggingface")?;
    let json: Value = serde_json::from_str(entry.value.as_deref()?).ok()?;
    let features = json.pointer("/info/features").or_else(|| json.get("features"))?;
    names_of_feature(features.get(label_column)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    fn columns(schema: &str) -> Result<Columns, Vec<String>> {
        find(&SchemaDescriptor::new(Arc::new(parse_message_type(schema).unwrap())))
    }

    #[test]
    fn the_image_column_is_found_under_any_name_and_preferred_by_name() {
        let only = "message m { optional int64 id; optional group photo { optional binary bytes; optional binary path (UTF8); } }";
        assert_eq!(columns(only).unwrap(), Columns { bytes: 1, path: Some(2), label: None });
        let two = "message m { optional group mask { optional binary bytes; } optional group img { optional binary bytes; } optional int32 fine_label; }";
        let label = Some(Label { leaf: 2, name: "fine_label".into() });
        assert_eq!(columns(two).unwrap(), Columns { bytes: 1, path: None, label });
        let plain = "message m { required binary image; required int64 labels; required int64 label; }";
        let label = Some(Label { leaf: 2, name: "label".into() });
        assert_eq!(columns(plain).unwrap(), Columns { bytes: 0, path: None, label });
    }

    #[test]
    fn without_an_image_column_the_columns_are_listed() {
        let schema = "message m { optional binary text (UTF8); optional group image { optional int64 bytes; } }";
        assert_eq!(columns(schema).unwrap_err(), ["text (BYTE_ARRAY)", "image.bytes (INT64)"]);
    }

    #[test]
    fn a_label_that_is_text_is_no_label() {
        let schema = "message m { required binary image; optional binary label (UTF8); }";
        assert_eq!(columns(schema).unwrap().label, None);
    }
}
