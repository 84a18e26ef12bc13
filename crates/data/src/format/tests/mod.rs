#![allow(clippy::unwrap_used)]

#[cfg(feature = "stores")]
mod far;
mod layouts;
#[cfg(feature = "datasets")]
mod raw;
mod shards;
mod stores;
mod tables;

use std::fs;
use std::path::Path;

use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterVersion;
use image::ImageFormat;
use tempfile::TempDir;

use self::stores::remote_copy;
use super::*;
use crate::testing::{
    Layout, Remote, Row, encode, gradient, grey_png, parquet_bytes, parquet_of_text, parquet_of_two_columns,
    parquet_with_text_labels,
};

fn assets(name: &str) -> String {
    format!("{}/../../assets/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn open_str(source: &str) -> Result<Arc<dyn Source>, DataError> {
    open(source, &OpenOptions::default())
}

fn open_split(source: &str, split: &str) -> Result<Arc<dyn Source>, DataError> {
    open(source, &OpenOptions { split: Some(split.to_owned()), ..Default::default() })
}

fn open_path(path: &Path) -> Result<Arc<dyn Source>, DataError> {
    open_str(path.to_str().unwrap())
}

fn refused(source: &str) -> (String, String) {
    match open_str(source) {
        Ok(source) => panic!("{} was opened", source.describe()),
        Err(error) => (error.to_string(), error.help().unwrap_or_default()),
    }
}

fn rows(range: std::ops::Range<u8>) -> Vec<Row> {
    range.map(|i| (Some(grey_png(4, i)), Some(i64::from(i % 3)))).collect()
}

/// Writes a new file where one may lie: ext4 flushes a file that is truncated and written again, 3 ms each time.
fn replace(path: &Path, bytes: &[u8]) {
    if path.exists() {
        fs::remove_file(path).unwrap();
    }
    fs::write(path, bytes).unwrap();
}

/// What every source promises.
fn conforms(source: &dyn Source) {
    assert!(!source.is_empty());
    let step = (source.len() / 50).max(1);
    let indices: Vec<usize> = (0..source.len()).step_by(step).chain([source.len() - 1]).collect();
    let forward: Vec<RawImage> = indices.iter().map(|&i| source.read(i).unwrap()).collect();
    let backward: Vec<RawImage> = indices.iter().rev().map(|&i| source.read(i).unwrap()).collect();
    assert!(forward.iter().eq(backward.iter().rev()), "a sample depends on what was read before");
    let parallel: Vec<RawImage> = std::thread::scope(|scope| {
        let handles: Vec<_> = indices.iter().map(|&i| scope.spawn(move || source.read(i).unwrap())).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    assert_eq!(forward, parallel);
    for raw in &forward {
        assert!(crate::decode::decode(&raw.bytes, Default::default()).is_ok(), "{}", raw.id);
        assert!(source.has_labels() || raw.label.is_none());
        let classes = source.class_names().map_or(usize::MAX, <[String]>::len);
        assert!(raw.label.is_none_or(|label| (label as usize) < classes));
    }
    assert_eq!(source.fingerprint().len(), 64);
    let mut together = Vec::new();
    read_each(source, &indices, |place, raw| {
        assert_eq!(place, together.len());
        together.push(raw?);
        Ok(())
    })
    .unwrap();
    assert_eq!(forward, together);
    for beyond in [source.read(source.len()), source.read_many(&[source.len(), 0]).remove(0)] {
        let text = beyond.unwrap_err().to_string();
        assert!(text.contains(&source.len().to_string()), "{text}");
    }
}

#[test]
fn every_kind_of_source_keeps_the_promises() {
    let dir = TempDir::new().unwrap();
    for (class, value) in [("cat", 1), ("dog", 2), ("dog", 3)] {
        fs::create_dir_all(dir.path().join(class)).unwrap();
        fs::write(dir.path().join(class).join(format!("{value}.PNG")), grey_png(5, value)).unwrap();
    }
    conforms(&*open_path(dir.path()).unwrap());
    conforms(&*open_str("builtin:fashion10k").unwrap());
    conforms(&*open_str(&assets("emoji32.parquet")).unwrap());
    conforms(&*open_split("builtin:fashion10k", "train[9900:]").unwrap());
    let several = TempDir::new().unwrap();
    fs::write(several.path().join("a.parquet"), parquet_bytes(&rows(0..30), &Layout::default())).unwrap();
    fs::write(several.path().join("b.parquet"), parquet_bytes(&rows(30..47), &Layout::default())).unwrap();
    conforms(&*open_path(several.path()).unwrap());
    conforms(
        &*open_folder(
            "s3://far",
            remote_copy(dir.path(), Remote::default()),
            Format::Auto,
            None,
            ImageLimits::default(),
        )
        .unwrap(),
    );
    conforms(
        &*open_folder(
            "s3://far",
            remote_copy(several.path(), Remote::default()),
            Format::Auto,
            None,
            ImageLimits::default(),
        )
        .unwrap(),
    );
}

#[test]
fn the_embedded_images_are_fashion_mnist() {
    let source = open_str("builtin:fashion10k").unwrap();
    assert_eq!((source.len(), source.class_names().unwrap().len()), (10_000, 10));
    let first = source.read(0).unwrap();
    // The first training image of Fashion-MNIST is an ankle boot, label 9.
    assert_eq!(first.label, Some(9));
    assert!(source.class_names().unwrap()[9].to_lowercase().contains("boot"));
    let image = crate::decode::decode(&first.bytes, Default::default()).unwrap().image;
    assert_eq!((image.width(), image.height(), image.color().channel_count()), (28, 28, 1));
    assert!(source.describe().starts_with("builtin:fashion10k: 10000 images"));
}

#[test]
fn the_embedded_file_and_its_twin_on_disk_are_the_same_source() {
    let (embedded, file) = (open_str("builtin:fashion10k").unwrap(), open_str(&assets("fashion10k.parquet")).unwrap());
    assert_eq!(embedded.fingerprint(), file.fingerprint());
    assert_eq!(embedded.read(9_999).unwrap().bytes, file.read(9_999).unwrap().bytes);
}

#[test]
fn a_slice_holds_the_samples_between_its_bounds_and_no_other() {
    let whole = open_str("builtin:fashion10k").unwrap();
    let (seen, held_out) =
        (open_split("builtin:fashion10k", "[:90%]"), open_split("builtin:fashion10k", "train[9000:]"));
    let (seen, held_out) = (seen.unwrap(), held_out.unwrap());
    assert_eq!((seen.len(), held_out.len()), (9_000, 1_000));
    assert_eq!(held_out.read(0).unwrap(), whole.read(9_000).unwrap());
    assert_eq!(seen.read(8_999).unwrap(), whole.read(8_999).unwrap());
    assert_eq!(held_out.class_names(), whole.class_names());
    let fingerprints = [whole.fingerprint(), seen.fingerprint(), held_out.fingerprint()];
    assert!(fingerprints[0] != fingerprints[1] && fingerprints[1] != fingerprints[2]);
    let Err(error) = open_split("builtin:fashion10k", "[9000:8000]") else { panic!("an empty slice was opened") };
    assert_eq!(error.to_string(), "data.split = [9000:8000]: no sample lies there: the source has 10000");
}

#[test]
fn the_emoji_are_3786_pictures_in_colour() {
    let source = open_str(&assets("emoji32.parquet")).unwrap();
    assert_eq!((source.len(), source.class_names().unwrap().len()), (3_786, 10));
    let image = crate::decode::decode(&source.read(3_785).unwrap().bytes, Default::default()).unwrap().image;
    assert_eq!((image.width(), image.height(), image.color().has_color()), (32, 32, true));
}

#[test]
fn rows_come_out_as_written_whatever_the_layout() {
    // Noise, so that a group of 40 rows is larger than a block, and pages are smaller than both.
    let noise = |i: u32| {
        let mut state = i.wrapping_mul(2_654_435_761).max(1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        (0..60_000).map(|_| next()).collect::<Vec<u8>>()
    };
    let image = |i: u32| if i % 7 == 3 { None } else { Some(noise(i)) };
    let label = |i: u32| if i % 5 == 2 { None } else { Some(i64::from(i)) };
    let rows: Vec<Row> = (0..90).map(|i| (image(i), label(i))).collect();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for dictionary in [true, false] {
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())]
            {
                let (rows_per_group, page_bytes) = (40, 100_000);
                let layout = Layout { rows_per_group, page_bytes, version, dictionary, compression, huggingface: None };
                fs::write(&path, parquet_bytes(&rows, &layout)).unwrap();
                let source = open_path(&path).unwrap();
                assert_eq!(source.len(), 90);
                for i in [89, 0, 41, 40, 39, 17, 18, 3, 2, 52, 79, 80] {
                    let want = &rows[i];
                    match source.read(i) {
                        Ok(raw) => {
                            assert!(Some(raw.bytes.to_vec()) == want.0, "row {i}");
                            assert_eq!(raw.label.map(i64::from), want.1, "row {i}");
                        }
                        Err(error) => {
                            assert!(want.0.is_none(), "row {i}: {error}");
                            assert!(
                                error
                                    .to_string()
                                    .starts_with(&format!("x.parquet row {i}: the image's bytes are null"))
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_negative_label_is_no_label() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    fs::write(&path, parquet_bytes(&[(Some(grey_png(4, 1)), Some(-1))], &Layout::default())).unwrap();
    assert_eq!(open_path(&path).unwrap().read(0).unwrap().label, None);
}

#[test]
fn truncated_parquet_files_are_refused_and_named() {
    let bytes = parquet_bytes(&rows(0..20), &Layout::default());
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cut.parquet");
    for len in (0..bytes.len()).step_by(7) {
        replace(&path, &bytes[..len]);
        let (message, help) = refused(path.to_str().unwrap());
        assert!(message.starts_with(&format!("{}: not a readable Parquet file", path.display())), "{len}: {message}");
        assert!(help.contains("fetch it again"), "{help}");
    }
}

#[test]
fn damaged_parquet_files_never_panic() {
    let bytes = parquet_bytes(&rows(0..20), &Layout { rows_per_group: 8, ..Layout::default() });
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("damaged.parquet");
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x81;
        replace(&path, &damaged);
        if let Ok(source) = open_path(&path) {
            (0..source.len().min(20)).for_each(|i| drop(source.read(i)));
        }
    }
}

#[test]
fn a_damaged_page_spoils_its_own_rows_and_no_others() {
    let layout = Layout { rows_per_group: 10, ..Layout::default() };
    let mut bytes = parquet_bytes(&rows(0..20), &layout);
    bytes[40..200].fill(0xEE); // in the first row group's first pages
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    fs::write(&path, &bytes).unwrap();
    let source = open_path(&path).unwrap();
    assert!(matches!(source.read(2), Err(DataError::Unreadable { .. })));
    assert!(source.read(12).is_ok());
}

#[test]
fn parquet_without_images_lists_its_columns() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("text.parquet");
    fs::write(&path, parquet_of_text()).unwrap();
    let (message, _) = refused(path.to_str().unwrap());
    assert!(
        message.contains("no image column") && message.ends_with("found text (BYTE_ARRAY), n (INT64)"),
        "{message}"
    );
}

#[test]
fn class_names_must_agree_among_the_files() {
    let named = |names: &[&str]| {
        let json = serde_json::json!({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}});
        parquet_bytes(&rows(0..3), &Layout { huggingface: Some(json.to_string()), ..Layout::default() })
    };
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.parquet"), named(&["x", "y", "z"])).unwrap();
    fs::write(dir.path().join("b.parquet"), named(&["x", "y", "z"])).unwrap();
    assert_eq!(open_path(dir.path()).unwrap().class_names().unwrap(), ["x", "y", "z"]);
    fs::write(dir.path().join("b.parquet"), named(&["y", "x", "z"])).unwrap();
    let (message, _) = refused(dir.path().to_str().unwrap());
    assert!(message.starts_with("b.parquet names the classes otherwise than a.parquet"), "{message}");
}

#[test]
fn a_split_selects_files_and_folders() {
    let dir = TempDir::new().unwrap();
    for (name, range) in [("train-00000-of-00002", 0..3), ("train-00001-of-00002", 3..7), ("test", 7..9)] {
        let bytes = parquet_bytes(&rows(range), &Layout::default());
        fs::write(dir.path().join(format!("{name}.parquet")), bytes).unwrap();
    }
    let path = dir.path().to_str().unwrap();
    let split = |name: &str| open(path, &OpenOptions { split: Some(name.into()), ..OpenOptions::default() });
    let lens = ["train", "test", "all", "all[:8]"].map(|name| split(name).unwrap().len());
    assert_eq!(lens, [7, 2, 9, 8]);
    let error = split("valid").err().unwrap();
    assert!(error.to_string().contains("data.split = valid"));
    assert!(error.help().unwrap().contains("test.parquet"));
    assert!(open("builtin:fashion10k", &OpenOptions { split: Some("test".into()), ..OpenOptions::default() }).is_err());
}

#[test]
fn classes_are_sub_folders_when_every_image_lies_in_one() {
    let dir = TempDir::new().unwrap();
    let add = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, grey_png(4, 7)).unwrap();
    };
    ["b/2.png", "b/1.png", "a/deep/3.png", ".hidden/x.png", "b/._1.png"].iter().for_each(|name| add(name));
    fs::write(dir.path().join("notes.txt"), "no image").unwrap();
    let source = open_path(dir.path()).unwrap();
    let all: Vec<_> = (0..source.len()).map(|i| source.read(i).unwrap()).map(|raw| (raw.id, raw.label)).collect();
    let want = [("a/deep/3.png", Some(0)), ("b/1.png", Some(1)), ("b/2.png", Some(1))];
    assert_eq!(all, want.map(|(id, label)| (id.to_owned(), label)));
    assert_eq!(source.class_names().unwrap(), ["a", "b"]);
    let before = source.fingerprint().to_owned();
    add("loose.png");
    let source = open_path(dir.path()).unwrap();
    assert!(!source.has_labels() && source.class_names().is_none() && source.read(3).unwrap().label.is_none());
    assert_ne!(source.fingerprint(), before);
}

#[test]
fn in_a_split_folder_the_classes_lie_one_level_deeper() {
    let dir = TempDir::new().unwrap();
    for name in ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png"] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), grey_png(4, 7)).unwrap();
    }
    let options = OpenOptions { split: Some("train".into()), ..OpenOptions::default() };
    let source = open(dir.path().to_str().unwrap(), &options).unwrap();
    assert_eq!((source.len(), source.class_names().unwrap()), (2, &["cat".to_owned(), "dog".to_owned()][..]));
}

#[test]
fn moving_a_folder_keeps_the_fingerprint_and_changing_a_file_does_not() {
    let dir = TempDir::new().unwrap();
    for folder in ["one", "two"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join("a.jpg"), encode(&gradient(9, 9), ImageFormat::Jpeg)).unwrap();
    }
    let fingerprint = |folder: &str| open_path(&dir.path().join(folder)).unwrap().fingerprint().to_owned();
    assert_eq!(fingerprint("one"), fingerprint("two"));
    fs::write(dir.path().join("two/a.jpg"), encode(&gradient(10, 9), ImageFormat::Jpeg)).unwrap();
    assert_ne!(fingerprint("one"), fingerprint("two"));
}

#[cfg(unix)]
#[test]
fn links_that_lead_back_up_end_somewhere() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.png"), grey_png(4, 1)).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling.png")).unwrap();
    assert_eq!(open_path(dir.path()).unwrap().len(), 1);
}

#[test]
fn a_file_that_has_vanished_is_an_unreadable_sample() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.png"), grey_png(4, 1)).unwrap();
    let source = open_path(dir.path()).unwrap();
    fs::remove_file(dir.path().join("a.png")).unwrap();
    assert!(matches!(source.read(0), Err(DataError::Unreadable { sample, .. }) if sample == "a.png"));
}

#[test]
fn what_cannot_be_opened_is_refused_by_name_with_a_way_out() {
    let dir = TempDir::new().unwrap();
    let empty = dir.path().to_str().unwrap().to_owned();
    assert!(refused(&empty).0.contains("no images (looked for .png, .jpg"));
    fs::write(dir.path().join("one.png"), grey_png(4, 1)).unwrap();
    fs::write(dir.path().join("empty.parquet"), parquet_bytes(&[], &Layout::default())).unwrap();
    assert!(refused(&format!("{empty}/empty.parquet")).0.contains("no images"));
    assert_eq!(refused(&format!("{empty}/one.png")).1, "give its folder");
    let (message, help) = refused("no/such/place");
    assert_eq!(message, "data.source = no/such/place: no such file or folder");
    assert!(help.contains("relative paths start at /"), "{help}");
    let (message, help) = refused("builtin:fashion");
    assert_eq!(message, "data.source = builtin:fashion: there is no such embedded data set");
    assert_eq!(help, "embedded data sets: builtin:fashion10k");
    for source in ["file:///data", "s4://b/p", "hf://me/model"] {
        let (message, help) = refused(source);
        assert!(message.starts_with(&format!("data.source = {source}: ")) && !help.is_empty(), "{message}; {help}");
    }
}

#[test]
fn a_format_that_contradicts_the_source_is_refused() {
    let with = |format, source: &str| open(source, &OpenOptions { format, ..OpenOptions::default() });
    assert!(matches!(with(Format::Folder, &assets("emoji32.parquet")), Err(DataError::FormatMismatch { .. })));
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.png"), grey_png(4, 1)).unwrap();
    let error = with(Format::Parquet, dir.path().to_str().unwrap()).err().unwrap();
    assert!(error.to_string().contains("looked for .parquet files; found 1 file: 1 .png"), "{error}");
    assert!(with(Format::Folder, dir.path().to_str().unwrap()).is_ok());
}
