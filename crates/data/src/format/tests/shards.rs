//! Tar shards: those that other programs write, and hostile ones.

use super::*;
use crate::format::tar::file_header;

pub(super) fn fixture(name: &str) -> String {
    format!("{}/src/format/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The value of sample `i`'s pixels, by which the fixtures number their images.
pub(super) fn grey(source: &dyn Source, i: usize) -> u8 {
    crate::decode::decode(&source.read(i).unwrap().bytes, Default::default())
        .unwrap()
        .image
        .to_luma8()
        .get_pixel(0, 0)
        .0[0]
}

fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut all = file_header(name, bytes.len() as u64).unwrap().to_vec();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

/// The same header with some bytes changed, and its checksum right.
fn forged(header: &[u8], changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut header = header.to_vec();
    changes.iter().for_each(|(at, bytes)| header[*at..at + bytes.len()].copy_from_slice(bytes));
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

pub(super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    files.iter().flat_map(|(name, bytes)| file(name, bytes)).chain([0; 1024]).collect()
}

fn open_bytes(bytes: &[u8]) -> Result<Arc<dyn Source>, DataError> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x.tar"), bytes).unwrap();
    open_path(&dir.path().join("x.tar"))
}

/// A source whose file stays.
fn kept(bytes: &[u8]) -> (TempDir, Arc<dyn Source>) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x.tar"), bytes).unwrap();
    let source = open_path(dir.path()).unwrap();
    (dir, source)
}

fn labels(source: &dyn Source) -> Vec<Option<u32>> {
    (0..source.len()).map(|i| source.read(i).unwrap().label).collect()
}

fn reason(bytes: &[u8]) -> String {
    let error = open_bytes(bytes).err().unwrap().to_string();
    let (_, reason) = error.split_once(": not a readable tar shard: ").unwrap_or_else(|| panic!("{error}"));
    reason.to_owned()
}

#[test]
fn shards_that_webdataset_wrote_are_read_in_their_order() {
    let source = open_str(&fixture("webdataset")).unwrap();
    conforms(&*source);
    assert_eq!((source.len(), source.class_names()), (6, None));
    assert_eq!(labels(&*source), [0, 1, 0, 1, 0, 1].map(Some), "numbers from .cls and from .json");
    assert_eq!((0..6).map(|i| grey(&*source, i)).collect::<Vec<_>>(), [0, 10, 20, 30, 40, 50]);
    assert_eq!(source.read(4).unwrap().id, "train-000001.tar: a/0004.png");
    assert_eq!(source.notices(), ["the .txt files are taken for captions and not for names of classes"]);
    assert!(source.describe().ends_with("6 images in 2 tar shards"), "{}", source.describe());
    let one = open_str(&fixture("webdataset/train-000001.tar")).unwrap();
    assert_eq!((one.len(), grey(&*one, 0)), (3, 30));
    let range = open_str(&fixture("webdataset/train-{000000..000001}.tar")).unwrap();
    assert_eq!((range.len(), range.fingerprint()), (6, source.fingerprint()));
    let (message, _) = refused(&fixture("webdataset/train-{000001..000004}.tar"));
    assert!(message.ends_with("3 of 4 shards are not there, the first train-000002.tar"), "{message}");
}

#[test]
fn long_names_in_pax_and_gnu_archives_are_read_and_links_are_said_to_be_passed_over() {
    for name in ["pax.tar", "gnu.tar"] {
        let source = open_str(&fixture(name)).unwrap();
        assert_eq!(labels(&*source), [Some(0), Some(1)]);
        assert_eq!(grey(&*source, 1), 10);
        assert_eq!(source.read(1).unwrap().id, format!("{name}: {}/1.png", "ü".repeat(120)));
        assert_eq!(source.notices(), ["passed over: folder/link.png (a link or a device)"]);
    }
}

#[test]
fn the_preferred_image_and_label_of_a_sample_are_taken_wherever_they_lie() {
    let (image, other) = (grey_png(4, 9), grey_png(4, 1));
    let (_dir, source) = kept(&archive(&[
        ("b.cls", b"1\n"),
        ("a.mask.png", &other),
        ("a.txt", b"two words"),
        ("b.png", &image),
        ("a.json", br#"{"caption": "x", "label": 3}"#),
        ("a.png", &image),
        ("._a.png", &other),
        ("lonely.cls", b"7"),
        ("README", b"no sample"),
        ("a.npy", b"x"),
    ]));
    assert_eq!(labels(&*source), [Some(1), Some(3)], "sample b came first");
    assert_eq!([grey(&*source, 0), grey(&*source, 1)], [9, 9]);
    assert_eq!(source.notices(), ["the shards hold more than images and labels: 1 .npy"]);
}

#[test]
fn names_in_txt_files_are_classes_unless_nearly_each_is_another_one() {
    let names = |name: &dyn Fn(u32) -> String| {
        let png = grey_png(4, 1);
        let files: Vec<_> = (0..30)
            .flat_map(|i| [(format!("{i:02}.png"), png.clone()), (format!("{i:02}.txt"), name(i).into_bytes())])
            .collect();
        kept(&archive(&files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect::<Vec<_>>()))
    };
    let (_dir, source) = names(&|i| ["dog", " cat\n"][i as usize % 2].to_owned());
    assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(labels(&*source)[..3], [Some(1), Some(0), Some(1)]);
    let (_dir, source) = names(&|i| format!("a picture of thing {i}"));
    assert!(!source.has_labels() && source.class_names().is_none() && labels(&*source)[0].is_none());
    assert!(source.notices()[0].contains("captions"), "{:?}", source.notices());
}

#[test]
fn numbers_get_their_names_from_classes_json_beside_the_shards() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x.tar"), archive(&[("a.png", &grey_png(4, 1)), ("a.cls", b"1")])).unwrap();
    let path = dir.path().join("classes.json");
    for text in [r#"["cat", "dog"]"#, r#"{"1": "dog", "0": "cat"}"#] {
        fs::write(&path, text).unwrap();
        assert_eq!(open_path(dir.path()).unwrap().class_names().unwrap(), ["cat", "dog"]);
        assert_eq!(open_path(&dir.path().join("x.tar")).unwrap().class_names().unwrap(), ["cat", "dog"]);
        let pattern = format!("{}/{{x,x}}.tar", dir.path().display());
        assert!(open_str(&pattern).is_err(), "a shard twice");
        assert_eq!(open_str(&pattern.replace("{x,x}", "{x}")).unwrap().class_names().unwrap(), ["cat", "dog"]);
    }
    fs::write(&path, r#"["cat"]"#).unwrap();
    let (message, _) = refused(dir.path().to_str().unwrap());
    assert!(message.ends_with("there are 1 names, but a label is 1"), "{message}");
    fs::write(&path, "3").unwrap();
    assert!(refused(dir.path().to_str().unwrap()).0.contains("expected a list of names"));
}

#[test]
fn a_shard_cut_anywhere_is_refused_or_lacks_only_padding_or_whole_files() {
    let whole = fs::read(fixture("pax.tar")).unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.tar");
    let mut refused = 0;
    let end = whole.chunks(512).position(|block| block.iter().all(|&byte| byte == 0)).unwrap() * 512;
    for len in (64..whole.len()).step_by(64) {
        replace(&path, &whole[..len]);
        match open_path(&path) {
            Ok(source) => {
                (0..source.len()).for_each(|i| assert_eq!(usize::from(grey(&*source, i)), 10 * i));
                let is_named =
                    source.notices().iter().any(|notice| notice.contains("x.tar: a tar shard without the mark"));
                assert_eq!(is_named, len < end + 512, "{len}: {:?}", source.notices());
            }
            Err(DataError::Empty { .. }) => {}
            Err(DataError::BadFile { reason, .. }) => {
                refused += 1;
                assert!(reason.contains("at byte "), "{reason}");
            }
            Err(other) => panic!("{len}: {other}"),
        }
    }
    assert!(refused > 60, "{refused}");
    assert_eq!(reason(&[]), "it is empty");
    let cut = archive(&[("a.png", &grey_png(4, 1))]);
    assert_eq!(reason(&cut[..100]), "it ends in the middle of a header, at byte 0");
    assert!(reason(&cut[..520]).starts_with("\"a.png\" at byte 0 has "), "{}", reason(&cut[..520]));
}

#[test]
fn damaged_bits_in_any_header_never_panic_and_never_pass_for_another_archive() {
    for name in ["pax.tar", "gnu.tar"] {
        let whole = fs::read(fixture(name)).unwrap();
        for at in (0..whole.len()).filter(|at| whole[at / 512 * 512..][..512].iter().any(|&byte| byte != 0)) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x11;
            let source = open_bytes(&damaged);
            let is_header = &whole[at / 512 * 512 + 257..][..5] == b"ustar";
            // Behind the zero that ends the checksum nothing counts.
            assert!(!is_header || at % 512 == 155 || source.is_err(), "{name}: byte {at}");
        }
    }
}

#[test]
fn hostile_headers_are_refused_or_passed_over_and_allocate_nothing() {
    let header = file_header("a.png", 1).unwrap();
    for size in [&b"77777777777\0"[..], b"\x80\0\0\0\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF", b"\x80\0\0\0\0\0\0\x01\0\0\0\0"]
    {
        let text = reason(&forged(&header, &[(124, size)]));
        assert!(text.starts_with("\"a.png\" at byte 0 has ") && text.ends_with("the shard ends at byte 512"), "{text}");
    }
    assert_eq!(
        reason(&forged(&header, &[(124, b"-0000000001\0")])),
        "a header with a size that is no number, at byte 0"
    );
    // Names and records of 8 GB.
    for kind in [b"L", b"x"] {
        assert!(
            reason(&forged(&header, &[(156, kind), (124, b"77777777777\0")])).contains("the shard ends at byte 512")
        );
    }
    // Records that say that the next file is larger than any.
    let record = b"29 size=18446744073709551615\n";
    let pax = [forged(&file("pax", record), &[(156, b"x")]), file("a.png", b"x")].concat();
    assert!(reason(&pax).starts_with("\"a.png\" at byte 1024 has 18446744073709551615 bytes"), "{}", reason(&pax));
    // A sparse file whose map goes on for ever.
    let sparse = forged(&header, &[(156, b"S"), (482, b"\x01")]);
    assert_eq!(reason(&[sparse, vec![1; 512 * 3]].concat()), "it ends in the middle of a header, at byte 2048");
    assert_eq!(reason(&[7; 1024]), "no tar header, or a damaged one, at byte 0");
}

#[test]
fn paths_that_lead_out_and_sparse_files_do_no_harm() {
    let png = grey_png(4, 5);
    let sparse = [
        forged(&file("s.png", &png), &[(156, b"S"), (482, b"\x01")])[..512].to_vec(),
        vec![0; 512],
        file("x", &png).get(512..).unwrap_or_default().to_vec(),
    ];
    let files = [file("/etc/a.png", &png), file("../../b.png", &png), file("..", b"x"), file("a/../.png", &png)];
    let (_dir, source) = kept(&[files.concat(), sparse.concat(), vec![0; 1024]].concat());
    let ids: Vec<String> = (0..source.len()).map(|i| source.read(i).unwrap().id).collect();
    assert_eq!(ids, ["x.tar: /etc/a.png", "x.tar: ../../b.png"], "only names");
    assert_eq!(source.notices(), ["passed over: s.png (a sparse file)"]);
}

#[test]
fn shards_without_images_say_what_they_hold() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x.tar"), archive(&[("a.npy", b"1"), ("b.npy", b"1"), ("b.cls", b"1"), ("c.pyd", b"1")]))
        .unwrap();
    let (message, _) = refused(dir.path().to_str().unwrap());
    assert!(message.ends_with("no images (1 tar shards without images: 2 .npy, 1 .pyd)"), "{message}");
}

#[test]
fn the_images_of_a_far_shard_are_asked_for_together() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x.tar"), fs::read(fixture("webdataset/train-000000.tar")).unwrap()).unwrap();
    let store = remote_copy(dir.path(), Remote { at_once: 8, ..Remote::default() });
    let far = open_folder("s3://far", Arc::clone(&store) as _, Format::Auto, None, ImageLimits::default()).unwrap();
    assert_eq!(*store.calls.lock().unwrap(), [1], "the whole index in one request");
    assert_eq!(far.fingerprint(), open_path(dir.path()).unwrap().fingerprint());
    assert_eq!(far.read_many(&[2, 0, 1]).len(), 3);
    assert_eq!(*store.calls.lock().unwrap(), [1, 3]);
}
