#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{Greys, Layout, encode, gradient, grey_png, parquet_bytes};
use crate::{OpenOptions, open};

fn quietly(source: &dyn Source) -> Inspection {
    inspect(source, 3, ImageLimits::default(), &|_| {}).unwrap()
}

#[test]
fn the_embedded_images_are_ten_classes_of_28x28_grey_pngs() {
    let source = open("builtin:fashion10k", &OpenOptions::default()).unwrap();
    let last = AtomicUsize::new(0);
    let report =
        inspect(&*source, 2, ImageLimits::default(), &|done| _ = last.fetch_max(done, Ordering::Relaxed)).unwrap();
    assert_eq!((report.images, report.readable, report.unreadable.len()), (10_000, 10_000, 0));
    assert_eq!(report.classes.0.len(), 10);
    assert_eq!(report.classes.0.iter().map(|(_, n)| n).sum::<usize>(), 10_000);
    assert_eq!(report.sizes.0, [("28x28".to_owned(), 10_000)]);
    assert_eq!(report.formats.0, [("png".to_owned(), 10_000)]);
    assert_eq!(report.colors.0, [("grey".to_owned(), 10_000)]);
    assert_eq!(last.into_inner(), 10_000);
    assert!(report.images_per_s > 0.0);
}

#[test]
fn sizes_formats_and_unreadable_files_are_counted_and_named() {
    let dir = tempfile::TempDir::new().unwrap();
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("a.png", grey_png(8, 1));
    write("b.png", grey_png(8, 2));
    write("c.jpg", encode(&gradient(20, 10), image::ImageFormat::Jpeg));
    write("d.png", grey_png(8, 3)[..30].to_vec());
    write("e.png", b"this is text".to_vec());
    write("f.gif", Vec::new());
    let source = open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
    let report = quietly(&*source);
    assert_eq!((report.images, report.readable), (6, 3));
    assert_eq!(report.sizes.0, [("8x8".to_owned(), 2), ("20x10".to_owned(), 1)]);
    assert_eq!(report.formats.0, [("png".to_owned(), 2), ("jpeg".to_owned(), 1)]);
    assert_eq!(report.classes, Counts::default());
    let unreadable: Vec<_> = report.unreadable.iter().map(|u| u.id.as_str()).collect();
    assert_eq!(unreadable, ["d.png", "e.png", "f.gif"]);
    assert_eq!(report.unreadable[1].reason, "not a PNG, JPEG, WebP, GIF, BMP or TIFF image");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["sizes"], serde_json::json!({"8x8": 2, "20x10": 1}));
    assert_eq!(json["unreadable"][2]["id"], "f.gif");
}

#[test]
fn classes_without_images_and_images_without_labels_are_told() {
    let names = serde_json::json!({"info": {"features": {"label": {"names": ["cat", "dog", "eel"]}}}}).to_string();
    let rows = [Some(0), Some(2), None, Some(2), Some(5)].map(|label| (Some(grey_png(4, 9)), label));
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    std::fs::write(&path, parquet_bytes(&rows, &Layout { huggingface: Some(names), ..Layout::default() })).unwrap();
    let report = quietly(&*open(path.to_str().unwrap(), &OpenOptions::default()).unwrap());
    let want = [("cat", 1), ("dog", 0), ("eel", 2), ("5", 1), ("(no label)", 1)];
    assert_eq!(report.classes.0, want.map(|(name, n)| (name.to_owned(), n)));
}

#[test]
fn a_preview_shows_each_class_evenly_and_no_corrupt_sample() {
    let source = Greys { len: 100, corrupt: |index| index == 0 };
    let report = quietly(&source);
    assert_eq!(report.unreadable.len(), 1);
    let pictures = report.preview(&source, 20, ImageSize::square(12), 3).unwrap();
    let classes: Vec<_> = pictures.iter().map(|p| p.class.clone().unwrap()).collect();
    assert_eq!(classes, (0..20).map(|i| (i / 2).to_string()).collect::<Vec<_>>());
    assert!(pictures.iter().all(|p| p.pixels.len() == 12 * 12 * 3 && p.id != "grey 0"));
    assert_eq!(report.preview(&source, 3, ImageSize::square(8), 1).unwrap().len(), 3);
    assert_eq!(report.preview(&source, 500, ImageSize::square(8), 1).unwrap().len(), 99);
}

#[test]
fn a_preview_shows_all_of_an_image_that_is_not_square() {
    let dir = tempfile::TempDir::new().unwrap();
    // White at the left and the right end, which a square from the middle would lack.
    let wide = image::GrayImage::from_fn(80, 48, |x, _| image::Luma([if (8..72).contains(&x) { 90 } else { 255 }]));
    std::fs::write(dir.path().join("a.png"), encode(&wide.into(), image::ImageFormat::Png)).unwrap();
    let source = open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
    let picture = quietly(&*source).preview(&*source, 1, ImageSize::square(40), 1).unwrap().remove(0);
    let row = |y: usize| &picture.pixels[y * 40..][..40];
    assert_eq!((row(2)[20], row(37)[20]), (0, 0), "above and below");
    assert_eq!((row(20)[0], row(20)[20], row(20)[39]), (255, 90, 255));
}

#[test]
fn black_images_duplicates_and_shorter_sides_are_counted_and_named() {
    let dir = tempfile::TempDir::new().unwrap();
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("a.png", grey_png(8, 200));
    write("b.png", grey_png(8, 200));
    write("black.png", grey_png(100, 3));
    write("c.png", grey_png(8, 200));
    write("clear.png", encode(&image::DynamicImage::new_rgba8(9, 9), image::ImageFormat::Png));
    write("dark-frame.png", {
        let mut frame = image::GrayImage::new(40, 40);
        frame.rows_mut().take(20).flatten().for_each(|pixel| pixel.0 = [90]);
        encode(&frame.into(), image::ImageFormat::Png)
    });
    let report = quietly(&*open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap());
    assert_eq!(report.near_black, Alike { count: 1, examples: vec!["black.png".into()] });
    let pairs = ["b.png = a.png", "c.png = a.png"].map(str::to_owned).to_vec();
    assert_eq!(report.duplicates, Alike { count: 2, examples: pairs });
    let sides = [("8 to 15", 4), ("16 to 31", 0), ("32 to 63", 1), ("64 to 127", 1)];
    assert_eq!(report.shorter_sides.0, sides.map(|(name, count)| (name.to_owned(), count)));
}
