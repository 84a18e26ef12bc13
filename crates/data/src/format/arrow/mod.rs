//! Arrow tables, as Hugging Face's `datasets` saves them to disk (`data-00000-of-00002.arrow` beside `state.json`): the IPC
//! stream format, and the file format, which is the same with a frame around it.
//!
//! The `arrow-ipc` crate reads the messages' headers; of their bodies only offsets and labels are read when the table is
//! opened, so each image is then one range of bytes.

mod batches;
mod layout;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use self::batches::{Fault, Table};
use self::layout::{Label, LabelKind};
use super::classes::{self, Classes, names_of_feature};
use super::files::Fingerprint;
use super::ranges::{About, RangeSource, Shard, Span};
use super::split::{self, Chosen};
use crate::error::{DataError, guard};
use crate::store::{FileInfo, Store};

/// Lists the files of a table; others are what `datasets` kept of earlier work.
const STATE: &str = "state.json";
/// What is known of the columns.
const INFO: &str = "dataset_info.json";
/// A list of some thousand file names.
const MAX_STATE_BYTES: u64 = 16 << 20;

/// Opens those of the tables `files` that belong to `split`; `others` lie beside them, and `place` is `data.source`.
pub(super) fn open(
    place: &str,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    others: &[FileInfo],
    split: Option<&str>,
) -> Result<RangeSource, DataError> {
    let files = listed_in_states(&*store, files, others)?;
    let Chosen { files, notice, .. } = split::choose_tables(place, files, split)?;
    let mut tables = Vec::with_capacity(files.len());
    for file in &files {
        let table = guard(|| Ok(batches::read(&*store, file))).unwrap_or_else(|reason| Err(Fault::Damaged(reason)));
        tables.push(table.map_err(|fault| refuse(&*store, file, fault))?);
    }
    if tables.iter().all(|table| table.spans.is_empty()) {
        let detail = format!("{} Arrow tables without rows", files.len());
        return Err(DataError::Empty { place: place.to_owned(), detail });
    }
    for (file, table) in files.iter().zip(&mut tables) {
        if let (None, Some(label)) = (&table.class_names, &table.columns.label) {
            table.class_names = names_in_info(&*store, file, others, &label.name)?;
        }
    }
    let odd = tables.iter().find_map(|table| match table.columns.label.as_ref()? {
        Label { name, kind: LabelKind::Odd(found) } => Some(classes::odd_label(name, found)),
        _ => None,
    });
    let has_labels = odd.is_none() && tables.iter().all(|table| table.columns.label.is_some());
    let class_names = if has_labels { resolve(&files, &mut tables)? } else { None };
    let shards: Vec<Shard> =
        files.into_iter().zip(tables).map(|(file, table)| Shard { file, spans: table.spans, names: None }).collect();
    let labels = shards.iter().flat_map(|shard| &shard.spans).map(|span| span.label());
    let unlabelled = if has_labels { labels.filter(Option::is_none).count() } else { 0 };
    let fingerprint = fingerprint(&shards, class_names.as_deref());
    let notices = notice.into_iter().chain(odd.clone()).collect();
    let (place, kind) = (place.to_owned(), "Arrow table");
    Ok(RangeSource::new(
        store,
        shards,
        About { place, kind, odd, has_labels, unlabelled, class_names, fingerprint, notices },
    ))
}

fn refuse(store: &dyn Store, file: &FileInfo, fault: Fault) -> DataError {
    let place = store.place(&file.name).display().to_string();
    match fault {
        Fault::Store(error) => error.into(),
        Fault::Damaged(reason) => DataError::BadFile { place, format: "Arrow table", reason },
        Fault::NoImages(columns) => DataError::NoImageColumn { place, columns, advice: None },
    }
}

/// Where `state.json` lies beside a table, the tables that it names and no others.
fn listed_in_states(store: &dyn Store, files: Vec<FileInfo>, others: &[FileInfo]) -> Result<Vec<FileInfo>, DataError> {
    let mut kept = files;
    for state in others.iter().filter(|file| file.name.ends_with(STATE) && file.size <= MAX_STATE_BYTES) {
        let bad = |reason: String| DataError::BadMetadata { path: store.place(&state.name), line: 1, reason };
        let json: Value =
            serde_json::from_slice(&store.read_one(state, 0..state.size)?).map_err(|error| bad(error.to_string()))?;
        let Some(listed) = json.get("_data_files").and_then(Value::as_array) else { continue };
        if json.get("_indices_data_files").and_then(Value::as_array).is_some_and(|files| !files.is_empty()) {
            return Err(bad("its rows are chosen by indices: save it again after flatten_indices()".into()));
        }
        let names: Vec<&str> = listed.iter().filter_map(|file| file.get("filename")?.as_str()).collect();
        let folder = state.name.parent().unwrap_or(Path::new(""));
        let named = |file: &FileInfo| names.iter().any(|name| file.name == folder.join(name));
        if let Some(missing) = names.iter().find(|name| !kept.iter().any(|file| file.name == folder.join(name))) {
            return Err(bad(format!("{missing}, which it names, is not there")));
        }
        kept.retain(|file| file.name.parent() != Some(folder) || named(file));
    }
    Ok(kept)
}

/// The names of the classes in `dataset_info.json` beside a table.
fn names_in_info(
    store: &dyn Store,
    table: &FileInfo,
    others: &[FileInfo],
    label: &str,
) -> Result<Option<Vec<String>>, DataError> {
    let beside = |file: &&FileInfo| file.name.ends_with(INFO) && file.name.parent() == table.name.parent();
    let Some(info) = others.iter().find(beside).filter(|file| file.size <= MAX_STATE_BYTES) else { return Ok(None) };
    let json: Option<Value> = serde_json::from_slice(&store.read_one(info, 0..info.size)?).ok();
    Ok(json.and_then(|json| names_of_feature(json.get("features")?.get(label)?)))
}

/// Turns the labels of all tables into classes, and gives their names.
fn resolve(files: &[FileInfo], tables: &mut [Table]) -> Result<Option<Vec<String>>, DataError> {
    let texts = tables.iter().flat_map(|table| table.texts.iter().flatten().map(String::as_str));
    let classes = Classes::of(texts);
    let mut named: Option<(usize, Vec<String>)> = None;
    for (number, table) in tables.iter_mut().enumerate() {
        if let Some(texts) = &table.texts {
            let of_text = classes.labels(texts);
            let class = |span: &mut Span| span.label = of_text.get(span.label as usize).copied().unwrap_or(Span::NONE);
            table.spans.iter_mut().for_each(class);
        }
        match (&named, table.class_names.take()) {
            (Some((first, names)), Some(others)) if *names != others => {
                let name = |at: usize| super::files::slashed(&files[at].name);
                return Err(DataError::ClassNamesDiffer { first: name(*first), second: name(number) });
            }
            (None, Some(names)) => named = Some((number, names)),
            _ => {}
        }
    }
    Ok(named.map(|(_, names)| names).or_else(|| classes.into_names()))
}

fn fingerprint(shards: &[Shard], class_names: Option<&[String]>) -> String {
    let mut fingerprint = Fingerprint::default();
    for Shard { file, spans, .. } in shards {
        if shards.len() > 1 {
            fingerprint.add_path(&file.name);
        }
        let plain = |span: &Span| [span.size.to_le_bytes(), span.label.to_le_bytes()].concat();
        fingerprint.add(&spans.iter().flat_map(plain).collect::<Vec<u8>>());
    }
    class_names.into_iter().flatten().for_each(|name| fingerprint.add(name.as_bytes()));
    fingerprint.finish()
}
