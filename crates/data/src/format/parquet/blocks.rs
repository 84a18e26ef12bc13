//! Blocks of consecutive rows: the unit in which Parquet is decoded and remembered.
//!
//! A shuffled order asks for one row here, one there. Decoding a whole row group for each (100 MB are usual) would cost
//! a hundred times the row; so a group is cut into blocks of about a page's size, whole pages before a block are
//! skipped by their headers, and decoded blocks are cached; the least recently used are dropped first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use parquet::basic::Type as Physical;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::columns::Columns;
use super::stored::StoredFile;
use crate::error::{DataError, guard};
use crate::store::StoreError;

/// What is kept decoded at most: all of CIFAR-10 (120 MB of PNGs), and a quarter of the 1 GB a quick run may take.
/// Of a shuffled source that is much larger almost every access is a miss, however large the cache.
pub(super) const CACHE_BYTES: usize = 256 << 20;
/// A data page as writers make them by default (1 MiB), so a smaller block would decompress as much.
const BLOCK_BYTES: u64 = 1 << 20;
/// Rows of a block at most: a run of nulls, or of one value of a dictionary, takes some bytes for any number of rows.
const MAX_ROWS: usize = 1 << 16;
/// Rows that are decoded before their bytes are counted.
const ROWS_AT_ONCE: usize = 16;
/// Decoded bytes of a column in a block at most. Encodings by which a value repeats what came before it can claim any number.
const MAX_BYTES: usize = 256 << 20;
/// A value from this length on is kept once for all rows of a dictionary that have it; shorter ones are not worth remembering.
const LONG: usize = 1 << 10;
/// What a block costs beside its images, so that empty or broken ones are counted too.
const BLOCK_OVERHEAD: usize = 1 << 10;

/// Some rows of a row group.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) images: Vec<Option<Bytes>>,
    pub(super) paths: Vec<Option<Bytes>>,
    pub(super) labels: Vec<Option<i64>>,
}

/// A block, or why it cannot be read (remembered too: a broken page must not be decompressed for each of its rows).
pub(super) type Loaded = Result<Block, Fault>;

/// Why a block cannot be read.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Its bytes are damaged, or the file is.
    Damaged(String),
    /// The store is out of reach.
    Unavailable { place: PathBuf, reason: String },
}

impl Fault {
    /// The error of a sample in the block.
    pub(super) fn of_sample(&self, sample: String) -> DataError {
        match self.clone() {
            Self::Damaged(reason) => DataError::Unreadable { sample, reason },
            Self::Unavailable { place, reason } => DataError::Unavailable { place, reason },
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { place, reason } => Self::Unavailable { place, reason },
            error => Self::Damaged(format!("cannot read the file: {error}")),
        }
    }
}

/// How many rows of `group` make a block.
pub(super) fn rows_per_block(group: &RowGroupMetaData, columns: &Columns, rows: usize) -> usize {
    let bytes = u64::try_from(group.column(columns.bytes).uncompressed_size()).unwrap_or(0).max(1);
    let share = (rows as u64).saturating_mul(BLOCK_BYTES) / bytes;
    usize::try_from(share).unwrap_or(usize::MAX).clamp(1, rows.clamp(1, MAX_ROWS))
}

/// Decodes `count` rows of `group` from row `first` on.
pub(super) fn read(
    stored: &StoredFile,
    group: &RowGroupMetaData,
    columns: &Columns,
    first: usize,
    count: usize,
) -> Loaded {
    let stored = Arc::new(stored.alone());
    let decoded = guard(|| {
        let rows = Rows { stored: Arc::clone(&stored), group, first, count };
        let images = rows.binary(columns.bytes)?;
        let paths = columns.path.map_or(Ok(vec![None; count]), |leaf| rows.binary(leaf))?;
        let numbers = columns.label.as_ref().filter(|label| !label.text);
        let labels = numbers.map_or(Ok(vec![None; count]), |label| rows.integer(label.leaf))?;
        Ok(Block { images, paths, labels })
    });
    decoded.map_err(|reason| stored.take_error().map_or(Fault::Damaged(reason), Fault::from))
}

/// Decodes all values of a column of text.
pub(super) fn read_texts(
    stored: &StoredFile,
    group: &RowGroupMetaData,
    leaf: usize,
    count: usize,
) -> Result<Vec<Option<Bytes>>, Fault> {
    let stored = Arc::new(stored.alone());
    let decoded = guard(|| Rows { stored: Arc::clone(&stored), group, first: 0, count }.binary(leaf));
    decoded.map_err(|reason| stored.take_error().map_or(Fault::Damaged(reason), Fault::from))
}

/// A range of rows of one row group, read column by column.
struct Rows<'a> {
    stored: Arc<StoredFile>,
    group: &'a RowGroupMetaData,
    first: usize,
    count: usize,
}

impl Rows<'_> {
    /// Copies the values out of their pages, which would stay alive otherwise, into one piece of memory. The rows of a long
    /// value of a dictionary share it.
    fn binary(&self, leaf: usize) -> Result<Vec<Option<Bytes>>, String> {
        let values: Vec<Option<ByteArray>> = self.column::<ByteArrayType>(leaf)?;
        let (mut all, mut places) = (Vec::new(), HashMap::<PlaceOf, Range<usize>>::new());
        let mut keep = |value: &ByteArray| {
            let place = value.place();
            if let Some(range) = place.and_then(|place| places.get(&place)) {
                return range.clone();
            }
            all.extend_from_slice(value.data());
            let range = all.len() - value.len()..all.len();
            places.extend(place.map(|place| (place, range.clone())));
            range
        };
        let ranges: Vec<_> = values.iter().map(|value| value.as_ref().map(&mut keep)).collect();
        let all = Bytes::from(all);
        Ok(ranges.into_iter().map(|range| range.map(|range| all.slice(range))).collect())
    }

    fn integer(&self, leaf: usize) -> Result<Vec<Option<i64>>, String> {
        if self.group.column(leaf).column_type() == Physical::INT32 {
            let values = self.column::<Int32Type>(leaf)?;
            return Ok(values.into_iter().map(|value| value.map(i64::from)).collect());
        }
        self.column::<Int64Type>(leaf)
    }

    fn column<T: DataType>(&self, leaf: usize) -> Result<Vec<Option<T::T>>, String>
    where
        T::T: Weight,
    {
        let (values, levels) = self.values::<T>(leaf).map_err(|e| e.to_string())?;
        let most = self.group.column(leaf).column_descr().max_def_level();
        let found = if most == 0 { values.len() } else { levels.len() };
        if found != self.count {
            return Err(format!("the row group ends after {} of {} rows", self.first + found, self.group.num_rows()));
        }
        if most == 0 {
            return Ok(values.into_iter().map(Some).collect());
        }
        let mut values = values.into_iter();
        Ok(levels.into_iter().map(|level| if level == most { values.next() } else { None }).collect())
    }

    /// The values that are not null, and the definition level of each row.
    fn values<T: DataType>(&self, leaf: usize) -> Result<(Vec<T::T>, Vec<i16>), ParquetError>
    where
        T::T: Weight,
    {
        let chunk = self.group.column(leaf);
        let rows = usize::try_from(self.group.num_rows()).unwrap_or(0);
        let pages = SerializedPageReader::new(Arc::clone(&self.stored), chunk, rows, None)?;
        let mut reader = ColumnReaderImpl::<T>::new(chunk.column_descr_ptr(), Box::new(pages));
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        if reader.skip_records(self.first)? == self.first {
            let (mut left, mut seen, mut bytes) = (self.count, HashSet::new(), 0);
            while left > 0 {
                let before = values.len();
                let at_once = left.min(ROWS_AT_ONCE);
                let (records, _, _) = reader.read_records(at_once, Some(&mut levels), None, &mut values)?;
                let anew = values[before..].iter().filter(|value| value.place().is_none_or(|place| seen.insert(place)));
                bytes += anew.map(Weight::bytes).sum::<usize>();
                // One value may be as large as images are.
                if bytes > MAX_BYTES && values.len() > 1 {
                    let rows = self.first + self.count - left;
                    return Err(ParquetError::General(format!("{bytes} bytes in the rows of a block, up to {rows}")));
                }
                if records == 0 {
                    break;
                }
                left -= records;
            }
        }
        Ok((values, levels))
    }
}

/// Where the bytes of a value lie and how many there are; equal for the rows of a value of a dictionary.
type PlaceOf = (*const u8, usize);

/// A value of a column, which may have bytes beside itself.
trait Weight {
    fn bytes(&self) -> usize {
        0
    }

    /// Of a long value.
    fn place(&self) -> Option<PlaceOf> {
        None
    }
}

impl Weight for i32 {}
impl Weight for i64 {}

impl Weight for ByteArray {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn place(&self) -> Option<PlaceOf> {
        (self.len() >= LONG).then(|| (self.data().as_ptr(), self.len()))
    }
}

/// Which block: the number of its row group in the source, and its own number in the group.
pub(super) type Key = (usize, usize);

/// A cache of decoded blocks, bounded by their bytes; the least recently used are dropped first.
///
/// The lock covers only the bookkeeping. A block is decoded outside of it: threads that want the same block wait for
/// one decoding, threads that want others do not wait.
#[derive(Debug)]
pub(super) struct BlockCache {
    budget: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Slot>,
    /// Keys by the time of their last use.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Slot {
    block: Arc<OnceLock<Arc<Loaded>>>,
    used: u64,
    bytes: usize,
}

impl BlockCache {
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::default() }
    }

    /// The block at `key`, by `load` where it is not there.
    pub(super) fn get(&self, key: Key, load: impl FnOnce() -> Loaded) -> Arc<Loaded> {
        let cell = self.lock().touch(key);
        let mut fresh = false;
        let block = cell.get_or_init(|| {
            fresh = true;
            Arc::new(load())
        });
        if fresh {
            self.lock().keep(key, weight(block), self.budget);
        }
        Arc::clone(block)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The slot's cell; the slot is now the most recently used.
    fn touch(&mut self, key: Key) -> Arc<OnceLock<Arc<Loaded>>> {
        self.clock += 1;
        let slot = self.slots.entry(key).or_default();
        self.by_use.remove(&slot.used);
        slot.used = self.clock;
        self.by_use.insert(self.clock, key);
        Arc::clone(&slot.block)
    }

    /// Counts a block just decoded, and drops the oldest ones beyond the budget (never the block itself).
    fn keep(&mut self, key: Key, bytes: usize, budget: usize) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        // Two threads may have decoded it, if it was dropped in between: count it once.
        self.bytes = self.bytes - slot.bytes + bytes;
        slot.bytes = bytes;
        while self.bytes > budget {
            let Some((&used, &oldest)) = self.by_use.iter().find(|&(_, &k)| k != key) else { return };
            self.by_use.remove(&used);
            self.bytes -= self.slots.remove(&oldest).map_or(0, |slot| slot.bytes);
        }
    }
}

fn weight(block: &Loaded) -> usize {
    let images = block.as_ref().map_or(0, |b| b.images.iter().flatten().map(|image| image.len()).sum());
    images + BLOCK_OVERHEAD
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn block(bytes: usize) -> Loaded {
        Ok(Block { images: vec![Some(vec![0; bytes].into())], paths: vec![None], labels: vec![None] })
    }

    #[test]
    fn the_least_recently_used_block_leaves_first() {
        let cache = BlockCache::new(3 * (1000 + BLOCK_OVERHEAD));
        let loads = AtomicUsize::new(0);
        let get = |n| {
            let before = loads.load(Ordering::Relaxed);
            cache.get((n, 0), || {
                loads.fetch_add(1, Ordering::Relaxed);
                block(1000)
            });
            loads.load(Ordering::Relaxed) > before
        };
        assert_eq!([get(1), get(2), get(3), get(1)], [true, true, true, false]);
        assert!(get(4), "displaces 2");
        assert_eq!([get(1), get(3), get(4)], [false; 3]);
        assert!(get(2));
        let state = cache.lock();
        assert_eq!(state.slots.len(), 3);
        assert_eq!(state.by_use.len(), 3);
        assert_eq!(state.bytes, 3 * (1000 + BLOCK_OVERHEAD));
    }

    #[test]
    fn a_block_larger_than_the_budget_is_still_served() {
        let cache = BlockCache::new(10);
        assert!(cache.get((0, 0), || block(5000)).is_ok());
        assert!(cache.get((1, 0), || block(5000)).is_ok());
        assert_eq!(cache.lock().slots.len(), 1);
    }

    #[test]
    fn threads_wait_for_one_decoding_of_the_same_block_but_not_for_others() {
        let cache = BlockCache::new(CACHE_BYTES);
        let loads = AtomicUsize::new(0);
        let (started, wait) = std::sync::mpsc::channel();
        let (release, blocked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (cache, loads) = (&cache, &loads);
            scope.spawn(move || {
                cache.get((0, 0), || {
                    loads.fetch_add(1, Ordering::Relaxed);
                    started.send(()).unwrap();
                    blocked.recv().unwrap();
                    block(1)
                });
            });
            wait.recv().unwrap();
            // The first block is being decoded; another one comes at once.
            assert!(cache.get((1, 0), || block(1)).is_ok());
            let second = scope.spawn(|| cache.get((0, 0), || Err(Fault::Damaged("decoded twice".into()))));
            release.send(()).unwrap();
            assert!(second.join().unwrap().is_ok());
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }
}
