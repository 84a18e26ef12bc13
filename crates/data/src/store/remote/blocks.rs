//! Blocks of objects in memory: each is fetched by one thread, whoever wants it, and the least recently used leave first.
//!
//! Samples are small and neighbours are wanted together, so objects are read in blocks of [`BLOCK_BYTES`]: the first sample of a
//! block pays for the others. Blocks also have names that are the same in every process, under which a disk can keep them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// A request costs as much time as some megabytes, and a sample is some kilobytes: a block is between the two.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;
/// Of all blocks in memory, beside those that are just being used.
pub(super) const MEMORY_BYTES: usize = 128 << 20;

/// An object's hash, and the number of one of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) object: [u8; 16],
    pub(super) number: u64,
}

impl Key {
    /// The same in every process.
    pub(super) fn name(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.object).update(&self.number.to_le_bytes());
        hash.finalize().to_hex().to_string()
    }
}

#[derive(Debug)]
enum Entry {
    /// A thread is fetching it.
    OnItsWay,
    There {
        block: Bytes,
        used: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Blocks that are there, by the time of their last use.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Blocks {
    budget: usize,
    state: Mutex<State>,
    /// A block came, or will not come.
    settled: Condvar,
}

/// What a thread wants, and has taken on to fetch. What has not come when it is dropped is free for others to fetch.
pub(super) struct Order<'a> {
    blocks: &'a Blocks,
    pub(super) there: HashMap<Key, Bytes>,
    pub(super) to_fetch: Vec<Key>,
    /// Others are fetching these.
    awaited: Vec<Key>,
}

impl Blocks {
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::default(), settled: Condvar::new() }
    }

    /// Takes what is there of `keys`, and takes on what nobody is fetching.
    pub(super) fn order(&self, keys: impl IntoIterator<Item = Key>) -> Order<'_> {
        let mut order = Order { blocks: self, there: HashMap::new(), to_fetch: Vec::new(), awaited: Vec::new() };
        let mut state = self.lock();
        for key in keys {
            match state.take(key) {
                Some(block) => _ = order.there.insert(key, block),
                None if state.entries.contains_key(&key) => order.awaited.push(key),
                None => {
                    state.entries.insert(key, Entry::OnItsWay);
                    order.to_fetch.push(key);
                }
            }
        }
        order
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order<'_> {
    /// A block has been fetched.
    pub(super) fn came(&mut self, key: Key, block: Bytes) {
        self.blocks.lock().keep(key, block.clone(), self.blocks.budget);
        self.blocks.settled.notify_all();
        self.to_fetch.retain(|&wanted| wanted != key);
        self.there.insert(key, block);
    }

    /// Waits for the blocks that others are fetching; those that did not come to them are ordered again: the next order has them.
    pub(super) fn await_others(&mut self) -> Vec<Key> {
        let mut lost = Vec::new();
        for key in std::mem::take(&mut self.awaited) {
            let waiting = |state: &mut State| matches!(state.entries.get(&key), Some(Entry::OnItsWay));
            let guard = self.blocks.settled.wait_while(self.blocks.lock(), waiting);
            match guard.unwrap_or_else(PoisonError::into_inner).take(key) {
                Some(block) => _ = self.there.insert(key, block),
                None => lost.push(key),
            }
        }
        lost
    }
}

impl Drop for Order<'_> {
    fn drop(&mut self) {
        if !self.to_fetch.is_empty() {
            let mut state = self.blocks.lock();
            self.to_fetch.iter().for_each(|key| _ = state.entries.remove(key));
            drop(state);
            self.blocks.settled.notify_all();
        }
    }
}

impl State {
    /// The block, which is now the most recently used.
    fn take(&mut self, key: Key) -> Option<Bytes> {
        let Some(Entry::There { block, used }) = self.entries.get_mut(&key) else { return None };
        self.clock += 1;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(block.clone())
    }

    /// Adds a block, and drops the oldest ones beyond the budget.
    fn keep(&mut self, key: Key, block: Bytes, budget: usize) {
        self.clock += 1;
        self.bytes += block.len();
        self.by_use.insert(self.clock, key);
        if let Some(Entry::There { block, used }) = self.entries.insert(key, Entry::There { block, used: self.clock }) {
            self.bytes -= block.len();
            self.by_use.remove(&used);
        }
        while self.bytes > budget {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            if let Some(Entry::There { block, .. }) = self.entries.remove(&oldest) {
                self.bytes -= block.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(number: u64) -> Key {
        Key { object: [7; 16], number }
    }

    fn fetch(blocks: &Blocks, number: u64) -> bool {
        let mut order = blocks.order([key(number)]);
        let fresh = order.to_fetch == [key(number)];
        if fresh {
            order.came(key(number), vec![number as u8; 100].into());
        }
        assert_eq!(order.there[&key(number)][0], number as u8);
        fresh
    }

    #[test]
    fn the_least_recently_used_block_leaves_first() {
        let blocks = Blocks::new(300);
        assert_eq!([1, 2, 3, 1].map(|number| fetch(&blocks, number)), [true, true, true, false]);
        assert!(fetch(&blocks, 4), "displaces 2");
        assert_eq!([1, 3, 4].map(|number| fetch(&blocks, number)), [false; 3]);
        assert!(fetch(&blocks, 2));
        let state = blocks.lock();
        assert_eq!((state.bytes, state.entries.len(), state.by_use.len()), (300, 3, 3));
    }

    #[test]
    fn a_block_on_its_way_is_awaited_and_one_that_was_given_up_is_free_again() {
        let blocks = Blocks::new(1000);
        let mut first = blocks.order([key(1), key(2)]);
        let mut second = blocks.order([key(1), key(2), key(3)]);
        assert_eq!((first.to_fetch.len(), second.to_fetch.clone()), (2, vec![key(3)]));
        second.came(key(3), Bytes::from_static(b"three"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || (second.await_others(), second.there.len()));
            first.came(key(1), Bytes::from_static(b"one"));
            drop(first);
            assert_eq!(waiting.join().unwrap(), (vec![key(2)], 2));
        });
        assert!(fetch(&blocks, 2));
    }
}
