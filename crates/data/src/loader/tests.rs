#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::testing::{Greys, config};
use crate::{Crop, ImageSize, OnCorrupt, OpenOptions, RawImage, Share, Shuffle, open};

fn greys(len: usize, corrupt: fn(usize) -> bool) -> Arc<dyn Source> {
    Arc::new(Greys { len, corrupt })
}

fn never(_: usize) -> bool {
    false
}

fn every_20th(index: usize) -> bool {
    index % 20 == 3
}

#[test]
fn batches_are_the_same_for_any_number_of_workers_and_any_start() {
    let source = greys(150, every_20th);
    let batcher = Batcher::new(Arc::clone(&source), config()).unwrap();
    let want: Vec<Batch> = (0..30).map(|step| batcher.batch_at(step).unwrap()).collect();
    for (workers, prefetch) in [(1, 0), (1, 4), (3, 1), (8, 16)] {
        for first in [0, 7, 23] {
            let settings = LoaderConfig { workers, prefetch, ..config() };
            let mut loader = Loader::start(Arc::clone(&source), settings, first).unwrap();
            for want in &want[first as usize..] {
                assert!(loader.next().unwrap() == *want, "{workers} workers, started at {first}");
            }
        }
    }
}

/// The images, labels and ids of `shares` one behind the other.
fn joined(shares: impl Iterator<Item = Batch>) -> Batch {
    let mut whole = Batch { images: Vec::new(), shape: [0, 8, 8, 1], labels: Some(Vec::new()), ids: Vec::new() };
    for share in shares {
        whole.shape[0] += share.shape[0];
        whole.images.extend(share.images);
        whole.ids.extend(share.ids);
        whole.labels.as_mut().unwrap().extend(share.labels.unwrap());
    }
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_shares_of_all_ranks_are_the_batch_of_one(
        len in 1usize..50, batch in 1usize..24, step in 0u64..40, seed: u64, corrupt: bool, random: bool, window in 0u64..60,
    ) {
        let source = greys(len, if corrupt && len > 4 { every_20th } else { never });
        let crop = if random { Crop::Random } else { Crop::Center };
        let shuffle = if window == 0 { Shuffle::Whole } else { Shuffle::Windows(window) };
        let settings = LoaderConfig { seed, crop, shuffle, share: Share::whole(batch), ..config() };
        let alone = Batcher::new(Arc::clone(&source), settings.clone()).unwrap().batch_at(step).unwrap();
        for world in 1..=batch.min(8) {
            let of_rank = |rank| {
                let share = Share::of_rank(rank, world, batch).unwrap();
                Batcher::new(Arc::clone(&source), LoaderConfig { share, ..settings.clone() }).unwrap().batch_at(step)
            };
            let together = joined((0..world).map(|rank| of_rank(rank).unwrap()));
            prop_assert!(together == alone, "{} ranks", world);
        }
    }
}

#[test]
fn every_resume_point_of_a_small_set_gives_each_rank_what_it_would_have_had() {
    for shuffle in [Shuffle::Whole, Shuffle::Windows(4), Shuffle::Windows(7)] {
        every_resume_point_in(shuffle);
    }
}

fn every_resume_point_in(shuffle: Shuffle) {
    // 14 images and batches of 6: the end of an epoch, and of a window, falls on every place of a batch, and between two.
    let (source, batch, steps) = (greys(14, |index| index == 5), 6, 15);
    let settings = LoaderConfig { share: Share::whole(batch), max_corrupt: 1.0, shuffle, ..config() };
    let batcher = Batcher::new(Arc::clone(&source), settings.clone()).unwrap();
    let alone: Vec<Batch> = (0..steps).map(|step| batcher.batch_at(step).unwrap()).collect();
    for world in 1..=6 {
        for first in 0..steps {
            let share = |rank| Share::of_rank(rank, world, batch).unwrap();
            let start = |rank| {
                Loader::start(Arc::clone(&source), LoaderConfig { share: share(rank), ..settings.clone() }, first)
            };
            let mut loaders: Vec<Loader> = (0..world).map(|rank| start(rank).unwrap()).collect();
            for (step, alone) in alone.iter().enumerate().skip(first as usize).take(4) {
                let together = joined(loaders.iter_mut().map(|loader| loader.next().unwrap()));
                assert!(together == *alone, "{world} ranks, resumed at {first}, step {step}");
            }
        }
    }
}

#[test]
fn ranks_together_see_every_sample_once_in_an_epoch() {
    for (world, window) in (1..=8).flat_map(|world| [(world, 48), (world, 10)]) {
        let shuffle = Shuffle::Windows(window);
        let settings = |rank| LoaderConfig { share: Share::of_rank(rank, world, 16).unwrap(), shuffle, ..config() };
        let batchers = (0..world).map(|rank| Batcher::new(greys(48, never), settings(rank)).unwrap());
        let mut ids: Vec<u64> =
            batchers.flat_map(|b| (0..3).flat_map(move |step| b.batch_at(step).unwrap().ids)).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..48).collect::<Vec<_>>(), "{world} ranks");
    }
}

#[test]
fn real_images_arrive_bit_for_bit_as_in_the_calling_thread() {
    let source = open("builtin:fashion10k", &OpenOptions::default()).unwrap();
    let settings = LoaderConfig { share: Share::whole(64), image_size: ImageSize::square(32), workers: 4, ..config() };
    let batcher = Batcher::new(Arc::clone(&source), settings.clone()).unwrap();
    let mut loader = Loader::start(source, settings, 150).unwrap();
    for step in 150..170 {
        let batch = loader.next().unwrap();
        assert_eq!(batch.shape, [64, 32, 32, 1]);
        assert!(batch == batcher.batch_at(step).unwrap(), "step {step}");
    }
}

#[test]
fn an_epoch_contains_every_sample_once() {
    let mut loader = Loader::start(greys(160, never), config(), 0).unwrap();
    let mut ids: Vec<u64> = (0..10).flat_map(|_| loader.next().unwrap().ids).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..160).collect::<Vec<_>>());
}

#[test]
fn pixels_labels_and_ids_belong_together() {
    let mut loader = Loader::start(greys(90, never), config(), 2).unwrap();
    for _ in 0..8 {
        let batch = loader.next().unwrap();
        let labels = batch.labels.unwrap();
        for ((pixels, id), label) in batch.images.chunks(64).zip(batch.ids).zip(labels) {
            assert!(pixels.iter().all(|&p| u64::from(p) == id));
            assert_eq!(u64::from(label), id % 10);
        }
    }
}

#[test]
fn labels_come_only_when_asked_for() {
    let settings = LoaderConfig { num_classes: None, ..config() };
    assert_eq!(Loader::start(greys(20, never), settings, 0).unwrap().next().unwrap().labels, None);
}

#[test]
fn corrupt_samples_are_replaced_and_each_is_reported_once() {
    let mut loader = Loader::start(greys(160, every_20th), config(), 0).unwrap();
    let mut warnings = Vec::new();
    for _ in 0..40 {
        let batch = loader.next().unwrap();
        assert!(batch.ids.iter().all(|&id| !every_20th(id as usize)));
        warnings.extend(loader.take_warnings());
    }
    let mut indices: Vec<usize> = warnings.iter().map(|w| w.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..160).filter(|&i| every_20th(i)).collect::<Vec<_>>());
    assert!(warnings[0].id.starts_with("grey "));
    assert!(!warnings[0].reason.is_empty());
}

#[test]
fn a_replacement_moves_no_other_sample() {
    let ids = |corrupt| {
        let batcher = Batcher::new(greys(160, corrupt), config()).unwrap();
        (0..40).flat_map(|step| batcher.batch_at(step).unwrap().ids).collect::<Vec<u64>>()
    };
    for (whole, torn) in ids(never).into_iter().zip(ids(every_20th)) {
        assert!(whole == torn || every_20th(whole as usize), "{whole} became {torn}");
    }
}

#[test]
fn too_many_corrupt_samples_end_the_run_at_the_same_step_for_any_workers() {
    let ends_at = |workers| {
        let settings = LoaderConfig { workers, max_corrupt: 0.02, ..config() };
        let mut loader = Loader::start(greys(400, every_20th), settings, 0).unwrap();
        let (mut steps, mut warned) = (0, 0);
        let error = loop {
            match loader.next() {
                Ok(_) => steps += 1,
                Err(error) => break error,
            }
            warned += loader.take_warnings().len();
        };
        assert!(warned <= 8, "2 % of 400");
        assert!(matches!(loader.next(), Err(DataError::Stopped)));
        (steps, error.to_string())
    };
    let (steps, message) = ends_at(1);
    assert_eq!((steps, &message), (ends_at(5).0, &ends_at(5).1));
    assert!(
        message.starts_with("9 unreadable among 400 samples, more than data.max_corrupt = 0.02 allows"),
        "{message}"
    );
}

#[test]
fn fail_stops_at_the_first_corrupt_sample_and_names_it() {
    let settings = LoaderConfig { on_corrupt: OnCorrupt::Fail, ..config() };
    let mut loader = Loader::start(greys(16, |index| index == 5), settings, 0).unwrap();
    let error = loader.next().unwrap_err();
    assert!(error.to_string().starts_with("grey 5: "), "{error}");
    assert!(error.help().unwrap().contains("data.on_corrupt"));
}

#[test]
fn a_source_with_nothing_readable_ends_with_an_error() {
    let settings = LoaderConfig { max_corrupt: 1.0, ..config() };
    let error = Loader::start(greys(30, |_| true), settings, 0).unwrap().next().unwrap_err();
    assert!(error.to_string().starts_with("30 samples in a row are unreadable, the last: grey "), "{error}");
}

#[test]
fn a_label_beyond_the_classes_names_the_sample_and_the_key_even_when_skipping() {
    let settings = LoaderConfig { num_classes: Some(9), ..config() };
    let error = Loader::start(greys(100, never), settings, 0).unwrap().next().unwrap_err().to_string();
    assert!(error.contains("label 9, but data.num_classes = 9 allows 0 to 8"), "{error}");
    assert!(error.starts_with("grey "));
}

/// Reads slowly, hangs until it is let go, or panics.
struct Odd {
    panics: bool,
    hangs: Arc<AtomicBool>,
    inner: Greys,
}

impl Source for Odd {
    fn len(&self) -> usize {
        self.inner.len
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        assert!(!self.panics || index != 40, "sample {index} is cursed");
        std::thread::sleep(Duration::from_millis(if self.panics { 0 } else { 20 }));
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inner.read(index)
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> &str {
        "odd"
    }

    fn describe(&self) -> String {
        "odd".into()
    }
}

fn odd(panics: bool) -> Arc<dyn Source> {
    Arc::new(Odd { panics, hangs: Arc::default(), inner: Greys { len: 64, corrupt: never } })
}

#[test]
fn a_panic_in_a_worker_is_an_error_and_no_hang() {
    let mut loader = Loader::start(odd(true), config(), 0).unwrap();
    let error = (0..4).find_map(|_| loader.next().err()).unwrap();
    assert!(error.to_string().contains("sample 40 is cursed"), "{error}");
}

#[test]
fn a_source_that_hangs_neither_keeps_a_run_from_stopping_nor_loses_a_batch() {
    let hangs = Arc::new(AtomicBool::new(true));
    let inner = Greys { len: 64, corrupt: never };
    let source: Arc<dyn Source> = Arc::new(Odd { panics: false, hangs: Arc::clone(&hangs), inner });
    let mut loader = Loader::start(Arc::clone(&source), config(), 0).unwrap();
    let asked = Instant::now();
    assert!(loader.next_unless(&|| asked.elapsed() > Duration::from_millis(200)).unwrap().is_none());
    hangs.store(false, Ordering::Relaxed);
    let batch = loader.next_unless(&|| false).unwrap().unwrap();
    assert_eq!(batch.ids, Loader::start(greys(64, never), config(), 0).unwrap().next().unwrap().ids);
    hangs.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(50));
    let dropped = Instant::now();
    drop(loader);
    assert!(dropped.elapsed() < 3 * FAREWELL, "{:?}", dropped.elapsed());
    hangs.store(false, Ordering::Relaxed);
    while Arc::strong_count(&source) > 1 {
        assert!(dropped.elapsed() < Duration::from_secs(60), "the threads never ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn dropping_stops_the_threads_at_once() {
    let source = odd(false);
    let loader = Loader::start(Arc::clone(&source), LoaderConfig { workers: 4, ..config() }, 0).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let started = Instant::now();
    drop(loader);
    // A batch takes 320 ms; only the image being read is waited for.
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    assert_eq!(Arc::strong_count(&source), 1, "a thread still holds the source");
}

#[test]
fn dropping_full_and_failed_loaders_ends_too() {
    let full = Loader::start(greys(40, never), config(), 0).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    drop(full);
    let mut failed = Loader::start(odd(true), config(), 0).unwrap();
    while failed.next().is_ok() {}
    drop(failed);
}

#[test]
fn impossible_settings_are_named_before_any_thread_starts() {
    let error = |settings| Loader::start(greys(10, never), settings, 0).err().unwrap().to_string();
    assert_eq!(error(LoaderConfig { share: Share::whole(0), ..config() }), "train.batch_size = 0: expected at least 1");
    assert_eq!(
        error(LoaderConfig { max_corrupt: 1.5, ..config() }),
        "data.max_corrupt = 1.5: expected a share from 0 to 1"
    );
    assert_eq!(
        error(LoaderConfig { workers: 5000, ..config() }),
        "data.workers = 5000: expected 0 (automatic) to 1024"
    );
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("a.png"), crate::testing::grey_png(4, 1)).unwrap();
    let source = open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
    let error = Loader::start(source, config(), 0).err().unwrap();
    assert!(error.to_string().contains("data.num_classes = 10, but") && error.to_string().ends_with("has no labels"));
}

#[test]
fn enums_have_the_names_of_the_configuration() {
    let json =
        serde_json::to_string(&(Crop::Center, Crop::Random, Crop::None, OnCorrupt::Skip, OnCorrupt::Fail)).unwrap();
    assert_eq!(json, r#"["center","random","none","skip","fail"]"#);
}

/// Large pictures that are in memory already: all the work is decoding.
struct Heavy(Vec<u8>);

impl Source for Heavy {
    fn len(&self) -> usize {
        64
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        Ok(RawImage { id: format!("heavy {index}"), bytes: self.0.clone().into(), label: Some(0) })
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> &str {
        "heavy"
    }

    fn describe(&self) -> String {
        "heavy".into()
    }
}

/// What the threads had done after three batches.
fn flow_of(source: Arc<dyn Source>) -> Flow {
    let mut loader = Loader::start(source, LoaderConfig { crop: Crop::Center, ..config() }, 0).unwrap();
    (0..3).for_each(|_| drop(loader.next().unwrap()));
    loader.flow()
}

#[test]
fn slow_reads_and_slow_decoding_are_told_apart() {
    let slow = flow_of(odd(false));
    assert!(slow.reading().unwrap() > 0.9, "{slow:?}");
    let png = crate::testing::encode(&crate::testing::gradient(1000, 1000), image::ImageFormat::Png);
    let bytes = png.len() as u64;
    let heavy = flow_of(Arc::new(Heavy(png)));
    assert!(heavy.reading().unwrap() < 0.1, "{heavy:?}");
    assert!(heavy.images >= 48 && heavy.bytes == heavy.images * bytes, "{heavy:?}");
}

#[test]
fn a_read_that_hangs_is_seen_while_it_hangs() {
    let hangs = Arc::new(AtomicBool::new(true));
    let inner = Greys { len: 64, corrupt: never };
    let source: Arc<dyn Source> = Arc::new(Odd { panics: false, hangs: Arc::clone(&hangs), inner });
    let mut loader = Loader::start(source, config(), 0).unwrap();
    let asked = Instant::now();
    assert!(loader.next_unless(&|| asked.elapsed() > Duration::from_millis(100)).unwrap().is_none());
    assert_eq!((loader.flow().reading(), loader.flow().images), (Some(1.0), 0));
    hangs.store(false, Ordering::Relaxed);
}

/// Counts how many samples were read.
struct Counting(Greys, Arc<std::sync::atomic::AtomicUsize>);

impl Source for Counting {
    fn len(&self) -> usize {
        self.0.len
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read(index)
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> &str {
        "counting"
    }

    fn describe(&self) -> String {
        "counting".into()
    }
}

#[test]
fn workers_wait_when_nobody_takes_batches_and_go_on_when_one_is_taken() {
    let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let source = Arc::new(Counting(Greys { len: 4000, corrupt: never }, Arc::clone(&read)));
    let mut loader = Loader::start(source, LoaderConfig { workers: 3, prefetch: 2, ..config() }, 0).unwrap();
    for taken in 0..3 {
        // Of 16 images each: those that may wait, and one of each worker.
        let most = (taken + 5) * 16;
        let begun = Instant::now();
        while loader.flow().queue < 5 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the workers stopped too early");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!((read.load(Ordering::SeqCst), loader.flow().queue), (most, 5), "{taken} taken");
        loader.next().unwrap();
    }
}
