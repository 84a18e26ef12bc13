//! WebDataset: tar files ("shards") in which a sample is the files of one key, the name up to the first dot of its last part
//! (`a/0001.jpg`, `a/0001.cls`).
//!
//! Unlike WebDataset's own reader, which streams, this one reads any sample: of each shard the headers are read once and the
//! places of the images kept. Names in a shard are only names here: nothing is unpacked, so `..` and `/` lead nowhere.

mod beside;
mod cache;
mod header;
mod index;
mod seal;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use blake3::Hash;
use serde_json::Value;

#[cfg(test)]
pub(super) fn index_of_set(store: &dyn Store, files: &[FileInfo]) -> Option<(std::path::PathBuf, String)> {
    cache::of_set(store, files, &[])
}

pub(crate) use self::beside::index_name;
pub(crate) use self::header::file_header;
use self::index::{Fault, Found, Index};
pub(crate) use self::seal::{end as shard_end, verified as verified_shard};
use super::classes::{Classes, names_in};
use super::files::{Fingerprint, passed_over, shown};
use super::kept;
use super::ranges::{About, RangeSource, Shard, Span};
use super::split::{self, Chosen};
use crate::cache_file::remove_leftovers;
use crate::error::DataError;
use crate::store::{FileInfo, Located, Store, StoreOptions, locate};

/// The names of the classes, beside the shards: a list, or a map from number to name.
pub(crate) const CLASSES_FILE: &str = "classes.json";
/// Thousands of names.
const MAX_CLASSES_BYTES: u64 = 16 << 20;
/// What a shard is called.
const KIND: &str = "tar shard";
/// Where more images lie is kept on the disk: of these 40 MB would be in memory.
const LARGE: usize = 1 << 20;
/// Below so many samples any number of different texts may be classes.
const FEW: usize = 20;
/// Threads that index shards: a disk has few heads, a network many answers on their way.
const INDEXERS: usize = 8;

/// The number of samples in a packed shard on a disk that ends with the hash `content`, and its index as it is kept
/// [beside it](index_name); `None` where its headers cannot be read.
pub(crate) fn shard_index(path: &Path, content: &Hash) -> Option<(usize, Vec<u8>)> {
    let Ok(Located::File(store, file)) = locate(path.to_str()?, &StoreOptions::default()) else { return None };
    let index = index::build(&*store, &file).ok().filter(|index| !index.found.without_end)?;
    Some((index.spans.len(), beside::encode(&index, &file, content)))
}

/// Opens those of the shards `files` that belong to `split`; `others` lie beside them, and `place` is `data.source`.
pub(super) fn open(
    place: &str,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    others: &[FileInfo],
    split: Option<&str>,
) -> Result<RangeSource, DataError> {
    open_keeping(place, store, files, others, split, LARGE)
}

/// As [`open`]; where the samples of more than `large` images lie is kept in one file, and not in memory.
pub(super) fn open_keeping(
    place: &str,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    others: &[FileInfo],
    split: Option<&str>,
    large: usize,
) -> Result<RangeSource, DataError> {
    let Chosen { files, notice, .. } = split::choose_tables(place, files, split)?;
    // What is said of the choice is not known of the shards: it is no part of what is kept.
    Ok(open_all(place, store, files, others, large)?.with_notices(notice))
}

/// Opens all of the shards `files`.
fn open_all(
    place: &str,
    store: Arc<dyn Store>,
    files: Vec<FileInfo>,
    others: &[FileInfo],
    large: usize,
) -> Result<RangeSource, DataError> {
    ["sets", "shards"].iter().filter_map(|part| Some(store.cache()?.join(part))).for_each(|of| remove_leftovers(&of));
    let whole = cache::of_set(&*store, &files, others);
    let found = whole.as_ref().and_then(|(path, identity)| kept::open(path, identity, place, KIND));
    if let Some(found) = found {
        return Ok(RangeSource::of_kept(store, files, found));
    }
    let (shards, about) = read_all(place, &*store, files, others)?;
    if let Some((path, identity)) =
        whole.filter(|_| shards.iter().map(|shard| shard.spans.len()).sum::<usize>() > large)
    {
        let kept = kept::write(&path, &identity, &shards, &about).map(|()| kept::open(&path, &identity, place, KIND));
        match kept {
            Ok(Some(found)) => {
                let files = shards.into_iter().map(|shard| shard.file).collect();
                return Ok(RangeSource::of_kept(store, files, found));
            }
            Ok(None) => tracing::debug!("the index of {place} is not what was written"),
            Err(error) => tracing::debug!("the index of {place} is not kept: {error}"),
        }
    }
    Ok(RangeSource::new(store, shards, about))
}

/// The samples of all shards, and what is known about them.
fn read_all(
    place: &str,
    store: &dyn Store,
    files: Vec<FileInfo>,
    others: &[FileInfo],
) -> Result<(Vec<Shard>, About), DataError> {
    let indices = index_all(store, &files, others)?;
    let found: Vec<&Found> = indices.iter().map(|index| &index.found).collect();
    if indices.iter().all(|index| index.spans.is_empty()) {
        let detail = format!("{} tar shards without images{}", files.len(), endings(&found));
        return Err(DataError::Empty { place: place.to_owned(), detail });
    }
    let mut notices = about_the_rest(&found);
    notices.extend(about_ends(&files, &found));
    let captions = are_captions(&indices);
    let texts = found.iter().flat_map(|found| found.texts.iter().map(String::as_str));
    let classes = Classes::of(texts.filter(|_| !captions));
    let has_labels = !captions && found.iter().any(|found| !found.texts.is_empty());
    if captions || found.iter().any(|found| found.captions > 0) {
        notices.push("the .txt files are taken for captions and not for names of classes".to_owned());
    }
    let given = if has_labels && classes == Classes::Numbers { given_names(store, &files, others)? } else { None };
    let shards: Vec<Shard> =
        files.into_iter().zip(indices).map(|(file, index)| shard(file, index, &classes, captions)).collect();
    let without = shards.iter().flat_map(|shard| &shard.spans).filter(|span| span.label == Span::NONE).count();
    let unlabelled = if has_labels { without } else { 0 };
    if unlabelled > 0 {
        let all: usize = shards.iter().map(|shard| shard.spans.len()).sum();
        notices.push(format!("{unlabelled} of {all} images have no label"));
    }
    let class_names = given.or(classes.into_names()).filter(|_| has_labels);
    let most = shards.iter().flat_map(|shard| &shard.spans).filter_map(|span| span.label()).max();
    if let (Some(names), Some(most)) = (&class_names, most)
        && most as usize >= names.len()
    {
        let reason = format!("there are {} names, but a label is {most}", names.len());
        return Err(DataError::BadMetadata { path: store.place(Path::new(CLASSES_FILE)), line: 1, reason });
    }
    let fingerprint = fingerprint(&shards, class_names.as_deref());
    let (place, kind) = (place.to_owned(), KIND);
    Ok((shards, About { place, kind, odd: None, has_labels, unlabelled, class_names, fingerprint, notices }))
}

/// An index of each shard: from the cache, from a file of `others` that lies beside it, or from its headers.
fn index_all(store: &dyn Store, files: &[FileInfo], others: &[FileInfo]) -> Result<Vec<Index>, DataError> {
    let beside: HashMap<&Path, &FileInfo> = others.iter().map(|file| (file.name.as_path(), file)).collect();
    let next = AtomicUsize::new(0);
    let cache = store.cache().map(|folder| folder.join("shards"));
    let (started, said) = (Instant::now(), AtomicU64::new(0));
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(at) else { return Ok(done) };
            let place = store.place(&file.name);
            // What the headers said is known for certain; an index beside the shard comes second, and is not kept.
            let known = cache::load(cache.as_deref(), &place, file);
            let given = || beside::load(store, file, beside.get(index_name(&file.name).as_path())?);
            let index = match known.or_else(given) {
                Some(index) => index,
                None => {
                    let index = index::build(store, file).map_err(|fault| refuse(store, file, fault))?;
                    cache::keep(cache.as_deref(), &place, file, &index);
                    index
                }
            };
            done.push((at, index));
            // Over a network all bytes of a shard that was never seen are read.
            let tens = started.elapsed().as_secs() / 10;
            if said.fetch_max(tens, Ordering::Relaxed) < tens {
                let (shards, begun) = (files.len(), next.load(Ordering::Relaxed).min(files.len()));
                tracing::info!(begun, shards, "reading the headers of tar shards: {begun} of {shards}");
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.max(store.at_once()).min(INDEXERS).min(files.len());
    let parts = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = handles.into_iter().map(|handle| match handle.join() {
            Ok(part) => part,
            Err(payload) => std::panic::resume_unwind(payload),
        });
        joined.collect::<Result<Vec<_>, DataError>>()
    })?;
    let mut all: Vec<(usize, Index)> = parts.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, index)| index).collect())
}

fn refuse(store: &dyn Store, file: &FileInfo, fault: Fault) -> DataError {
    match fault {
        Fault::Store(error) => error.into(),
        Fault::Damaged(reason) => {
            DataError::BadFile { place: store.place(&file.name).display().to_string(), format: "tar shard", reason }
        }
    }
}

/// Names shards that may have been cut.
fn about_ends(files: &[FileInfo], found: &[&Found]) -> Option<String> {
    let mut without = files.iter().zip(found).filter(|(_, found)| found.without_end).map(|(file, _)| &file.name);
    let first = shown(without.next()?);
    let more = match without.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{first}{more}: a tar shard without the mark of its end, perhaps cut: some images may be missing"))
}

/// Whether the texts are a caption for each image rather than names that many images share.
fn are_captions(indices: &[Index]) -> bool {
    let from_txt: usize = indices.iter().map(|index| index.found.from_txt).sum();
    let labelled = indices.iter().flat_map(|index| &index.spans).filter(|span| span.label != Span::NONE).count();
    let texts = indices.iter().flat_map(|index| &index.found.texts).collect::<HashSet<_>>().len();
    from_txt > FEW && from_txt == labelled && texts > labelled / 2
}

fn shard(file: FileInfo, mut index: Index, classes: &Classes, captions: bool) -> Shard {
    let of_text = classes.labels(&index.found.texts);
    for span in &mut index.spans {
        span.label = of_text.get(span.label as usize).copied().filter(|_| !captions).unwrap_or(Span::NONE);
    }
    Shard { file, spans: index.spans, names: Some(index.names) }
}

/// The names in `classes.json`, where it lies in the folder of the shards or in the source's own.
fn given_names(store: &dyn Store, shards: &[FileInfo], others: &[FileInfo]) -> Result<Option<Vec<String>>, DataError> {
    let beside = |file: &&FileInfo| {
        let folder = file.name.parent();
        file.name.ends_with(CLASSES_FILE)
            && (folder == Some(Path::new("")) || shards.iter().any(|shard| shard.name.parent() == folder))
    };
    let Some(file) = others.iter().find(beside) else { return Ok(None) };
    let bad =
        |reason: &str| DataError::BadMetadata { path: store.place(&file.name), line: 1, reason: reason.to_owned() };
    if file.size > MAX_CLASSES_BYTES {
        return Err(bad("the file is larger than 16 MiB"));
    }
    let json: Value = serde_json::from_slice(&store.read_one(file, 0..file.size)?).map_err(|e| bad(&e.to_string()))?;
    match names_in(&json) {
        Some(names) => Ok(Some(names)),
        None => Err(bad("expected a list of names, or a map from \"0\", \"1\", ... to names")),
    }
}

/// What was found beside images and labels.
fn about_the_rest(found: &[&Found]) -> Vec<String> {
    let named: Vec<_> =
        found.iter().flat_map(|found| &found.odd_named).map(|(n, why)| (n.into(), why.clone())).collect();
    let odd: usize = found.iter().map(|found| found.odd).sum();
    let rest = endings(found);
    let others = (!rest.is_empty()).then(|| format!("the shards hold more than images and labels{rest}"));
    let more = odd.saturating_sub(named.len());
    let odd = passed_over(&named).map(|text| if more > 0 { format!("{text}, and {more} others") } else { text });
    odd.into_iter().chain(others).collect()
}

/// The files that are neither images nor labels, counted by their endings.
fn endings(found: &[&Found]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for (ending, count) in found.iter().flat_map(|found| &found.others) {
        *counts.entry(ending).or_default() += count;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let named = counts.iter().take(6).map(|(ending, count)| format!("{count} .{}", shown(Path::new(ending))));
    let named = named.collect::<Vec<_>>().join(", ");
    if named.is_empty() { named } else { format!(": {named}") }
}

fn fingerprint(shards: &[Shard], class_names: Option<&[String]>) -> String {
    let mut fingerprint = Fingerprint::default();
    for Shard { file, spans, names } in shards {
        if shards.len() > 1 {
            fingerprint.add_path(&file.name);
        }
        let plain = |span: &Span| [span.size.to_le_bytes(), span.label.to_le_bytes()].concat();
        fingerprint.add(&spans.iter().flat_map(plain).collect::<Vec<u8>>());
        names.iter().for_each(|names| fingerprint.add(names.text.as_bytes()));
    }
    class_names.into_iter().flatten().for_each(|name| fingerprint.add(name.as_bytes()));
    fingerprint.finish()
}
