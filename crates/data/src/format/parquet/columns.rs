//! Which columns of a Parquet file hold the images and the labels, and what the classes are called.
//!
//! Hugging Face's convention: an image is a struct `{bytes: binary, path: string}`; the schema metadata `huggingface`
//! is JSON with the features, in which a `ClassLabel` lists its names.

use parquet::basic::{Compression, ConvertedType, LogicalType, Type as Physical};
use parquet::file::metadata::{FileMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::Value;

use crate::format::classes::{self, names_of_feature};
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
    /// Whether it holds names, and no numbers.
    pub(super) text: bool,
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
        let leaf = leaf(&[name], &[Physical::INT32, Physical::INT64, Physical::BYTE_ARRAY])?;
        let column = schema.column(leaf);
        let text = column.physical_type() == Physical::BYTE_ARRAY;
        (!text || is_text(&column)).then(|| Label { leaf, name: name.to_owned(), text })
    });
    Ok(Columns { bytes, path, label })
}

fn describe(schema: &SchemaDescriptor) -> Vec<String> {
    let one = |column: &ColumnDescriptor| format!("{} ({:?})", column.path().string(), column.physical_type());
    schema.columns().iter().map(|column| one(column)).collect()
}

/// Whether the bytes of a column are text.
fn is_text(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::UTF8 || matches!(column.logical_type_ref(), Some(LogicalType::String))
}

/// What to do where no column holds images as they are expected, from the first column that may hold some.
pub(super) fn advice(schema: &SchemaDescriptor) -> Option<String> {
    schema.columns().iter().filter(|column| !is_text(column)).find_map(|column| {
        let (name, listed) = (&column.path().parts()[0], column.max_rep_level() > 0);
        match column.physical_type() {
            Physical::BYTE_ARRAY if listed => Some(format!("{name} is a list: write a row for each image")),
            Physical::BYTE_ARRAY => Some(format!("if {name} holds image files, call the column image")),
            Physical::FIXED_LEN_BYTE_ARRAY => {
                Some(format!("if {name} holds image files, write it as binary of any length, in a column image"))
            }
            Physical::INT32 if listed => {
                Some(format!("{name} is a list of numbers: if they are pixels, encode them as PNGs, in a column image"))
            }
            _ => None,
        }
    })
}

/// The name of a column that is read and has a compression that nobody reads any more, and that compression.
pub(super) fn unread_compression(columns: &Columns, group: &RowGroupMetaData) -> Option<String> {
    let label = columns.label.as_ref().map(|label| label.leaf);
    let chunks =
        [Some(columns.bytes), columns.path, label].into_iter().flatten().filter_map(|leaf| group.columns().get(leaf));
    let odd = chunks.into_iter().find(|chunk| matches!(chunk.compression(), Compression::LZO))?;
    Some(format!("{} is compressed with {}", odd.column_path().string(), odd.compression()))
}

/// Rows whose label is null, or below zero in the whole row group, as far as the footer counts them.
pub(super) fn unlabelled(columns: &Columns, metadata: &ParquetMetaData) -> usize {
    let Some(label) = &columns.label else { return 0 };
    let of_group = |group: &RowGroupMetaData| {
        let statistics = group.columns().get(label.leaf)?.statistics()?;
        let highest = match statistics {
            Statistics::Int32(values) => values.max_opt().map(|&most| i64::from(most)),
            Statistics::Int64(values) => values.max_opt().copied(),
            _ => None,
        };
        let nulls = statistics.null_count_opt().and_then(|count| usize::try_from(count).ok());
        let rows = usize::try_from(group.num_rows()).ok();
        if highest.is_some_and(|most| most < 0) { rows } else { nulls }
    };
    metadata.row_groups().iter().filter_map(of_group).sum()
}

/// What is said of a column that is named like a label but holds neither whole numbers nor names.
pub(super) fn odd_label(schema: &SchemaDescriptor) -> Option<String> {
    let odd = |name: &&str| schema.columns().iter().find(|column| column.path().parts()[0] == **name);
    let column = LABEL_NAMES.iter().find_map(odd)?;
    Some(classes::odd_label(&column.path().parts()[0], &format!("{:?}", column.physical_type())))
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
        let label = Some(Label { leaf: 2, name: "fine_label".into(), text: false });
        assert_eq!(columns(two).unwrap(), Columns { bytes: 1, path: None, label });
        let plain = "message m { required binary image; required int64 labels; required int64 label; }";
        let label = Some(Label { leaf: 2, name: "label".into(), text: false });
        assert_eq!(columns(plain).unwrap(), Columns { bytes: 0, path: None, label });
    }

    #[test]
    fn without_an_image_column_the_columns_are_listed() {
        let schema = "message m { optional binary text (UTF8); optional group image { optional int64 bytes; } }";
        assert_eq!(columns(schema).unwrap_err(), ["text (BYTE_ARRAY)", "image.bytes (INT64)"]);
    }

    #[test]
    fn a_label_is_a_number_or_a_name_and_nothing_else() {
        let label = |kind: &str| columns(&format!("message m {{ required binary image; {kind}; }}")).unwrap().label;
        assert!(label("optional binary label (UTF8)").unwrap().text);
        assert!(!label("optional int32 label").unwrap().text);
        for odd in ["optional double label", "optional binary label", "optional boolean label"] {
            assert_eq!(label(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_may_be_images_is_named_with_what_would_make_them_so() {
        let advice = |fields: &str| {
            advice(&SchemaDescriptor::new(Arc::new(parse_message_type(&format!("message m {{ {fields} }}")).unwrap())))
        };
        let list = |of: &str| format!("optional group x (LIST) {{ repeated group list {{ {of} }} }}");
        for (fields, want) in [
            ("required binary t (UTF8); required binary jpg;", "if jpg holds image files, call the column image"),
            (&list("optional binary element;"), "x is a list: write a row for each image"),
            (&list("optional int32 element (UINT_8);"), "x is a list of numbers: if they are pixels"),
            ("required fixed_len_byte_array (9) x;", "if x holds image files, write it as binary of any length"),
        ] {
            assert!(advice(fields).unwrap().starts_with(want), "{fields}");
        }
        assert_eq!(advice("required int64 n;"), None);
    }
}
