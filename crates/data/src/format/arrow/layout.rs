//! Where the columns of an Arrow table lie in a record batch (the columnar format's "Flattened buffers": a batch lists the
//! buffers of all columns, depth first).
//!
//! So a value is read by its place, without decoding the batch, of which one row would otherwise cost a thousand images.

use arrow_schema::{DataType, Field, Schema, UnionMode};

use crate::format::{IMAGE_NAMES, LABEL_NAMES};

/// Where a column's node and buffers are among those of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: usize,
    pub(super) buffer: usize,
}

/// A column of bytes or text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) place: Place,
    /// Of each offset: 4 or 8 bytes.
    pub(super) offset_bytes: usize,
}

/// A column of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) name: String,
    pub(super) kind: LabelKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LabelKind {
    /// Whole numbers of so many bytes.
    Number {
        place: Place,
        bytes: usize,
        signed: bool,
    },
    Text(Binary),
    /// Neither; what it is.
    Odd(String),
}

/// The columns that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// The nodes and validities of the structs around the bytes, then the bytes.
    pub(super) around: Option<Place>,
    pub(super) image: Binary,
    pub(super) label: Option<Label>,
}

/// Finds the columns, or says which there are, with their types.
pub(super) fn find(schema: &Schema) -> Result<Columns, Vec<String>> {
    let mut at = Place::default();
    let mut fields = Vec::new();
    for field in schema.fields() {
        fields.push((field.as_ref(), at));
        at = behind(field.data_type(), at);
    }
    let one = |(field, _): &(&Field, Place)| format!("{} ({})", field.name(), field.data_type());
    let described = || fields.iter().map(one).collect::<Vec<String>>();
    let preferred = |(field, _): &&(&Field, Place)| IMAGE_NAMES.contains(&field.name().as_str());
    let mut candidates = fields.iter().filter(preferred).chain(&fields);
    let in_struct = candidates.find_map(|(field, place)| Some((Some(*place), bytes_of_struct(field, *place)?)));
    let plain = || fields.iter().filter(preferred).find_map(|(field, place)| Some((None, binary(field, *place)?)));
    let (around, image) = in_struct.or_else(plain).ok_or_else(described)?;
    let label = LABEL_NAMES.iter().find_map(|name| fields.iter().find(|(field, _)| field.name() == name));
    let label = label.map(|(field, place)| Label { name: field.name().clone(), kind: label_kind(field, *place) });
    Ok(Columns { around, image, label })
}

/// The field `bytes` of a struct.
fn bytes_of_struct(field: &Field, place: Place) -> Option<Binary> {
    let DataType::Struct(fields) = field.data_type() else { return None };
    let mut at = Place { node: place.node + 1, buffer: place.buffer + 1 };
    for field in fields {
        if field.name() == "bytes" {
            return binary(field, at);
        }
        at = behind(field.data_type(), at);
    }
    None
}

fn binary(field: &Field, place: Place) -> Option<Binary> {
    match field.data_type() {
        DataType::Binary => Some(Binary { place, offset_bytes: 4 }),
        DataType::LargeBinary => Some(Binary { place, offset_bytes: 8 }),
        _ => None,
    }
}

fn label_kind(field: &Field, place: Place) -> LabelKind {
    let number = |bytes, signed| LabelKind::Number { place, bytes, signed };
    match field.data_type() {
        DataType::Int8 => number(1, true),
        DataType::Int16 => number(2, true),
        DataType::Int32 => number(4, true),
        DataType::Int64 => number(8, true),
        DataType::UInt8 => number(1, false),
        DataType::UInt16 => number(2, false),
        DataType::UInt32 => number(4, false),
        DataType::UInt64 => number(8, false),
        DataType::Utf8 => LabelKind::Text(Binary { place, offset_bytes: 4 }),
        DataType::LargeUtf8 => LabelKind::Text(Binary { place, offset_bytes: 8 }),
        other => LabelKind::Odd(other.to_string()),
    }
}

/// The place of the column behind one of this type at `at`. Nodes and buffers as the columnar format counts them; views
/// have buffers whose number the schema does not tell, and no column behind one is found where it seems to be: a wrong
/// number of buffers in the batch is noticed.
fn behind(kind: &DataType, at: Place) -> Place {
    let after = |nodes, buffers| Place { node: at.node + nodes, buffer: at.buffer + buffers };
    let all =
        |start: Place, fields: &mut dyn Iterator<Item = &DataType>| fields.fold(start, |at, kind| behind(kind, at));
    match kind {
        DataType::Null => after(1, 0),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => after(1, 3),
        DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
            behind(field.data_type(), after(1, 2))
        }
        DataType::ListView(field) | DataType::LargeListView(field) => behind(field.data_type(), after(1, 3)),
        DataType::FixedSizeList(field, _) => behind(field.data_type(), after(1, 1)),
        DataType::Struct(fields) => all(after(1, 1), &mut fields.iter().map(|field| field.data_type())),
        DataType::Union(fields, mode) => {
            let own = if *mode == UnionMode::Dense { 2 } else { 1 };
            all(after(1, own), &mut fields.iter().map(|(_, field)| field.data_type()))
        }
        DataType::RunEndEncoded(ends, values) => {
            all(after(1, 0), &mut [ends, values].into_iter().map(|field| field.data_type()))
        }
        _ => after(1, 2),
    }
}

/// The nodes and buffers of a whole batch.
pub(super) fn total(schema: &Schema) -> Place {
    schema.fields().iter().fold(Place::default(), |at, field| behind(field.data_type(), at))
}
