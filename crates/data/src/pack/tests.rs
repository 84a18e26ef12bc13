#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use image::ImageFormat;
use tempfile::TempDir;

use super::*;
use crate::testing::{encode, gradient, grey_png};
use crate::{Batcher, LoaderConfig, OpenOptions, open};

/// Pictures of two classes, larger and smaller than 8x8, grey, in colour, and one that is torn.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    for class in ["cat", "dog"] {
        fs::create_dir(dir.path().join(class)).unwrap();
        for i in 0..9u32 {
            let image = encode(&gradient(20 + i, 31 - 3 * i), ImageFormat::Png);
            fs::write(dir.path().join(class).join(format!("{i}.png")), image).unwrap();
        }
        fs::write(dir.path().join(class).join("grey.png"), grey_png(5, 77)).unwrap();
        fs::write(dir.path().join(class).join("photo.jpg"), encode(&gradient(40, 30), ImageFormat::Jpeg)).unwrap();
    }
    fs::write(dir.path().join("dog/torn.png"), &grey_png(9, 1)[..30]).unwrap();
    dir
}

fn opened(path: &Path) -> Arc<dyn Source> {
    open(path.to_str().unwrap(), &OpenOptions::default()).unwrap()
}

fn config(pack_as: PackAs) -> PackConfig {
    PackConfig { pack_as, fitting: Fitting::default(), shard_images: 5, workers: 2, limits: ImageLimits::default() }
}

fn packed(source: &dyn Source, to: &Path, pack_as: PackAs) -> Result<Packed, DataError> {
    pack(source, to, &config(pack_as), &|_| {})
}

#[test]
fn what_was_packed_trains_on_the_same_pixels_and_classes() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    let result = packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    assert_eq!((result.shards, result.kept, result.images, result.skipped), (5, 0, 22, 1));
    assert_eq!((result.unreadable[0].index, result.unreadable[0].id.as_str()), (22, "dog/torn.png"));
    fs::remove_file(dir.path().join("dog/torn.png")).unwrap();
    let (source, shards) = (opened(dir.path()), opened(to.path()));
    assert_eq!((shards.len(), shards.class_names()), (22, source.class_names()));
    assert!(shards.notices().is_empty(), "{:?}", shards.notices());
    for channels in [1, 3] {
        let settings = LoaderConfig { channels, crop: Crop::Center, num_classes: Some(2), ..crate::testing::config() };
        let batch = |source| Batcher::new(source, settings.clone()).unwrap().batch_at(3).unwrap();
        assert_eq!(batch(Arc::clone(&source)), batch(Arc::clone(&shards)));
    }
}

#[test]
fn a_finished_shard_is_kept_and_a_missing_or_torn_one_is_made_again_the_same() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    let path = |n: u32| to.path().join(format!("images-{n:06}.tar"));
    let before = [1, 3].map(|n| fs::read(path(n)).unwrap());
    let index = path(2).with_extension("index");
    let indexed = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    fs::remove_file(path(1)).unwrap();
    fs::write(path(3), &before[1][..700]).unwrap();
    fs::write(to.path().join(".images-000001.tar.tmp"), b"killed here").unwrap();
    let result = packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    assert_eq!((result.shards, result.kept, result.images, result.skipped), (5, 3, 22, 1));
    assert_eq!([1, 3].map(|n| fs::read(path(n)).unwrap()), before);
    assert_eq!(fs::read(&index).unwrap(), indexed);
    let names: Vec<_> = fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{names:?}");
}

/// Where the label of a sample lies in its shard.
fn label_at(shard: &[u8], name: &str) -> usize {
    shard.windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap() + 512
}

#[test]
fn a_label_that_was_changed_in_a_shard_is_read_despite_the_index_beside_it_and_packing_again_mends_it() {
    let (dir, to, cache) = (folder(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = opened(dir.path());
    packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    let (path, index) = (to.path().join("images-000000.tar"), to.path().join("images-000000.index"));
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[label_at(&whole, "000000002.cls")] = b'1';
    fs::write(&path, &changed).unwrap();
    // As after copying: the index is the newer file.
    let indexed = fs::read(&index).unwrap();
    fs::write(&index, &indexed).unwrap();
    let stores = crate::StoreOptions { cache_dir: Some(cache.path().to_owned()), ..Default::default() };
    let options = OpenOptions { stores, ..Default::default() };
    let label = || open(to.path().to_str().unwrap(), &options).unwrap().read(2).unwrap().label;
    assert_eq!([label(), label()], [Some(1); 2]);
    let result = packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    assert_eq!((result.kept, result.shards), (4, 5), "the changed shard is made again");
    assert!(fs::read(&path).unwrap() == whole && fs::read(&index).unwrap() == indexed);
    assert_eq!([label(), label()], [Some(0); 2]);
}

#[test]
fn other_pixels_or_limits_are_refused_by_name_and_so_is_a_folder_of_a_version_that_wrote_neither() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    let size = config(PackAs::Size(ImageSize::square(8)));
    pack(&*source, to.path(), &size, &|_| {}).unwrap();
    let refused = |config: &PackConfig| pack(&*source, to.path(), config, &|_| {}).unwrap_err().to_string();
    let fitting = |fitting| refused(&PackConfig { fitting, ..size });
    let (fit, background) = (crate::Fit::Pad, crate::Background::Colour([0, 128, 255]));
    let text = fitting(Fitting { fit, background, ..Fitting::default() });
    assert!(text.ends_with("it was packed with fit = crop and not pad, background = none and not #0080ff"), "{text}");
    let text = fitting(Fitting { upscale: false, ..Fitting::default() });
    assert!(text.ends_with("it was packed with upscale = true and not false"), "{text}");
    let limits = ImageLimits { max_pixels: 100, ..ImageLimits::default() };
    let text = refused(&PackConfig { limits, ..size });
    assert!(text.ends_with("it was packed with max_pixels = 268435456 and not 100"), "{text}");
    let path = to.path().join(record::NAME);
    let mut written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    written["how"]["made"] = 1.into();
    fs::write(&path, written.to_string()).unwrap();
    assert!(refused(&size).contains("by another version"), "{}", refused(&size));
    written.as_object_mut().unwrap().remove("how").unwrap();
    fs::write(&path, written.to_string()).unwrap();
    assert!(refused(&size).contains("by another version"), "{}", refused(&size));
}

#[test]
fn images_are_packed_as_training_would_fit_them_and_it_is_said_what_that_did() {
    let dir = folder();
    fs::remove_file(dir.path().join("dog/torn.png")).unwrap();
    let blue = crate::Background::Colour([0, 128, 255]);
    for fitting in [
        Fitting { upscale: false, ..Fitting::default() },
        Fitting { fit: crate::Fit::Pad, background: blue, ..Fitting::default() },
        Fitting { fit: crate::Fit::Stretch, upscale: false, background: blue },
    ] {
        let to = TempDir::new().unwrap();
        let source = opened(dir.path());
        let image_size = ImageSize { height: 24, width: 28 };
        let packing = PackConfig { fitting, ..config(PackAs::Size(image_size)) };
        let result = pack(&*source, to.path(), &packing, &|_| {}).unwrap();
        let said = result.notices.join("\n");
        let what = if fitting.upscale { "are enlarged" } else { "get a frame" };
        assert!(said.contains("of the 22 images packed now are smaller than 28x24") && said.contains(what), "{said}");
        assert!(!said.contains("data."), "{said}");
        let shards = opened(to.path());
        // A colour becomes grey before it is laid around an image, and after it was packed, which may round to another number.
        for channels in if fitting.background == blue { &[3][..] } else { &[1, 3] } {
            let channels = *channels;
            let settings = LoaderConfig {
                channels,
                fitting,
                image_size,
                crop: Crop::Center,
                num_classes: Some(2),
                ..crate::testing::config()
            };
            let batch = |source| Batcher::new(source, settings.clone()).unwrap().batch_at(3).unwrap();
            assert!(batch(Arc::clone(&source)) == batch(Arc::clone(&shards)), "{fitting:?}, {channels} channels");
        }
        assert!(pack(&*source, to.path(), &packing, &|_| {}).unwrap().notices.is_empty(), "nothing was made");
    }
}

#[test]
fn a_folder_in_the_place_of_an_index_ends_nothing_and_stays() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    packed(&*source, to.path(), PackAs::Original).unwrap();
    let index = to.path().join("images-000001.index");
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    let result = packed(&*source, to.path(), PackAs::Original).unwrap();
    assert_eq!((result.kept, result.shards), (5, 5));
    assert!(index.is_dir());
    fs::remove_file(to.path().join(CLASSES_FILE)).unwrap();
    fs::create_dir(to.path().join(CLASSES_FILE)).unwrap();
    packed(&*source, to.path(), PackAs::Original).unwrap_err();
    let names: Vec<_> = fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{names:?}");
}

#[test]
fn originals_keep_every_byte() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    assert_eq!(packed(&*source, to.path(), PackAs::Original).unwrap().images, 22);
    let shards = opened(to.path());
    for index in 0..22 {
        assert_eq!(shards.read(index).unwrap().bytes, source.read(index).unwrap().bytes);
    }
    assert_eq!(shards.read(10).unwrap().id, "images-000002.tar: 000000010.jpg");
}

#[test]
fn a_folder_that_is_not_ours_is_left_alone() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    fs::write(to.path().join("thesis.tex"), "x").unwrap();
    let refused = |source: &dyn Source, pack_as| packed(source, to.path(), pack_as).unwrap_err().to_string();
    assert!(
        refused(&*source, PackAs::Size(ImageSize::square(8))).ends_with("it is not empty: \"thesis.tex\" is there")
    );
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    fs::remove_file(to.path().join("thesis.tex")).unwrap();
    packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    let text = refused(&*source, PackAs::Size(ImageSize::square(16)));
    assert!(text.ends_with("it holds PNGs of 8x8, 5 a shard, and not PNGs of 16x16, 5 a shard"), "{text}");
    fs::remove_file(dir.path().join("cat/1.png")).unwrap();
    assert!(refused(&*opened(dir.path()), PackAs::Size(ImageSize::square(8))).contains("another source"));
    assert!(packed(&*source, to.path(), PackAs::Size(ImageSize::square(0))).unwrap_err().is_setting());
}

#[test]
fn two_processes_do_not_pack_into_one_folder() {
    let (dir, to) = (folder(), TempDir::new().unwrap());
    let source = opened(dir.path());
    packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap();
    let held = File::open(to.path().join(record::NAME)).unwrap();
    held.try_lock().unwrap();
    let text = packed(&*source, to.path(), PackAs::Size(ImageSize::square(8))).unwrap_err().to_string();
    assert!(text.ends_with("another process packs into it now"), "{text}");
}

#[test]
fn a_source_without_a_readable_image_is_an_error() {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(dir.path().join("a.png"), b"no image").unwrap();
    let error = packed(&*opened(dir.path()), to.path(), PackAs::Size(ImageSize::square(8))).unwrap_err();
    assert!(matches!(error, DataError::NothingReadable { count: 1, .. }), "{error}");
}
