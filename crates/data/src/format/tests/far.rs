//! Sources behind a network, against a web server on this machine and its faults.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::shards::{archive, grey};
use super::*;
use crate::store::StoreOptions;
use crate::testing::config;
use crate::testing::server::{Fault, Server};
use crate::{Batch, Batcher, LoaderConfig};

/// A server with three tar shards and a Parquet file, and a folder with the same.
struct Far {
    server: Server,
    here: TempDir,
    cache: TempDir,
}

const SHARDS: &str = "set/t-{0..2}.tar";

fn shard(number: u8) -> Vec<u8> {
    let names: Vec<_> = (0..20).map(|i| (format!("{i:02}.png"), format!("{i:02}.cls"))).collect();
    let image = |i: usize| grey_png(6, number * 20 + i as u8);
    let files: Vec<_> = (0..20).map(|i| (image(i), (i % 3).to_string().into_bytes())).collect();
    let both = names.iter().zip(&files).flat_map(|((image, label), (png, class))| {
        [(image.as_str(), png.as_slice()), (label.as_str(), class.as_slice())]
    });
    archive(&both.collect::<Vec<_>>())
}

impl Far {
    fn new() -> Self {
        let far = Self { server: Server::start(), here: TempDir::new().unwrap(), cache: TempDir::new().unwrap() };
        fs::create_dir(far.here.path().join("set")).unwrap();
        (0..3).for_each(|number| far.add(&format!("set/t-{number}.tar"), shard(number)));
        far.add("set/classes.json", b"[\"ant\", \"bee\", \"cat\"]".to_vec());
        far.add("x.parquet", parquet_bytes(&rows(0..30), &Layout::default()));
        far
    }

    fn add(&self, path: &str, bytes: Vec<u8>) {
        fs::write(self.here.path().join(path), &bytes).unwrap();
        self.server.add(path, bytes);
    }

    /// Options of a run that waits so many seconds at most, and a quarter of them for each answer.
    fn patient(&self, seconds: u64) -> OpenOptions {
        let (cache_dir, retry_for) = (Some(self.cache.path().to_owned()), Duration::from_secs(seconds));
        OpenOptions { stores: StoreOptions { cache_dir, retry_for, ..StoreOptions::default() }, ..Default::default() }
    }

    fn options(&self) -> OpenOptions {
        self.patient(2)
    }

    fn open(&self, path: &str) -> Result<Arc<dyn Source>, DataError> {
        open(&self.server.url(path), &self.options())
    }

    fn near(&self, path: &str) -> Arc<dyn Source> {
        open_path(&self.here.path().join(path)).unwrap()
    }

    /// The error of a source that does not open, with what to do; neither may have a secret.
    fn refused(&self, path: &str) -> String {
        let error = self.open(path).err().unwrap();
        let text = format!("{error}; {}", error.help().unwrap_or_default());
        assert!(!format!("{text} {error:?}").contains("secret"), "{text}");
        text.replace(&self.server.url(""), "http://host/")
    }
}

fn batch(source: Arc<dyn Source>) -> Result<Batch, DataError> {
    Batcher::new(source, LoaderConfig { num_classes: Some(3), max_corrupt: 0.0, ..config() })?.batch_at(3)
}

#[test]
fn shards_and_tables_of_a_web_server_are_those_of_the_disk() {
    let far = Far::new();
    for path in [SHARDS, "set/t-1.tar", "x.parquet", "{x,x}.parquet"].into_iter().take(3) {
        let (near, there) = (far.near(path), far.open(path).unwrap());
        assert_eq!(near.fingerprint(), there.fingerprint(), "{path}");
        assert_eq!(near.class_names(), there.class_names());
        conforms(&*there);
        assert_eq!(batch(near).unwrap(), batch(there).unwrap());
    }
}

#[test]
fn what_passes_is_tried_again_and_changes_nothing() {
    let far = Far::new();
    let near = batch(far.near(SHARDS)).unwrap();
    let there = far.open(SHARDS).unwrap();
    far.server.fail([Fault::Status(503), Fault::Short, Fault::Status(429), Fault::Stall, Fault::Status(500)]);
    // What was read for the index is read again.
    fs::remove_dir_all(far.cache.path().join("blocks")).unwrap();
    drop(there);
    assert_eq!(batch(open(&far.server.url(SHARDS), &far.patient(12)).unwrap()).unwrap(), near);
    assert!(far.server.state.lock().unwrap().faults.is_empty(), "not all of them happened");
}

#[test]
fn after_the_deadline_the_error_names_the_object_the_tries_and_the_last_reason() {
    let far = Far::new();
    let source = far.open("x.parquet").unwrap();
    fs::remove_dir_all(far.cache.path().join("blocks")).unwrap();
    far.server.state.lock().unwrap().always = Some(Fault::Status(503));
    let error = open(&far.server.url("x.parquet"), &far.options()).err().unwrap();
    let text = error.to_string();
    let begins = format!("{}: the data cannot be reached: ", far.server.url("x.parquet"));
    assert!(text.starts_with(&begins) && text.ends_with("the last: 503 Service Unavailable"), "{text}");
    assert!(text[begins.len()..].starts_with(|letter: char| letter.is_ascii_digit()), "{text}");
    assert!(error.is_network() && error.help().unwrap().contains("network"));
    drop(source);
}

#[test]
fn an_object_that_changes_between_two_requests_is_noticed() {
    let far = Far::new();
    // Of a file of more than 16 MiB only the end is read when it is opened.
    let table = |value: u8| {
        let row = |i: u8| {
            (
                Some(encode(
                    &image::GrayImage::from_pixel(600, 600, image::Luma([value ^ i])).into(),
                    ImageFormat::Bmp,
                )),
                Some(0),
            )
        };
        let rows: Vec<Row> = (0..60).map(row).collect();
        let layout = Layout { compression: Compression::UNCOMPRESSED, dictionary: false, ..Layout::default() };
        parquet_bytes(&rows, &layout)
    };
    far.server.add("big.parquet", table(0));
    let source = far.open("big.parquet").unwrap();
    far.server.add("big.parquet", table(128));
    let error = source.read(0).unwrap_err().to_string();
    let words = "cannot read the file: the file has changed since it was listed: it has another version";
    assert!(error.contains(words), "{error}");
    let again = far.open("big.parquet").unwrap();
    assert_ne!(again.fingerprint(), source.fingerprint());
    assert_eq!(grey(&*again, 0), 128, "not what was kept of the object before");
}

#[test]
fn refusals_say_what_to_do_and_are_not_waited_for() {
    let far = Far::new();
    let start = Instant::now();
    let missing =
        "http://host/none.tar: no such bucket, folder or file (404); check the address: names are case-sensitive";
    assert_eq!(far.refused("none.tar?sig=secret"), missing);
    assert!(far.refused("set/t-{0..3}.tar").contains("1 of 4 shards are not there, the first t-3.tar"));
    assert!(far.refused("set/").contains("a web server does not say which files it has; name its files"));
    far.server.state.lock().unwrap().query = Some("sig=other".into());
    assert!(
        far.refused("x.parquet?sig=secret").contains("access is refused (403 Forbidden); a signed address may have")
    );
    far.server.state.lock().unwrap().query = None;
    far.server.state.lock().unwrap().without_ranges = true;
    assert!(far.refused("x.parquet").contains("the server cannot send a part of a file"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_signed_address_is_enough_although_it_is_signed_for_reading_alone() {
    let far = Far::new();
    {
        let mut state = far.server.state.lock().unwrap();
        (state.query, state.without_head) = (Some("sig=secret/with+slash".into()), true);
    }
    for path in ["x.parquet", "set/t-0.tar"] {
        let source = far.open(&format!("{path}?sig=secret/with+slash")).unwrap();
        assert_eq!(source.fingerprint(), far.near(path).fingerprint());
        far.server.state.lock().unwrap().forbidden = Some("set/classes.json".into());
        assert!(far.open(&format!("{path}?sig=secret/with+slash")).is_ok(), "signed for this file alone");
        far.server.state.lock().unwrap().forbidden = None;
        let said = format!("{} {:?} {}", source.describe(), source.notices(), source.read(0).unwrap().id);
        assert!(!said.contains("secret"), "{said}");
    }
}

#[test]
fn a_second_run_finds_the_bytes_on_the_disk_until_they_change() {
    let far = Far::new();
    let read = |path: &str| (batch(far.open(path).unwrap()).unwrap(), far.server.gets());
    let (first, fetched) = read(SHARDS);
    assert_eq!(read(SHARDS), (first.clone(), fetched), "fetched again");
    far.add("set/t-1.tar", shard(1));
    let (again, later) = read(SHARDS);
    assert!(again == first && later > fetched, "another version, though of the same bytes");
    far.server.state.lock().unwrap().without_etags = true;
    let (_, unknown) = read(SHARDS);
    assert!(unknown > later && read(SHARDS).1 > unknown, "without a version nothing is kept");
}

#[test]
fn a_server_that_is_silent_does_not_hold_up_a_stop() {
    let far = Far::new();
    let stop = Arc::new(AtomicBool::new(false));
    let mut options = far.options();
    options.stores =
        StoreOptions { retry_for: Duration::from_secs(600), stop: Some(Arc::clone(&stop)), ..options.stores };
    let source = open(&far.server.url("x.parquet"), &options).unwrap();
    far.server.state.lock().unwrap().always = Some(Fault::Stall);
    let url = far.server.url(SHARDS);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| open(&url, &options).err().unwrap());
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Relaxed);
        assert!(matches!(opening.join().unwrap(), DataError::Stopped));
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(source);
}

#[test]
fn a_loader_waits_for_the_reads_of_a_server_that_stalls() {
    let far = Far::new();
    let source = open(&far.server.url(SHARDS), &far.patient(12)).unwrap();
    fs::remove_dir_all(far.cache.path().join("blocks")).unwrap();
    drop(source);
    // The index is kept; every answer for images comes only after two that never come.
    let source = open(&far.server.url(SHARDS), &far.patient(2)).unwrap();
    far.server.fail([Fault::Stall; 3]);
    let mut loader = crate::Loader::start(source, LoaderConfig { num_classes: Some(3), ..config() }, 0).unwrap();
    loader.next().unwrap();
    assert!(far.server.state.lock().unwrap().faults.len() < 3, "nothing was asked for");
    let flow = loader.flow();
    assert!(flow.reading().unwrap() > 0.9, "{flow:?}");
}

#[test]
fn the_headers_between_large_images_are_read_and_the_images_are_not() {
    const LARGE: usize = 6 << 20;
    let far = Far::new();
    let images: Vec<Vec<u8>> = (0..6).map(|value| vec![value; LARGE]).collect();
    let names: Vec<_> = (0..6).map(|i| (format!("{i}.png"), format!("{i}.cls"))).collect();
    let files = names
        .iter()
        .zip(&images)
        .flat_map(|((image, label), bytes)| [(image.as_str(), bytes.as_slice()), (label.as_str(), b"7".as_slice())]);
    far.add("large.tar", archive(&files.collect::<Vec<_>>()));
    let there = far.open("large.tar").unwrap();
    let log = far.server.state.lock().unwrap().log.join("\n");
    let ranges = log.lines().filter_map(|line| {
        let (from, to) = line.strip_prefix("GET large.tar Some((")?.trim_end_matches("))").split_once(", ")?;
        Some(to.parse::<usize>().unwrap() - from.parse::<usize>().unwrap())
    });
    let read: usize = ranges.sum();
    // 4 MiB at the beginning, and a block or two behind each image.
    assert!((1..=(4 + 2 * 6) << 20).contains(&read) && read < 6 * LARGE / 2, "{read} of {} bytes:\n{log}", 6 * LARGE);
    let near = far.near("large.tar");
    assert_eq!((there.fingerprint(), there.len()), (near.fingerprint(), 6));
    assert!((0..6).all(|i| there.read(i).unwrap() == near.read(i).unwrap()));
}

#[test]
fn of_packed_shards_the_index_beside_them_is_read_and_not_the_headers_unless_it_is_of_another_shard() {
    let far = Far::new();
    let images = TempDir::new().unwrap();
    // Noise is not compressed: a shard has some blocks of 1 MiB.
    let value = |n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
    let noise = |seed: u32| {
        image::RgbImage::from_fn(300, 300, |x, y| {
            image::Rgb([0, 1, 2].map(|c| value(x * 7919 + y * 104_729 + seed + c)))
        })
    };
    for i in 0..30 {
        fs::write(images.path().join(format!("{i:02}.png")), encode(&noise(i).into(), ImageFormat::Png)).unwrap();
    }
    let (to, source) = (far.here.path().join("packed"), open_path(images.path()).unwrap());
    let packing = crate::PackConfig {
        pack_as: crate::PackAs::Original,
        fitting: crate::Fitting::default(),
        shard_images: 15,
        workers: 1,
        limits: crate::ImageLimits::default(),
    };
    crate::pack(&*source, &to, &packing, &|_| ()).unwrap();
    for entry in fs::read_dir(&to).unwrap() {
        let name = format!("packed/{}", entry.unwrap().file_name().to_str().unwrap());
        far.server.add(&name, fs::read(far.here.path().join(&name)).unwrap());
    }
    let read = |there: &Arc<dyn Source>| (0..30).map(|i| there.read(i).unwrap()).collect::<Vec<_>>();
    let shards = "packed/images-{000000..000001}.tar";
    let there = far.open(shards).unwrap();
    let blocks = |log: &[String]| log.iter().filter(|line| line.starts_with("GET packed/images-000000.tar")).count();
    let whole = fs::metadata(to.join("images-000000.tar")).unwrap().len();
    let asked = blocks(&far.server.state.lock().unwrap().log);
    assert!(whole > 3 << 20 && asked == 2, "{asked} requests for a shard of {whole} bytes");
    let near = open_path(&to).unwrap();
    assert_eq!((there.fingerprint(), read(&there)), (near.fingerprint(), read(&near)));
    // The first shard now has the second one's bytes and the second one's index: then its own index, which does not fit.
    let (first, second) = (to.join("images-000000.tar"), to.join("images-000001.tar"));
    let swapped = fs::read(&second).unwrap();
    fs::write(&first, swapped).unwrap();
    let after = open_path(&to).unwrap();
    assert_eq!(after.read(0).unwrap().bytes, after.read(15).unwrap().bytes, "an index of another shard was believed");
}

#[test]
fn an_index_beside_a_shard_that_was_made_again_gives_no_wrong_labels_and_is_never_kept() {
    let far = Far::new();
    let packing = crate::PackConfig {
        pack_as: crate::PackAs::Original,
        fitting: crate::Fitting::default(),
        shard_images: 12,
        workers: 1,
        limits: crate::ImageLimits::default(),
    };
    // The same images with the same names and as many bytes, and the same labels of the first and the last.
    let then = [0u32, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1];
    let now = [0u32, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1];
    let packed = |to: &str, labels: &[u32]| {
        let rows: Vec<Row> = (0..12u8).zip(labels).map(|(i, &l)| (Some(grey_png(4, i)), Some(i64::from(l)))).collect();
        far.add("rows.parquet", parquet_bytes(&rows, &Layout::default()));
        let to = far.here.path().join(to);
        crate::pack(&*far.near("rows.parquet"), &to, &packing, &|_| ()).unwrap();
        ["tar", "index"].map(|ending| fs::read(to.join(format!("images-000000.{ending}"))).unwrap())
    };
    let ([tar, index], [new_tar, new_index]) = (packed("then", &then), packed("now", &now));
    assert!(tar.len() == new_tar.len() && tar != new_tar, "the test needs shards of one size");
    let labels = |tar: &[u8], index: &[u8]| {
        far.server.add("packed/images-000000.tar", tar.to_vec());
        far.server.add("packed/images-000000.index", index.to_vec());
        let source = far.open("packed/images-{000000..000000}.tar").unwrap();
        (0..source.len()).map(|i| source.read(i).unwrap().label.unwrap()).collect::<Vec<_>>()
    };
    let kept = || fs::read_dir(far.cache.path().join("shards")).map_or(0, Iterator::count);
    assert_eq!((labels(&tar, &index), kept()), (then.to_vec(), 0), "what the headers did not say is not kept");
    assert_eq!((labels(&new_tar, &index), kept()), (now.to_vec(), 1));
    assert_eq!(labels(&new_tar, &new_index), now);
    assert_eq!(labels(&tar, &new_index), then);
}
