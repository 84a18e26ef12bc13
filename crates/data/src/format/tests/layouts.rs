//! How people lay out their folders: splits, metadata, and what is no data.

use super::*;

/// A folder with an image at each of `names`.
fn images(names: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    names.iter().for_each(|name| put(&dir, name, &grey_png(4, 7)));
    dir
}

fn put(dir: &TempDir, name: &str, bytes: &[u8]) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn open_part(dir: &TempDir, split: &str) -> Result<Arc<dyn Source>, DataError> {
    open_split(dir.path().to_str().unwrap(), split)
}

fn ids(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|i| source.read(i).unwrap().id).collect()
}

fn labels(source: &dyn Source) -> Vec<Option<u32>> {
    (0..source.len()).map(|i| source.read(i).unwrap().label).collect()
}

#[test]
fn top_folders_named_like_splits_are_splits_and_train_is_taken_and_said() {
    for (train, other) in [("train", "test"), ("Train", "val"), ("training", "validation"), ("train", "dev")] {
        let dir =
            images(&[&format!("{train}/cat/1.png"), &format!("{train}/dog/2.png"), &format!("{other}/cat/3.png")]);
        let source = open_path(dir.path()).unwrap();
        assert_eq!((source.len(), source.class_names().unwrap()), (2, &["cat".to_owned(), "dog".to_owned()][..]));
        let notice = &source.notices()[0];
        assert!(notice.starts_with("data.split is not set: 2 files of train are taken, and 1 of "), "{notice}");
        assert_eq!(open_part(&dir, "train").unwrap().fingerprint(), source.fingerprint());
        assert!(open_part(&dir, "train").unwrap().notices().is_empty(), "nothing to be said about what was asked for");
        let rest = open_part(&dir, other).unwrap();
        assert_eq!((rest.len(), labels(&*rest)), (1, vec![Some(0)]));
        let all = open_part(&dir, "all").unwrap();
        assert_eq!((all.len(), all.class_names().unwrap().len()), (3, 2), "the classes lie below the splits");
    }
}

#[test]
fn a_class_called_test_among_other_classes_is_a_class_and_that_is_said() {
    let dir = images(&["cat/1.png", "test/2.png"]);
    let source = open_path(dir.path()).unwrap();
    assert_eq!((source.len(), source.class_names().unwrap()), (2, &["cat".to_owned(), "test".to_owned()][..]));
    assert!(source.notices()[0].starts_with("the folder test is taken for a class"), "{:?}", source.notices());
}

#[test]
fn images_beside_the_splits_belong_to_none() {
    let source = images(&["train/1.png", "test/2.png", "cover.png"]);
    let source = open_path(source.path()).unwrap();
    assert_eq!(ids(&*source), ["train/1.png"]);
    assert!(source.notices()[0].contains("1 of no split, 1 of test are not"), "{:?}", source.notices());
}

#[test]
fn without_a_train_split_the_only_one_is_taken_and_of_several_one_must_be_named() {
    assert_eq!(open_path(images(&["test/a/1.png", "test/b/2.png"]).path()).unwrap().class_names().unwrap(), ["a", "b"]);
    let dir = images(&["test/1.png", "val/2.png"]);
    let error = open_path(dir.path()).err().unwrap();
    assert!(error.to_string().ends_with("there is no train; found validation, test"), "{error}");
    assert!(error.help().unwrap().contains("\"all\"") && error.is_setting());
}

#[test]
fn parquet_files_named_after_splits_are_not_read_as_one() {
    let dir = TempDir::new().unwrap();
    for (name, range) in [("train-00000-of-00001", 0..3), ("test-00000-of-00001", 3..7), ("validation", 7..9)] {
        put(&dir, &format!("data/{name}.parquet"), &parquet_bytes(&rows(range), &Layout::default()));
    }
    let source = open_path(dir.path()).unwrap();
    assert_eq!(source.len(), 3);
    assert!(source.notices()[0].contains("1 of test, 1 of validation are not"), "{:?}", source.notices());
    assert_eq!(["test", "val", "all"].map(|split| open_part(&dir, split).unwrap().len()), [4, 2, 9]);
}

#[test]
fn classes_come_from_metadata_where_there_is_some() {
    let dir = images(&["train/a/1.png", "train/a/2.png", "train/b/3.png", "test/4.png"]);
    put(&dir, "train/metadata.csv", b"file_name,text,label\na/1.png,\"one, two\",dog\na/2.png,x,cat\nb/3.png,y,dog\n");
    let source = open_path(dir.path()).unwrap();
    assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(labels(&*source), [Some(1), Some(0), Some(1)]);
    let before = source.fingerprint().to_owned();
    put(&dir, "train/metadata.csv", b"file_name,label\na/1.png,5\nb/3.png,0\n");
    let source = open_path(dir.path()).unwrap();
    assert_eq!((source.class_names(), labels(&*source)), (None, vec![Some(5), None, Some(0)]));
    assert!(
        source.notices().iter().any(|n| n == "1 of 3 images have no label in the metadata"),
        "{:?}",
        source.notices()
    );
    assert_ne!(source.fingerprint(), before, "other labels are other data");
}

#[test]
fn metadata_in_jsonl_is_read_and_without_labels_leaves_the_folders_their_classes() {
    let dir = images(&["a/1.png", "b/2.png"]);
    put(
        &dir,
        "metadata.jsonl",
        b"{\"file_name\": \"a/1.png\", \"label\": 1}\n{\"file_name\": \"b/2.png\", \"label\": null}\n",
    );
    assert_eq!(labels(&*open_path(dir.path()).unwrap()), [Some(1), None]);
    put(&dir, "metadata.jsonl", b"{\"file_name\": \"a/1.png\", \"text\": \"a cat\"}\n");
    let source = open_path(dir.path()).unwrap();
    assert_eq!((labels(&*source), source.class_names().unwrap().len()), (vec![Some(0), Some(1)], 2));
    assert!(
        source.notices()[0].starts_with("metadata.jsonl gives no classes: it has file_name, text"),
        "{:?}",
        source.notices()
    );
    put(&dir, "metadata.jsonl", b"{\"file_name\": \"a/1.png\"}\n{\"text\": 3}\n");
    let (message, help) = refused(dir.path().to_str().unwrap());
    assert!(message.ends_with("metadata.jsonl line 2: there is no file_name"), "{message}");
    assert!(help.contains("file_name"));
}

#[test]
fn files_that_are_not_read_are_counted_by_their_endings() {
    let dir = images(&["a.png", "b.jfif", "c.jpe"]);
    for name in [
        "1.HEIC",
        "2.heic",
        "3.avif",
        "noending",
        "metadata.parquet",
        "Thumbs.db",
        "readme.txt",
        ".hidden.avif",
        ".git/x.avif",
    ] {
        put(&dir, name, b"x");
    }
    let source = open_path(dir.path()).unwrap();
    assert_eq!(source.len(), 3);
    let notice = &source.notices()[0];
    assert!(notice.starts_with("5 files were not looked at"), "{notice}");
    assert!(notice.ends_with(": 2 .heic, 1 .avif, 1 .parquet, 1 without an ending"), "{notice}");
}

#[test]
fn the_run_directory_inside_the_data_is_no_data() {
    let dir = images(&["cats/1.png", "dogs/2.png"]);
    let before = open_path(dir.path()).unwrap();
    for name in ["runs/x/run.json", "runs/x/config.toml", "runs/x/samples/step-1.png"] {
        put(&dir, name, &grey_png(4, 1));
    }
    let source = open_path(dir.path()).unwrap();
    assert_eq!(source.fingerprint(), before.fingerprint());
    assert_eq!(source.notices(), ["passed over: runs/x (a run directory)"]);
}

#[cfg(unix)]
#[test]
fn links_to_nothing_and_folders_without_permission_are_named_and_passed_over() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = images(&["a.png", "lost+found/x.png"]);
    symlink("/gone", dir.path().join("x\u{1b}[2J.png")).unwrap();
    let locked = dir.path().join("lost+found");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let source = open_path(dir.path()).unwrap();
    let as_root = fs::read_dir(&locked).is_ok();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    let notice = &source.notices()[0];
    assert!(notice.contains(r#""x\u{1b}[2J.png" (a link to nothing)"#), "a name cannot clear the screen: {notice}");
    // Root may look into any folder.
    assert!(as_root || notice.starts_with("passed over: lost+found (Permission denied"), "{notice}");
    assert_eq!(source.len(), if as_root { 2 } else { 1 });
}

#[test]
fn labels_that_are_text_are_classes_by_name() {
    let dir = TempDir::new().unwrap();
    put(&dir, "x.parquet", &parquet_with_text_labels());
    let source = open_path(&dir.path().join("x.parquet")).unwrap();
    assert_eq!((source.has_labels(), source.class_names().unwrap()), (true, &["cat".to_owned()][..]));
    assert_eq!(labels(&*source), [Some(0)]);
    put(&dir, "y.parquet", &parquet_bytes(&rows(0..3), &Layout::default()));
    let (message, _) = refused(dir.path().to_str().unwrap());
    assert!(message.starts_with("y.parquet names the classes otherwise than x.parquet"), "{message}");
}

#[test]
fn a_label_that_is_no_class_is_named_when_classes_are_asked_for() {
    let dir = TempDir::new().unwrap();
    let odd = parquet_of_two_columns("message schema { required binary image; required binary label; }");
    put(&dir, "x.parquet", &odd);
    let source = open_path(&dir.path().join("x.parquet")).unwrap();
    let why = "the column label is no class, as it holds BYTE_ARRAY and neither whole numbers nor names";
    assert_eq!(source.notices(), [format!("x.parquet: {why}")]);
    let error = crate::Batcher::new(source, crate::testing::config()).err().unwrap().to_string();
    assert!(error.ends_with(&format!("1 image in 1 Parquet file ({why}) has no labels")), "{error}");
}

#[test]
fn what_is_no_data_is_named_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    for (name, what) in [
        ("a.npz", "NumPy's arrays: save each image"),
        ("a.h5", "arrays in HDF5: save each image"),
        ("a.zip", "an archive: unpack it"),
        ("a.tar.gz", "a compressed file: unpack it"),
        ("a.csv", "a table: put it beside the images"),
        ("a.pkl", "Python's pickle, which runs code when it is read: save"),
    ] {
        put(&dir, name, b"x");
        let path = dir.path().join(name);
        let (message, help) = refused(path.to_str().unwrap());
        let (named, advice) = what.split_once(": ").unwrap();
        assert!(message.ends_with(named) && help.starts_with(advice), "{message}; {help}");
        let (message, _) = refused(dir.path().to_str().unwrap());
        let ending = path.extension().unwrap().to_str().unwrap();
        assert!(message.contains(&format!("found 1 file: 1 .{ending}; .{ending} is {what}")), "{message}");
        fs::remove_file(path).unwrap();
    }
}
