#![allow(clippy::unwrap_used)]
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::format::{OpenOptions, ranges::RangeSource, tar};
use crate::store::{Located, StoreOptions, locate};
use crate::testing::config;
use crate::{Batcher, LoaderConfig, Share, Source};

const KIND: &str = "tar shard";

fn span(number: usize) -> Span {
    Span { offset: 512 + 1024 * number as u64, size: number as u32 % 700, label: number as u32 % 10 }
}

fn head(lens: Vec<usize>) -> Head {
    let class_names = Some((0..10).map(|class| format!("class {class}")).collect());
    let (fingerprint, notices) = ("f".into(), vec!["said".into()]);
    Head { identity: "i".into(), lens, has_labels: true, unlabelled: 0, class_names, fingerprint, notices }
}

#[test]
fn rows_come_back_from_any_place_of_any_chunk() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sets/a.index");
    for len in [1, ROWS - 1, ROWS, ROWS + 1, 5 * ROWS + 7] {
        write_rows(&path, &head(vec![len / 2, len - len / 2]), (0..len).map(|i| (span(i), format!("ü{i}")))).unwrap();
        let found = open(&path, "i", "here", KIND).unwrap();
        assert_eq!((found.lens.iter().sum::<usize>(), found.about.notices), (len, vec!["said".to_owned()]));
        for index in (0..len).rev() {
            assert_eq!(found.kept.row(index).unwrap(), (span(index), format!("ü{index}")));
        }
        assert!(found.kept.row(len).is_err());
        assert!(open(&path, "another set", "here", KIND).is_none());
    }
    assert_eq!(std::fs::read_dir(dir.path().join("sets")).unwrap().count(), 1, "nothing half-written");
}

#[test]
fn a_damaged_byte_is_noticed_wherever_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.index");
    write_rows(&path, &head(vec![20]), (0..20).map(|i| (span(i), i.to_string()))).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        if let Some(found) = open(&path, "i", "here", KIND) {
            let error = found.kept.row(3).unwrap_err().to_string();
            assert!(error.contains("damaged"), "byte {at}: {error}");
        }
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(open(&path, "i", "here", KIND).is_none(), "{at} bytes");
    }
}

/// Opens a folder of shards as if it were large, with its index kept in `cache`.
fn open_kept(folder: &Path, cache: &Path) -> RangeSource {
    open_splits(folder, cache, None)
}

/// As [`open_kept`], those of a split.
fn open_splits(folder: &Path, cache: &Path, split: Option<&str>) -> RangeSource {
    let options = StoreOptions { cache_dir: Some(cache.to_owned()), ..StoreOptions::default() };
    let Located::Folder(store) = locate(folder.to_str().unwrap(), &options).unwrap() else { panic!("no folder") };
    let (shards, others): (Vec<_>, Vec<_>) =
        store.list().unwrap().files.into_iter().partition(|file| file.name.extension().is_some_and(|end| end == "tar"));
    tar::open_keeping(folder.to_str().unwrap(), store, shards, &others, split, 1).unwrap()
}

#[test]
fn a_kept_index_gives_the_same_source_until_a_shard_changes() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = crate::open("builtin:fashion10k", &OpenOptions::default()).unwrap();
    let packing = crate::PackConfig {
        pack_as: crate::PackAs::Original,
        fitting: crate::Fitting::default(),
        shard_images: 1000,
        workers: 0,
        limits: crate::ImageLimits::default(),
    };
    let sliced =
        crate::open("builtin:fashion10k", &OpenOptions { split: Some("all[:2500]".into()), ..Default::default() });
    crate::pack(&*sliced.unwrap(), dir.path(), &packing, &|_| ()).unwrap();
    drop(source);
    let held = crate::open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
    for time in ["made", "found"] {
        let kept = open_kept(dir.path(), cache.path());
        assert_eq!((kept.len(), kept.fingerprint()), (held.len(), held.fingerprint()), "{time}");
        assert_eq!((kept.class_names(), kept.notices()), (held.class_names(), held.notices()));
        assert_eq!(kept.describe(), held.describe());
        for index in (0..2500).step_by(7) {
            assert_eq!(kept.read(index).unwrap(), held.read(index).unwrap());
        }
    }
    assert_eq!(std::fs::read_dir(cache.path().join("sets")).unwrap().count(), 1);
    std::fs::rename(dir.path().join("images-000000.tar"), dir.path().join("images-000003.tar")).unwrap();
    assert_ne!(open_kept(dir.path(), cache.path()).fingerprint(), held.fingerprint(), "an index of other shards");
}

/// A folder of two packed shards of 10 images each, named after the splits that they shall be.
fn two_splits() -> TempDir {
    let dir = TempDir::new().unwrap();
    let some = OpenOptions { split: Some("all[:20]".into()), ..Default::default() };
    let packing = crate::PackConfig {
        pack_as: crate::PackAs::Original,
        fitting: crate::Fitting::default(),
        shard_images: 10,
        workers: 1,
        limits: crate::ImageLimits::default(),
    };
    let to = dir.path().join("packed");
    crate::pack(&*crate::open("builtin:fashion10k", &some).unwrap(), &to, &packing, &|_| ()).unwrap();
    for (packed, split) in [("images-000000.tar", "train-0.tar"), ("images-000001.tar", "test-0.tar")] {
        std::fs::rename(to.join(packed), dir.path().join(split)).unwrap();
    }
    std::fs::remove_dir_all(to).unwrap();
    dir
}

#[test]
fn what_is_said_of_a_choice_of_splits_is_not_kept() {
    let (dir, cache) = (two_splits(), TempDir::new().unwrap());
    let said = |split: Option<&str>| {
        let source = open_splits(dir.path(), cache.path(), split);
        assert_eq!(source.len(), 10);
        source.notices().iter().filter(|notice| notice.contains("data.split is not set")).count()
    };
    assert_eq!([said(None), said(None), said(Some("train")), said(None)], [1, 1, 0, 1]);
    std::fs::remove_dir_all(cache.path().join("sets")).unwrap();
    assert_eq!([said(Some("train")), said(None)], [0, 1]);
}

#[test]
fn a_damaged_chunk_is_an_error_once_and_the_index_is_made_again() {
    let (dir, cache) = (two_splits(), TempDir::new().unwrap());
    let open = || open_splits(dir.path(), cache.path(), Some("train"));
    let first = open().read(0).unwrap();
    let kept = std::fs::read_dir(cache.path().join("sets")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&kept).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    let error = open().read(0).unwrap_err();
    assert_eq!(error.help().unwrap(), "it was removed: the same command makes it again");
    assert!(error.to_string().starts_with(kept.to_str().unwrap()), "{error}");
    assert!(!kept.exists());
    assert_eq!(open().read(0).unwrap(), first);
    assert!(kept.exists());
}

#[test]
fn what_killed_processes_left_in_the_cache_is_removed_when_a_set_is_opened() {
    let (dir, cache) = (two_splits(), TempDir::new().unwrap());
    let make = |name: &str, seconds: u64| {
        let path = cache.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let changed = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        File::create(&path).unwrap().set_modified(changed).unwrap();
        path
    };
    let left = [make("sets/0a.17.tmp", 7200), make("shards/0b.17-3.tmp", 7200)];
    let others = [make("sets/0c.18.tmp", 60), make("shards/0d.index", 7200)];
    open_splits(dir.path(), cache.path(), Some("train"));
    assert!(!left.iter().any(|path| path.exists()) && others.iter().all(|path| path.exists()));
}

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "writes an index of 3.3 GB: cargo test -p ddpm-data --lib -- --ignored --nocapture a_hundred_million"]
fn a_hundred_million_samples_open_in_a_second_and_a_hundred_megabytes() {
    const SHARDS: usize = 10_000;
    const EACH: usize = 10_000;
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for number in 0..SHARDS {
        // Holes: they have a size and take no room.
        let shard = File::create(dir.path().join(format!("images-{number:06}.tar"))).unwrap();
        shard.set_len(512 + 1024 * EACH as u64 + 1024).unwrap();
    }
    let options = StoreOptions { cache_dir: Some(cache.path().to_owned()), ..StoreOptions::default() };
    let Located::Folder(store) = locate(dir.path().to_str().unwrap(), &options).unwrap() else { panic!("no folder") };
    let files = store.list().unwrap().files;
    let (path, identity) = tar::index_of_set(&*store, &files).unwrap();
    let head = Head { identity, ..head(vec![EACH; SHARDS]) };
    let begun = Instant::now();
    write_rows(&path, &head, (0..SHARDS * EACH).map(|i| (span(i % EACH), format!("{i:09}.png")))).unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    println!("index of {} samples: {size} bytes, written in {:.1} s", SHARDS * EACH, begun.elapsed().as_secs_f64());
    drop((store, files));
    // The highest memory so far becomes what is held now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, begun) = (memory("VmRSS:"), Instant::now());
    let options = OpenOptions { stores: options, ..OpenOptions::default() };
    let source = crate::open(dir.path().to_str().unwrap(), &options).unwrap();
    let opened = begun.elapsed();
    let grown = memory("VmHWM:").saturating_sub(before);
    println!("opened in {:.3} s, {:.1} MB more", opened.as_secs_f64(), grown as f64 / 1e6);
    assert_eq!(source.len(), SHARDS * EACH);
    let settings = LoaderConfig { share: Share::whole(64), num_classes: None, ..config() };
    let begun = Instant::now();
    let batcher = Batcher::new(std::sync::Arc::clone(&source), settings).unwrap();
    let indices = batcher.indices(&batcher.positions(90_000_000 / 64));
    let found: Vec<_> = indices.iter().map(|&index| source.read(index).unwrap().bytes.len()).collect();
    let resumed = begun.elapsed();
    println!("the bytes of the batch at position 90,000,000: {:.2} ms", 1e3 * resumed.as_secs_f64());
    assert!(indices.iter().zip(&found).all(|(&index, &size)| size == span(index % EACH).size as usize));
    assert!(opened.as_secs_f64() < 1.0 && grown < 100_000_000 && resumed.as_secs_f64() < 0.01);
}
