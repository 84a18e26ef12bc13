//! Files that lie, or were damaged: nothing panics, hangs, or holds more than [`LIMIT`] bytes at once. What is refused, and in which
//! words, is the business of the tests beside each format; `scripts/fuzz` looks for what nobody thought of.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ddpm_data::{DataError, ImageLimits, ImageSize, Inspection, OpenOptions, RawImage, Source, inspect, open};
use flate2::{Compression, Crc, write::ZlibEncoder};
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FixedLenByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Bytes that may be held at once.
const LIMIT: usize = 512 << 20;
/// Far longer than any of these takes, beside other tests too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what is held; refuses nothing.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    MOST.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: memory comes from `System` with the layouts that it was asked for, and goes back there.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `memory` came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What is held is the whole process's: a test has its turn from its beginning, for to make its files takes memory too.
fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file or folder at `path` and looks at every image, within the limits.
#[track_caller]
fn survives(path: &Path, what: &str) -> Result<Inspection, DataError> {
    // What reading takes: not the test's own bytes, nor the names of functions that the first caught panic looks up for its backtrace.
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let begun = Instant::now();
    let found = look(path);
    let (took, most) = (begun.elapsed(), MOST.load(Ordering::Relaxed) - before);
    assert!(most <= LIMIT, "{what}: {} MiB were held", most >> 20);
    assert!(took < PATIENCE, "{what}: {took:?}");
    found
}

fn look(path: &Path) -> Result<Inspection, DataError> {
    let mut options = OpenOptions { split: Some("all".to_owned()), ..OpenOptions::default() };
    options.stores.cache_dir = Some(path.parent().unwrap().join("cache"));
    let source = open(path.to_str().unwrap(), &options)?;
    let found = inspect(&*source, 1, ImageLimits::default(), &|_| {})?;
    found.preview(&*source, 2, ImageSize::square(32), 3)?;
    Ok(found)
}

/// The same of one file.
#[track_caller]
fn survives_file(name: &str, bytes: &[u8], what: &str) -> Result<Inspection, DataError> {
    let dir = tempfile::tempdir().unwrap();
    // A single image is no source.
    let is_image = ["png", "jpg", "webp", "gif", "bmp", "tiff"].iter().any(|end| name.ends_with(end));
    let folder = dir.path().join("files");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
    survives(&if is_image { folder } else { folder.join(name) }, what)
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let pixel = |x, y| Rgba([(x * 7) as u8, (y * 5) as u8, (x * y) as u8, 200]);
    let image = DynamicImage::ImageRgba8(RgbaImage::from_fn(33, 21, pixel));
    let image = if format == ImageFormat::Jpeg { image.to_rgb8().into() } else { image };
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/format/tests/fixtures").join(name)).unwrap()
}

/// A small file of every kind that is one file.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let schema = "message m { optional group image { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";
    let png = ByteArray::from(encoded(ImageFormat::Png));
    let table = parquet(schema, |column, at| match at {
        0 => drop(column.typed::<ByteArrayType>().write_batch(&[png.clone(), png.clone()], Some(&[2, 2]), None)),
        1 => drop(column.typed::<ByteArrayType>().write_batch(&[], Some(&[1, 1]), None)),
        _ => drop(column.typed::<Int64Type>().write_batch(&[0, 1], Some(&[1, 1]), None)),
    });
    vec![
        ("a.png", encoded(ImageFormat::Png)),
        ("a.jpg", encoded(ImageFormat::Jpeg)),
        ("a.webp", encoded(ImageFormat::WebP)),
        ("a.gif", encoded(ImageFormat::Gif)),
        ("a.bmp", encoded(ImageFormat::Bmp)),
        ("a.tiff", encoded(ImageFormat::Tiff)),
        ("a.tar", fixture("webdataset/train-000000.tar")),
        ("pax.tar", fixture("pax.tar")),
        ("a.arrow", fixture("saved-texts/data-00000-of-00001.arrow")),
        ("a.parquet", table),
    ]
}

type Column<'a> = parquet::file::writer::SerializedColumnWriter<'a>;

/// A table of one row group whose columns `write` fills.
fn parquet(schema: &str, mut write: impl FnMut(&mut Column<'_>, usize)) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut at = 0;
    while let Some(mut column) = group.next_column().unwrap() {
        write(&mut column, at);
        column.close().unwrap();
        at += 1;
    }
    group.close().unwrap();
    file.into_inner().unwrap()
}

#[test]
fn whole_files_are_read() {
    let _turn = turn();
    for (name, bytes) in files() {
        assert!(survives_file(name, &bytes, name).unwrap().readable > 0, "{name}");
    }
}

#[test]
fn files_cut_short_or_with_flipped_bits_are_survived() {
    let _turn = turn();
    for (name, bytes) in files() {
        for length in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
            let _ = survives_file(name, &bytes[..length], &format!("{name} cut to {length} bytes"));
        }
        // Steps that are no multiple of a field's size, so that every bit of a byte has its turn.
        for bit in (0..bytes.len() * 8).step_by(bytes.len() * 8 / 150 + 1) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let _ = survives_file(name, &damaged, &format!("{name} with bit {bit} flipped"));
        }
    }
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(content);
    [&(content.len() as u32).to_be_bytes()[..], kind, content, &crc.sum().to_be_bytes()].concat()
}

/// A PNG of `width` x `height` with these chunks behind its header, and `pixels` zeros compressed for its pixels.
fn png(width: u32, height: u32, bits: u8, colour: u8, between: &[Vec<u8>], pixels: u64) -> Vec<u8> {
    let (width, height) = (width.to_be_bytes(), height.to_be_bytes());
    let header = chunk(b"IHDR", &[&width[..], &height, &[bits, colour, 0, 0, 0]].concat());
    let pixels = chunk(b"IDAT", &zeros(pixels));
    [b"\x89PNG\r\n\x1a\n".to_vec(), header, between.concat(), pixels, chunk(b"IEND", &[])].concat()
}

/// So many zero bytes, compressed.
fn zeros(mut count: u64) -> Vec<u8> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    let piece = vec![0; 1 << 20];
    while count > 0 {
        let part = count.min(piece.len() as u64);
        zlib.write_all(&piece[..part as usize]).unwrap();
        count -= part;
    }
    zlib.finish().unwrap()
}

#[test]
fn chunks_of_a_png_that_unpack_to_a_gigabyte_are_not_unpacked() {
    let _turn = turn();
    let bomb = zeros(1 << 30);
    let texts: [(&[u8; 4], &[u8]); 3] =
        [(b"iCCP", b"profile\0\0"), (b"zTXt", b"text\0\0"), (b"iTXt", b"text\0\x01\0\0\0")];
    for (kind, begin) in texts {
        let bomb = chunk(kind, &[begin, &bomb].concat());
        let bytes = png(4, 4, 8, 2, &[bomb], 4 * 13);
        let found = survives_file("a.png", &bytes, &String::from_utf8_lossy(kind)).unwrap();
        assert_eq!(found.readable, 1, "the picture itself is whole");
    }
    // The pixels of a picture that is far smaller.
    let _ = survives_file("a.png", &png(4, 4, 8, 2, &[], 1 << 30), "IDAT");
    let many: Vec<_> = (0..2000).map(|n| chunk(b"tEXt", format!("k{n}\0{}", "v".repeat(50_000)).as_bytes())).collect();
    let _ = survives_file("a.png", &png(4, 4, 8, 2, &many, 4 * 13), "many texts");
}

#[test]
fn pictures_as_large_as_headers_can_say_are_refused_before_their_pixels_are_held() {
    let _turn = turn();
    for (width, height, bits, colour) in [
        (16_384, 16_384, 1, 0),
        (16_384, 16_384, 16, 6),
        (16_384, 5_461, 8, 2),
        (16_384, 5_000, 8, 2),
        (16_384, 4_096, 8, 6),
        (16_384, 2_048, 16, 6),
        (u32::MAX >> 1, u32::MAX >> 1, 8, 2),
        (u32::MAX >> 1, 1, 8, 0),
        (1, u32::MAX >> 1, 8, 0),
    ] {
        // Turned by a quarter, for which a picture is held twice; those of the very limit are not.
        let exif = chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0");
        let exif = if height == 5_000 { vec![exif] } else { Vec::new() };
        let pixels = if u64::from(width) * u64::from(height) < 1 << 29 { 600 << 20 } else { 1 };
        let bytes = png(width, height, bits, colour, &exif, pixels);
        let _ = survives_file("a.png", &bytes, &format!("PNG of {width}x{height}, {bits} bits, colour type {colour}"));
    }
    // (name, where the width and then the height stand, as such numbers)
    let places: [(&str, ImageFormat, usize, &[&[u8]]); 4] = [
        ("a.gif", ImageFormat::Gif, 6, &[&[0xFF, 0xFF, 0xFF, 0xFF]]),
        (
            "a.bmp",
            ImageFormat::Bmp,
            18,
            &[&[0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0x7F], &[0, 64, 0, 0, 0, 64, 0, 0]],
        ),
        ("a.webp", ImageFormat::WebP, 21, &[&[0xFF, 0xFF, 0xFF, 0x0F]]),
        ("a.jpg", ImageFormat::Jpeg, 0, &[&[0xFF, 0xFF, 0xFF, 0xFF], &[0x40, 0, 0x40, 0], &[0x20, 0, 0x40, 0]]),
    ];
    for (name, format, place, sizes) in places {
        for size in sizes {
            let mut bytes = encoded(format);
            let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).map(|frame| frame + 5);
            let place = if place == 0 { frame.unwrap() } else { place };
            bytes[place..place + size.len()].copy_from_slice(size);
            let _ = survives_file(name, &bytes, &format!("{name} with the size {size:?}"));
        }
    }
}

/// A tar header with its checksum; `size` as it stands in the field.
fn tar_header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// An entry of these bytes.
fn tar_entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut entry = tar_header(name, kind, format!("{:011o}\0", content.len()).as_bytes());
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

#[test]
fn archives_that_lie_write_nothing_and_are_survived() {
    let _turn = turn();
    let png = encoded(ImageFormat::Png);
    let good = tar_entry("good.png", b'0', &png);
    let after = |before: Vec<u8>| [good.clone(), before, vec![0; 1024]].concat();
    for name in ["/etc/ddpm-hostile.png", "../../ddpm-hostile.png", "a/../../../ddpm-hostile.png", "./\x1b[2J.png"] {
        let found = survives_file("a.tar", &after(tar_entry(name, b'0', &png)), name).unwrap();
        assert_eq!(found.readable, 2, "{name} is a name and no place");
    }
    assert!(!Path::new("/etc/ddpm-hostile.png").exists());
    let huge = [0x80, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
    let pax = |records: &str| [tar_entry("pax", b'x', records.as_bytes()), tar_entry("b.png", b'0', &png)].concat();
    let mut sparse = tar_entry("sparse.png", b'S', &png);
    sparse[482] = 1;
    for (what, bytes) in [
        ("an octal size beyond the file", tar_header("b.png", b'0', b"77777777777\0")),
        ("a binary size beyond any disk", tar_header("b.png", b'0', &huge)),
        ("a pax size beyond any disk", pax("25 size=9999999999999999\n")),
        ("a pax size beyond a number", pax("30 size=99999999999999999999\n")),
        ("pax records of no length", pax("0 size=1\n")),
        ("a huge name", tar_header("name", b'L', &huge)),
        ("a huge pax header", tar_header("pax", b'x', b"00777777777\0")),
        ("a sparse file", sparse),
        ("names without end", tar_entry("name", b'L', &[b'x'; 5000]).repeat(500)),
    ] {
        let _ = survives_file("a.tar", &after(bytes), what);
    }
}

#[test]
fn columns_of_wrong_types_are_refused_or_passed_over() {
    let _turn = turn();
    let png = ByteArray::from(encoded(ImageFormat::Png));
    let label = |kind: &str| format!("message m {{ required binary image; required {kind} label; }}");
    let table = |kind: &str, write: &dyn Fn(&mut Column<'_>)| {
        parquet(&label(kind), |column, at| match at {
            0 => drop(column.typed::<ByteArrayType>().write_batch(std::slice::from_ref(&png), None, None)),
            _ => write(column),
        })
    };
    let double = table("double", &|column| drop(column.typed::<DoubleType>().write_batch(&[f64::NAN], None, None)));
    assert_eq!(survives_file("a.parquet", &double, "labels that are no numbers").unwrap().readable, 1);
    for number in [i64::MIN, -1, i64::from(u32::MAX), i64::MAX] {
        let bytes = table("int64", &|column| drop(column.typed::<Int64Type>().write_batch(&[number], None, None)));
        let _ = survives_file("a.parquet", &bytes, &format!("the label {number}"));
    }
    let fixed = "message m { required fixed_len_byte_array(4) image; }";
    let fixed = parquet(fixed, |column, _| {
        drop(column.typed::<FixedLenByteArrayType>().write_batch(&[vec![1, 2, 3, 4].into()], None, None));
    });
    assert!(survives_file("a.parquet", &fixed, "images of a fixed length").is_err());
    let numbers = "message m { optional group image { optional int64 bytes; } }";
    let numbers = parquet(numbers, |column, _| {
        drop(column.typed::<Int64Type>().write_batch(&[7], Some(&[2]), None));
    });
    assert!(survives_file("a.parquet", &numbers, "images that are numbers").is_err());
}

#[test]
fn a_table_that_repeats_one_value_without_end_is_read_in_bounded_memory() {
    let _turn = turn();
    // A picture of half a megabyte in 4,000 rows, and a million rows of nothing: half a megabyte, and some bytes.
    let mut picture = encoded(ImageFormat::Png);
    picture.resize(500_000, 0);
    let picture = ByteArray::from(picture);
    let many = parquet("message m { required binary image; }", |column, _| {
        drop(column.typed::<ByteArrayType>().write_batch(&vec![picture.clone(); 4000], None, None));
    });
    assert!(many.len() < 2 << 20, "{} bytes", many.len());
    assert_eq!(survives_file("a.parquet", &many, "a dictionary of one picture").unwrap().readable, 4000);
    let nothing = parquet("message m { optional binary image; }", |column, _| {
        drop(column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![0; 1_000_000]), None));
    });
    assert_eq!(survives_file("a.parquet", &nothing, "nulls").unwrap().readable, 0);
}

/// A source that claims more samples than anybody has, and has none.
struct Claims;

impl Source for Claims {
    fn len(&self) -> usize {
        usize::MAX
    }

    fn read(&self, index: usize) -> Result<RawImage, DataError> {
        Err(DataError::Unreadable { sample: format!("row {index}"), reason: "the table ends before".to_owned() })
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn has_labels(&self) -> bool {
        false
    }

    fn fingerprint(&self) -> &str {
        ""
    }

    fn describe(&self) -> String {
        "claims".to_owned()
    }
}

#[test]
fn a_source_of_samples_that_do_not_exist_is_given_up() {
    let _turn = turn();
    let error = inspect(&Claims, 1, ImageLimits::default(), &|_| {}).unwrap_err().to_string();
    assert!(error.contains("samples in a row are unreadable, the last: row 1"), "{error}");
}

#[test]
#[cfg(feature = "datasets")]
fn idx_headers_that_lie_are_refused() {
    let _turn = turn();
    let labels = [0, 0, 8, 1, 0, 0, 0, 1, 7];
    let images = |sizes: [u32; 3]| {
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes()).collect::<Vec<u8>>();
        [&[0, 0, 8, 3][..], &sizes, &[1, 2, 3, 4]].concat()
    };
    let good = images([1, 2, 2]);
    let claims = [[u32::MAX; 3], [1 << 31, 2, 2], [1, 1 << 31, 2], [0, 0, 0], [1, 0, 4], [4, 1, 1]];
    for claim in std::iter::once([1, 2, 2]).chain(claims) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("idx");
        std::fs::create_dir(&folder).unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
        put("train-images-idx3-ubyte", &images(claim));
        put("train-labels-idx1-ubyte", &labels);
        put("t10k-images-idx3-ubyte", &good);
        put("t10k-labels-idx1-ubyte", &labels);
        let found = survives(&folder, &format!("IDX images of {claim:?}"));
        assert_eq!(found.is_ok(), claim == [1, 2, 2], "{claim:?}");
    }
}
