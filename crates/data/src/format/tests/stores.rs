//! What formats do with stores other than a quiet disk.

use std::time::{Duration, Instant};

use super::shards::archive;
use crate::testing::config;
use crate::{Batcher, Loader, LoaderConfig, Share, Shuffle};

use super::*;

/// The files below `folder` in a store that is not the disk.
pub(super) fn remote_copy(folder: &Path, remote: Remote) -> Arc<Remote> {
    let Located::Folder(store) = store::locate(folder.to_str().unwrap(), &StoreOptions::default()).unwrap() else {
        panic!("a folder")
    };
    let files = store.list().unwrap().files.into_iter().map(|file| {
        let bytes = fs::read(folder.join(&file.name)).unwrap();
        (file.name, bytes.into())
    });
    Arc::new(Remote { files: files.collect(), ..remote })
}

#[test]
fn a_source_in_another_store_is_the_same_and_reads_files_together() {
    let dir = TempDir::new().unwrap();
    for i in 0..20u8 {
        fs::write(dir.path().join(format!("{i:02}.png")), grey_png(6, i)).unwrap();
    }
    let near = open_path(dir.path()).unwrap();
    let store = remote_copy(dir.path(), Remote { at_once: 8, ..Remote::default() });
    let far = open_folder("s3://far", Arc::clone(&store) as _, Format::Auto, None, ImageLimits::default()).unwrap();
    assert_eq!(near.fingerprint(), far.fingerprint());
    let settings = LoaderConfig { num_classes: None, ..config() };
    let batch = |source| Batcher::new(source, settings.clone()).unwrap().batch_at(7).unwrap();
    assert_eq!(batch(near), batch(far));
    assert_eq!(*store.calls.lock().unwrap(), [8, 8], "16 images, at most 8 in a call");
}

#[test]
fn a_call_for_many_files_is_bounded_by_their_bytes() {
    let mut remote = Remote { at_once: 8, ..Remote::default() };
    let size = usize::try_from(files::READ_AT_ONCE_BYTES).unwrap() / 3;
    remote.files = (0..5).map(|i| (format!("{i}.png").into(), vec![0; size].into())).collect();
    let remote = Arc::new(remote);
    let source = open_folder("s3://far", Arc::clone(&remote) as _, Format::Auto, None, ImageLimits::default()).unwrap();
    assert_eq!(source.read_many(&[0, 1, 2, 3, 4]).len(), 3);
    assert_eq!(source.read_many(&[4]).len(), 1);
    assert_eq!(*remote.calls.lock().unwrap(), [3, 1]);
}

#[test]
fn over_a_network_a_window_is_fetched_while_the_one_before_it_is_read() {
    let dir = TempDir::new().unwrap();
    let images: Vec<_> = (0..100).map(|i| (format!("{i:03}.png"), grey_png(6, i))).collect();
    let files: Vec<_> = images.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    fs::write(dir.path().join("x.tar"), archive(&files)).unwrap();
    let store = remote_copy(dir.path(), Remote { at_once: 8, ..Remote::default() });
    let source = open_folder("s3://far", Arc::clone(&store) as _, Format::Auto, None, ImageLimits::default()).unwrap();
    assert!(source.is_far());
    let settings =
        |shuffle| LoaderConfig { num_classes: None, share: Share::whole(10), shuffle, prefetch: 1, ..config() };
    let mut loader = Loader::start(Arc::clone(&source), settings(Shuffle::Windows(20)), 0).unwrap();
    let ids: Vec<u64> = (0..12).flat_map(|_| loader.next().unwrap().ids).collect();
    let start = Instant::now();
    while store.needed.lock().unwrap().len() < 100 && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let needed = store.needed.lock().unwrap()[..100].to_vec();
    drop(loader);
    // A header and an image are two blocks of a tar file.
    let mut needed: Vec<u64> = needed.iter().map(|start| start / 1024).collect();
    for (window, (fetched, read)) in needed[..80].chunks_mut(20).zip(ids[20..100].chunks(20)).enumerate() {
        let mut read = read.to_vec();
        fetched.sort_unstable();
        read.sort_unstable();
        assert_eq!(fetched, read, "window {}", window + 1);
    }
    let before = store.needed.lock().unwrap().len();
    let mut whole = Loader::start(source, settings(Shuffle::Whole), 0).unwrap();
    (0..12).for_each(|_| drop(whole.next().unwrap()));
    assert_eq!(store.needed.lock().unwrap().len(), before, "without windows nothing is next to anything");
}

#[test]
fn a_store_out_of_reach_ends_the_run_and_blames_no_sample() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, bytes: Vec<u8>| fs::write(dir.path().join(name), bytes).unwrap();
    write("a.png", grey_png(4, 1));
    let folder = remote_copy(dir.path(), Remote::default());
    write("x.parquet", parquet_bytes(&rows(0..30), &Layout::default()));
    let parquet = remote_copy(dir.path(), Remote::default());
    for store in [folder, parquet] {
        let source =
            open_folder("s3://far", Arc::clone(&store) as _, Format::Auto, None, ImageLimits::default()).unwrap();
        store.down.store(true, std::sync::atomic::Ordering::Relaxed);
        let error =
            Batcher::new(source, LoaderConfig { num_classes: None, ..config() }).unwrap().batch_at(0).unwrap_err();
        assert_eq!(error.to_string(), "s3://far: the data cannot be reached: 503 after 8 attempts");
        assert!(matches!(error, DataError::Unavailable { .. }));
    }
}

#[test]
fn a_folder_that_is_taken_away_is_told_from_a_missing_file() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.png"), grey_png(4, 1)).unwrap();
    fs::write(dir.path().join("b.png"), grey_png(4, 2)).unwrap();
    let source = open_path(dir.path()).unwrap();
    fs::remove_file(dir.path().join("a.png")).unwrap();
    assert!(matches!(source.read(0), Err(DataError::Unreadable { .. })));
    fs::remove_dir_all(dir.path()).unwrap();
    let error = source.read(0).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}: the data cannot be reached", dir.path().display())), "{error}");
    assert!(error.help().unwrap().contains("mounted"));
}

#[test]
fn a_file_that_changes_after_it_was_listed_is_noticed() {
    let dir = TempDir::new().unwrap();
    let (image, table) = (dir.path().join("a/a.png"), dir.path().join("b/b.parquet"));
    [&image, &table].iter().for_each(|file| fs::create_dir(file.parent().unwrap()).unwrap());
    fs::write(&image, b"12345").unwrap();
    fs::write(&table, parquet_bytes(&rows(0..30), &Layout::default())).unwrap();
    let sources = [&image, &table].map(|file| open_path(file.parent().unwrap()).unwrap());
    fs::write(&image, b"123456").unwrap();
    fs::write(&table, parquet_bytes(&rows(0..31), &Layout::default())).unwrap();
    let error = sources[0].read(0).unwrap_err().to_string();
    assert_eq!(error, "a.png: the file has changed since it was listed: 5 bytes then, 6 now");
    let error = sources[1].read(7).unwrap_err().to_string();
    assert!(error.starts_with("b.parquet row 7: cannot read the file: the file has changed since it was"), "{error}");
}
