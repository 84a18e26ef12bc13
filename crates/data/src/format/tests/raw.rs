//! IDX and CIFAR, and files that lie about themselves.

use super::*;

/// A file of the MNIST family.
fn idx(kind: u32, sizes: &[u32], values: &[u8]) -> Vec<u8> {
    let numbers = [kind].into_iter().chain(sizes.iter().copied()).flat_map(u32::to_be_bytes);
    numbers.chain(values.iter().copied()).collect()
}

const NAMES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// Three images to learn from and one of the test, 2 pixels high and 3 wide.
fn mnist() -> TempDir {
    let dir = TempDir::new().unwrap();
    let values: Vec<u8> = (0..18).map(|i| i * 15).collect();
    let files = [
        idx(0x803, &[3, 2, 3], &values),
        idx(0x801, &[3], &[7, 0, 9]),
        idx(0x803, &[1, 2, 3], &values[..6]),
        idx(0x801, &[1], &[2]),
    ];
    fs::create_dir(dir.path().join("raw")).unwrap();
    NAMES.iter().zip(files).for_each(|(name, bytes)| fs::write(dir.path().join("raw").join(name), bytes).unwrap());
    dir
}

#[test]
fn the_mnist_family_is_read_pixel_by_pixel() {
    let dir = mnist();
    let source = open_path(dir.path()).unwrap();
    conforms(&*source);
    assert_eq!((0..3).map(|i| source.read(i).unwrap().label.unwrap()).collect::<Vec<_>>(), [7, 0, 9]);
    let image = crate::decode::decode(&source.read(1).unwrap().bytes, Default::default()).unwrap().image;
    assert_eq!((image.width(), image.height(), image.to_luma8().into_raw()), (3, 2, vec![90, 105, 120, 135, 150, 165]));
    let path = dir.path().to_str().unwrap();
    assert_eq!(["train", "test", "all"].map(|split| open_split(path, split).unwrap().len()), [3, 1, 4]);
    assert!(open_split(path, "validation").err().unwrap().help().unwrap().contains("train, test"));
}

#[test]
fn headers_that_lie_are_refused_before_anything_is_read() {
    let cases: [(usize, Vec<u8>, &str); 9] = [
        (0, idx(0x803, &[u32::MAX, 28, 28], &[0; 9]), "it claims 4294967295 x 28 x 28 values, but has 9 bytes of them"),
        (0, idx(0x803, &[u32::MAX; 3], &[0; 9]), "it claims 4294967295 x 4294967295 x 4294967295 values"),
        (0, idx(0x803, &[0, 2, 3], &[]), "it claims 0 x 2 x 3 values"),
        (0, idx(0x803, &[3, 0, 3], &[]), "images of 3x0 pixels"),
        (0, idx(0x801, &[3], &[1; 20]), "it begins with 0x00000801, expected 0x00000803"),
        (1, idx(0x801, &[4], &[1; 4]), "4 labels for 3 images"),
        (1, idx(0x801, &[3], &[1; 4]), "it claims 3 values, but has 4 bytes of them"),
        (2, idx(0x803, &[1, 3, 2], &[0; 6]), "images of another size"),
        (3, vec![0, 0], "2 bytes, expected 8 to 268435456"),
    ];
    for (file, bytes, want) in cases {
        let dir = mnist();
        fs::write(dir.path().join("raw").join(NAMES[file]), bytes).unwrap();
        let (message, _) = refused(dir.path().to_str().unwrap());
        assert!(
            message.contains(NAMES[file]) && message.contains("not a readable IDX file") && message.contains(want),
            "{message}"
        );
    }
}

#[test]
fn a_missing_or_compressed_file_is_named() {
    let dir = mnist();
    let raw = dir.path().join("raw");
    fs::rename(raw.join(NAMES[3]), raw.join(format!("{}.gz", NAMES[3]))).unwrap();
    let (message, help) = refused(dir.path().to_str().unwrap());
    assert!(message.contains("t10k-labels-idx1-ubyte must be there too; found raw/t10k-images"), "{message}");
    assert!(message.contains("t10k-labels-idx1-ubyte.gz") && help.contains("unpack"), "{message}; {help}");
}

#[test]
fn cifar_10_is_read_with_its_names_and_of_the_right_size_only() {
    let dir = TempDir::new().unwrap();
    let names = [
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "test_batch.bin",
    ];
    for name in names {
        // Zeros that take no place on the disk.
        fs::File::create(dir.path().join(name)).unwrap().set_len(30_730_000).unwrap();
    }
    let mut record = vec![3];
    record.extend([200; 1024].iter().chain(&[100; 1024]).chain(&[50; 1024]));
    let mut file = fs::OpenOptions::new().write(true).open(dir.path().join(names[1])).unwrap();
    std::io::Write::write_all(&mut file, &record).unwrap();
    let classes: Vec<String> = (0..10).map(|i| format!("class {i}")).collect();
    fs::write(dir.path().join("batches.meta.txt"), classes.join("\n") + "\n\n").unwrap();
    let source = open_path(dir.path()).unwrap();
    assert_eq!((source.len(), source.class_names().unwrap()), (50_000, classes.as_slice()));
    let sample = source.read(10_000).unwrap();
    let image = crate::decode::decode(&sample.bytes, Default::default()).unwrap().image.to_rgb8();
    assert_eq!((sample.label, image.get_pixel(31, 31).0, image.dimensions()), (Some(3), [200, 100, 50], (32, 32)));
    drop(source);
    fs::OpenOptions::new().write(true).open(dir.path().join(names[5])).unwrap().set_len(30_729_999).unwrap();
    let (message, _) = refused(dir.path().to_str().unwrap());
    assert!(message.ends_with("not a readable batch of CIFAR-10: 30729999 bytes, expected 30730000"), "{message}");
    fs::remove_file(dir.path().join(names[2])).unwrap();
    assert!(refused(dir.path().to_str().unwrap()).0.contains("data_batch_3.bin must be there too"));
}

#[test]
fn a_folder_with_cifar_100_is_told_what_to_take_instead() {
    let dir = TempDir::new().unwrap();
    for name in ["train.bin", "test.bin", "fine_label_names.txt"] {
        fs::write(dir.path().join(name), [0; 3074]).unwrap();
    }
    let error = open_path(dir.path()).err().unwrap().to_string();
    assert!(error.contains("CIFAR-100") && error.contains("take the data set as Parquet"), "{error}");
}
