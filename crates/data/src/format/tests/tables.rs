//! Arrow tables as `datasets.save_to_disk` writes them, and damaged ones.

use super::shards::{fixture, grey};
use super::*;

fn labels(source: &dyn Source) -> Vec<Option<u32>> {
    (0..source.len()).map(|i| source.read(i).unwrap().label).collect()
}

#[test]
fn what_datasets_saved_to_disk_is_read_with_its_class_names() {
    let source = open_str(&fixture("saved")).unwrap();
    conforms(&*source);
    assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(labels(&*source), [0, 1, 0, 1, 0, 1].map(Some));
    assert_eq!((0..6).map(|i| grey(&*source, i)).collect::<Vec<_>>(), [0, 10, 20, 30, 40, 50]);
    assert_eq!(source.read(4).unwrap().id, "data-00001-of-00002.arrow row 1");
    assert!(source.describe().ends_with("6 images in 2 Arrow tables, 2 classes"), "{}", source.describe());
    let one = open_str(&fixture("saved/data-00001-of-00002.arrow")).unwrap();
    assert_eq!((one.len(), grey(&*one, 0)), (3, 30));
}

#[test]
fn splits_that_were_saved_together_are_splits() {
    let source = open_str(&fixture("saved-splits")).unwrap();
    assert_eq!(source.len(), 6);
    assert!(
        source.notices()[0].starts_with("data.split is not set: 1 files of train are taken, and 1 of test are not")
    );
    let test = open_split(&fixture("saved-splits"), "test").unwrap();
    assert_eq!((test.len(), grey(&*test, 0)), (1, 50));
}

#[test]
fn labels_that_are_texts_are_classes_by_name() {
    let source = open_str(&fixture("saved-texts")).unwrap();
    assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(labels(&*source), [None, Some(1), Some(0), Some(1), Some(0), Some(1)], "the first is null");
}

/// A copy of the fixture `saved`, whose files a test may change.
fn saved() -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(fixture("saved")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

#[test]
fn only_the_tables_that_the_state_names_are_read_and_all_of_them() {
    let dir = saved();
    let before = open_path(dir.path()).unwrap();
    fs::copy(dir.path().join("data-00000-of-00002.arrow"), dir.path().join("cache-12.arrow")).unwrap();
    let source = open_path(dir.path()).unwrap();
    assert_eq!((source.len(), source.fingerprint()), (6, before.fingerprint()));
    fs::remove_file(dir.path().join("data-00001-of-00002.arrow")).unwrap();
    let (message, _) = refused(dir.path().to_str().unwrap());
    assert!(message.ends_with("data-00001-of-00002.arrow, which it names, is not there"), "{message}");
}

#[test]
fn a_state_that_names_a_table_outside_of_its_folder_opens_none() {
    let (dir, outside) = (saved(), saved());
    let elsewhere = outside.path().join("data-00000-of-00002.arrow");
    for name in [elsewhere.to_str().unwrap(), "../data-00000-of-00002.arrow", "/etc/passwd"] {
        let state = format!(r#"{{"_data_files": [{{"filename": "{name}"}}]}}"#);
        replace(&dir.path().join("state.json"), state.as_bytes());
        let (message, _) = refused(dir.path().to_str().unwrap());
        assert!(message.ends_with(&format!("{name}, which it names, is not there")), "{message}");
    }
}

#[test]
fn metadata_that_name_an_image_outside_of_the_folder_label_none() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    fs::write(dir.path().join("secret.png"), grey_png(4, 1)).unwrap();
    fs::write(dir.path().join("images/a.png"), grey_png(4, 2)).unwrap();
    let secret = dir.path().join("secret.png");
    let rows = format!(
        "{{\"file_name\": \"../secret.png\", \"label\": 1}}\n{{\"file_name\": {secret:?}, \"label\": 1}}\n\
         {{\"file_name\": \"a.png\", \"label\": 0}}\n"
    );
    fs::write(dir.path().join("images/metadata.jsonl"), rows).unwrap();
    let source = open_path(&dir.path().join("images")).unwrap();
    assert_eq!((source.len(), labels(&*source)), (1, vec![Some(0)]));
}

#[test]
fn a_table_cut_anywhere_is_refused_or_ends_between_two_batches() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.arrow");
    let whole = fs::read(fixture("saved-texts/data-00000-of-00001.arrow")).unwrap();
    for len in 0..whole.len() {
        replace(&path, &whole[..len]);
        match open_path(&path) {
            // Only the mark at the end is missing.
            Ok(source) => assert!(len + 8 == whole.len(), "{len}: {}", source.describe()),
            Err(DataError::BadFile { .. } | DataError::Empty { .. }) => {}
            Err(other) => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn damaged_tables_never_panic_and_never_allocate_more_than_they_have() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.arrow");
    for name in ["saved/data-00000-of-00002.arrow", "saved-texts/data-00000-of-00001.arrow"] {
        let whole = fs::read(fixture(name)).unwrap();
        for at in 0..whole.len() {
            for damage in [0x01, 0x80, 0xFF] {
                let mut damaged = whole.clone();
                damaged[at] ^= damage;
                replace(&path, &damaged);
                if let Ok(source) = open_path(&path) {
                    (0..source.len().min(10)).for_each(|i| drop(source.read(i)));
                }
            }
        }
    }
}

#[test]
fn damaged_parquet_files_with_labels_that_are_texts_never_panic() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    let whole = parquet_with_text_labels();
    for at in 0..whole.len() {
        for damage in [0x01, 0x81] {
            let mut damaged = whole.clone();
            damaged[at] ^= damage;
            replace(&path, &damaged);
            if let Ok(source) = open_path(&path) {
                (0..source.len().min(3)).for_each(|i| drop(source.read(i)));
            }
        }
    }
}

#[test]
fn labels_that_are_null_are_found_when_a_table_is_opened_and_classes_are_asked_for() {
    let file = |labels: &[Option<i64>]| {
        let rows: Vec<Row> = labels.iter().map(|&label| (Some(grey_png(8, 1)), label)).collect();
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x.parquet");
        fs::write(&path, parquet_bytes(&rows, &Layout { rows_per_group: 2, ..Layout::default() })).unwrap();
        (open_path(&path).unwrap(), dir)
    };
    let settings = crate::LoaderConfig { num_classes: Some(3), ..crate::testing::config() };
    for (labels, without) in
        [(&[Some(0), None, Some(2), Some(1), None][..], 2), (&[Some(-1); 3], 3), (&[Some(0); 3], 0)]
    {
        let (source, _dir) = file(labels);
        assert_eq!(source.unlabelled(), without);
        let said = source.notices().iter().any(|notice| notice == "2 of 5 images have no label");
        assert_eq!(said, without == 2, "{:?}", source.notices());
        let opened = crate::Batcher::new(Arc::clone(&source), settings.clone());
        let text = opened.err().map(|error| error.to_string());
        let wanted = format!("{without} of {} images have no label, but data.num_classes = 3", labels.len());
        assert_eq!(text.is_some_and(|text| text.contains(&wanted)), without > 0);
        let unconditional = crate::LoaderConfig { num_classes: None, ..settings.clone() };
        assert!(crate::Batcher::new(source, unconditional).is_ok());
    }
}
