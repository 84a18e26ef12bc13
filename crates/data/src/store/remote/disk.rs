//! Copies of blocks in a folder that all runs of a user share, bounded in bytes; what was used longest ago is dropped first.
//!
//! A block is a file, whose name is a hash of the object (place, size, version) and the block's number, and whose first bytes
//! are the hash of the rest: one that is not whole is not there. It is written beside and renamed, so that several processes may
//! read, write and drop at the same time. The time of last use is the file's time of change. Nothing here ends a run. What else lies
//! in the folder is somebody's, and is neither counted nor dropped.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::cache_file::{FORGOTTEN, write_beside};

/// Letters of a block's name.
const BLOCK_NAME: usize = 64;
/// Of blake3, in front of the block.
const HASH: usize = 32;
/// The time of use is noted so often: more exactly is not worth a write.
const NOTED_EVERY: Duration = Duration::from_secs(60);
/// After dropping, so much of the limit is in use.
const KEPT: f64 = 0.9;

/// See the module.
#[derive(Debug)]
pub(super) struct DiskCache {
    folder: PathBuf,
    limit: u64,
    /// As counted last, and what this process has written since: others are seen at the next count.
    used: AtomicU64,
    /// A block could not be written: it has been said, and is not tried again.
    given_up: AtomicBool,
}

impl DiskCache {
    /// The cache in `folder`, which is made when the first block is kept.
    pub(super) fn new(folder: PathBuf, limit: u64) -> Self {
        let used = files(&folder).map(|(_, size, _)| size).sum();
        Self { folder, limit, used: AtomicU64::new(used), given_up: AtomicBool::new(false) }
    }

    /// The block with this name, if it is there and whole.
    pub(super) fn get(&self, name: &str) -> Option<Bytes> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        let mut file = File::open(&path).ok()?;
        file.read_to_end(&mut bytes).ok()?;
        let mut bytes = Bytes::from(bytes);
        if bytes.len() < HASH {
            return self.damaged(&path);
        }
        let block = bytes.split_off(HASH);
        if blake3::hash(&block).as_bytes()[..] != bytes[..] {
            return self.damaged(&path);
        }
        let changed = file.metadata().and_then(|about| about.modified()).unwrap_or(SystemTime::now());
        if changed.elapsed().is_ok_and(|since| since > NOTED_EVERY) {
            // Not noted on a disk that may only be read.
            let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        }
        Some(block)
    }

    fn damaged(&self, path: &Path) -> Option<Bytes> {
        tracing::debug!("{}: damaged, fetched again", path.display());
        // If it stays, it is written over.
        let _ = fs::remove_file(path);
        None
    }

    /// Keeps a block.
    pub(super) fn put(&self, name: &str, block: &[u8]) {
        if self.given_up.load(Ordering::Relaxed) || block.len() as u64 > self.limit {
            return;
        }
        match self.write(name, block) {
            Ok(()) => {
                let size = (block.len() + HASH) as u64;
                if self.used.fetch_add(size, Ordering::Relaxed) + size > self.limit {
                    self.drop_oldest();
                }
            }
            Err(error) => {
                if !self.given_up.swap(true, Ordering::Relaxed) {
                    let folder = self.folder.display();
                    tracing::warn!(
                        "{folder}: data from the network is not kept, and is fetched again when needed: {error}"
                    );
                }
            }
        }
    }

    fn write(&self, name: &str, block: &[u8]) -> std::io::Result<()> {
        write_beside(&self.path(name), |mut file| {
            file.write_all(blake3::hash(block).as_bytes())?;
            file.write_all(block)
        })
    }

    /// Drops the blocks used longest ago.
    fn drop_oldest(&self) {
        let mut there: Vec<_> = files(&self.folder).collect();
        there.sort_unstable_by_key(|(_, _, used)| *used);
        let mut used: u64 = there.iter().map(|(_, size, _)| size).sum();
        let wanted = (self.limit as f64 * KEPT) as u64;
        for (path, size, _) in there {
            if used <= wanted {
                break;
            }
            // Another process may have been faster.
            let _ = fs::remove_file(path);
            used -= size;
        }
        self.used.store(used, Ordering::Relaxed);
    }

    /// In one of 256 folders: some file systems are slow with many names in one.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name.get(..2).unwrap_or("_")).join(name)
    }
}

/// The files of the cache: path, size, time of last use. Unfinished ones that are old are removed.
fn files(folder: &Path) -> impl Iterator<Item = (PathBuf, u64, SystemTime)> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let all = entries(folder).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let all = all.flat_map(move |folder| entries(&folder.path()));
    all.filter_map(|entry| {
        let name = entry.file_name();
        let (block, end) = name.to_str()?.split_at_checked(BLOCK_NAME)?;
        let ours = block.bytes().all(|byte| byte.is_ascii_hexdigit()) && entry.path().parent()?.ends_with(&block[..2]);
        let unfinished = end.starts_with('.') && end.ends_with(".tmp");
        let about = entry.metadata().ok().filter(|about| ours && about.is_file() && (end.is_empty() || unfinished))?;
        let used = about.modified().ok()?;
        if unfinished && used.elapsed().is_ok_and(|since| since > FORGOTTEN) {
            // Another process may have been faster.
            let _ = fs::remove_file(entry.path());
            return None;
        }
        Some((entry.path(), about.len(), used))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tempfile::TempDir;

    fn name(number: u8) -> String {
        blake3::hash(&[number]).to_hex().to_string()
    }

    fn used_long_ago(cache: &DiskCache, number: u8, hours: u64) {
        let file = File::options().append(true).open(cache.path(&name(number))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
    }

    #[test]
    fn what_is_not_of_the_cache_stays() {
        let dir = TempDir::new().unwrap();
        let theirs = ["photos/wedding.jpg", "photos/notes.tmp", "ab/wedding.jpg", "ab/notes.tmp"]
            .map(|name| dir.path().join(name));
        let cache = DiskCache::new(dir.path().to_owned(), 100);
        for path in &theirs {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, [0; 200]).unwrap();
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * 24)).unwrap();
        }
        for number in 0..4 {
            cache.put(&name(number), &[number; 50]);
        }
        drop(DiskCache::new(dir.path().to_owned(), 100));
        assert!(theirs.iter().all(|path| path.exists()));
        assert_eq!((0..4).filter(|&number| cache.get(&name(number)).is_some()).count(), 1);
    }

    #[test]
    fn a_block_comes_back_whole_or_not_at_all() {
        let dir = TempDir::new().unwrap();
        let cache = DiskCache::new(dir.path().join("blocks"), 1 << 20);
        assert_eq!(cache.get(&name(1)), None);
        cache.put(&name(1), b"some bytes");
        assert_eq!(cache.get(&name(1)).unwrap(), "some bytes");
        let path = cache.path(&name(1));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.get(&name(1)), None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(cache.get(&name(1)), None, "cut at {at}");
        }
    }

    #[test]
    fn the_block_used_longest_ago_leaves_first_and_the_limit_holds() {
        let dir = TempDir::new().unwrap();
        let cache = DiskCache::new(dir.path().join("blocks"), 4 * 1032);
        (1..=4).for_each(|number| cache.put(&name(number), &[number; 1000]));
        (1..=4).for_each(|number| used_long_ago(&cache, number, u64::from(number)));
        assert!(cache.get(&name(4)).is_some(), "which is a use");
        cache.put(&name(5), &[5; 1000]);
        let there: Vec<u8> = (1..=5).filter(|&number| cache.get(&name(number)).is_some()).collect();
        assert_eq!(there, [1, 4, 5], "90 % of the limit are three blocks");
        assert!(files(&cache.folder).map(|(_, size, _)| size).sum::<u64>() <= cache.limit);
    }

    #[test]
    fn several_users_of_a_small_cache_get_their_own_blocks_or_none() {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("blocks");
        std::thread::scope(|scope| {
            for user in 0..4u8 {
                let folder = folder.clone();
                scope.spawn(move || {
                    let cache = DiskCache::new(folder, 5 * 1032);
                    for round in 0..50u8 {
                        let number = user.wrapping_mul(7).wrapping_add(round) % 10;
                        cache.put(&name(number), &[number; 1000]);
                        if let Some(block) = cache.get(&name(number)) {
                            assert_eq!(block, vec![number; 1000]);
                        }
                    }
                });
            }
        });
        assert!(!DiskCache::new(folder, 1).given_up.load(Ordering::Relaxed));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_cache_and_no_error() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let cache = DiskCache::new(dir.path().join("file/blocks"), 1 << 20);
        cache.put(&name(1), b"x");
        assert!(cache.given_up.load(Ordering::Relaxed));
        assert_eq!(cache.get(&name(1)), None);
    }
}
