//! Writes the inputs that fuzzing begins with: small files of every kind, made here or taken from the tests' fixtures.
//!
//! usage: seeds FOLDER    (a folder for each target in it)

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ddpm_run::checkpoint::{EpochPosition, MANIFEST_FILE, NamedTensor, Snapshot, State, TensorFile, save, tensors};
use ddpm_train::config::TrainConfig;
use ddpm_train::config::presets::PRESETS;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{DynamicImage, Frame, ImageEncoder, ImageFormat, Rgba, RgbaImage};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use zip::{ZipArchive, ZipWriter};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What instrumented code calls; libFuzzer, which has these functions, is no part of this program.
macro_rules! uncounted {
    ($($name:ident),*) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name() {})*
    };
}
uncounted!(
    __sanitizer_cov_8bit_counters_init,
    __sanitizer_cov_pcs_init,
    __sanitizer_cov_trace_pc_indir,
    __sanitizer_cov_trace_switch,
    __sanitizer_cov_trace_cmp1,
    __sanitizer_cov_trace_cmp2,
    __sanitizer_cov_trace_cmp4,
    __sanitizer_cov_trace_cmp8,
    __sanitizer_cov_trace_const_cmp1,
    __sanitizer_cov_trace_const_cmp2,
    __sanitizer_cov_trace_const_cmp4,
    __sanitizer_cov_trace_const_cmp8
);

/// The seeds of the targets.
struct Seeds(PathBuf);

fn main() -> Result {
    let folder = std::env::args_os().nth(1).ok_or("usage: seeds FOLDER")?;
    let seeds = Seeds(folder.into());
    images(&seeds)?;
    tables(&seeds)?;
    raw(&seeds)?;
    checkpoints(&seeds)?;
    texts(&seeds)?;
    fixtures(&seeds)
}

impl Seeds {
    fn put(&self, target: &str, name: &str, bytes: impl AsRef<[u8]>) -> Result {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join(name), bytes)?)
    }

    /// With a first byte that says which of the target's files it is.
    fn put_as(&self, target: &str, name: &str, which: u8, bytes: impl AsRef<[u8]>) -> Result {
        self.put(target, name, [&[which], bytes.as_ref()].concat())
    }
}

/// A picture with every colour and transparency.
fn picture(width: u32, height: u32) -> DynamicImage {
    let pixel = |x, y| Rgba([(x * 37) as u8, (y * 29) as u8, (x * y) as u8, 255 - (x * 16) as u8]);
    DynamicImage::ImageRgba8(RgbaImage::from_fn(width, height, pixel))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// EXIF data that say: turned by a quarter.
const TURNED: [u8; 26] = *b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

fn images(seeds: &Seeds) -> Result {
    let image = picture(9, 7);
    let kinds: [(&str, DynamicImage); 6] = [
        ("rgba", image.clone()),
        ("rgb", image.to_rgb8().into()),
        ("grey", image.to_luma8().into()),
        ("grey-alpha", image.to_luma_alpha8().into()),
        ("rgb16", image.to_rgb16().into()),
        ("grey16", image.to_luma16().into()),
    ];
    for (kind, image) in kinds {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
            // A format without this kind of pixels has no such seed.
            if let Ok(bytes) = encoded(&image, format) {
                seeds.put("image", &format!("{kind}.{}", format.extensions_str()[0]), bytes)?;
            }
        }
    }
    let rgb = image.to_rgb8();
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_exif_metadata(TURNED.to_vec())?;
    encoder.set_icc_profile(vec![7; 200])?;
    encoder.write_image(rgb.as_raw(), 9, 7, image::ExtendedColorType::Rgb8)?;
    seeds.put("image", "turned.jpg", bytes)?;
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_exif_metadata(TURNED.to_vec())?;
    encoder.set_icc_profile(vec![7; 200])?;
    encoder.write_image(rgb.as_raw(), 9, 7, image::ExtendedColorType::Rgb8)?;
    seeds.put("image", "turned.png", bytes)?;
    let mut bytes = Vec::new();
    GifEncoder::new(&mut bytes)
        .encode_frames([picture(9, 7), picture(5, 5)].map(|image| Frame::new(image.into_rgba8())))?;
    seeds.put("image", "moving.gif", bytes)
}

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (UTF8); }
    optional int64 label;
}";
const FEATURES: &str = r#"{"info":{"features":{"label":{"names":["cat","dog"],"_type":"ClassLabel"}}}}"#;

/// Parquet as Hugging Face has it, with every compression, and labels that are texts.
fn tables(seeds: &Seeds) -> Result {
    let compressions = [
        ("none", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("zstd", Compression::ZSTD(ZstdLevel::try_new(1)?)),
        ("gzip", Compression::GZIP(Default::default())),
        ("brotli", Compression::BROTLI(Default::default())),
        ("lz4", Compression::LZ4_RAW),
    ];
    for (name, compression) in compressions {
        seeds.put("parquet", &format!("{name}.parquet"), table(compression, SCHEMA)?)?;
    }
    let texts = SCHEMA.replace("optional int64 label", "optional binary label (UTF8)");
    seeds.put("parquet", "texts.parquet", table(Compression::SNAPPY, &texts)?)
}

fn table(compression: Compression, schema: &str) -> Result<Vec<u8>> {
    let features = KeyValue::new("huggingface".to_owned(), FEATURES.to_owned());
    let properties =
        WriterProperties::builder().set_compression(compression).set_key_value_metadata(Some(vec![features]));
    let schema = Arc::new(parse_message_type(schema)?);
    let is_text = schema.get_fields()[1].get_physical_type() == parquet::basic::Type::BYTE_ARRAY;
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
    let png = encoded(&picture(4, 3), ImageFormat::Png)?;
    for _ in 0..2 {
        let mut group = file.next_row_group()?;
        let images: [ByteArray; 2] = [png.clone().into(), png[..20].to_vec().into()];
        let mut column = group.next_column()?.ok_or("no column")?;
        column.typed::<ByteArrayType>().write_batch(&images, Some(&[2, 1, 2]), None)?;
        column.close()?;
        let mut column = group.next_column()?.ok_or("no column")?;
        column.typed::<ByteArrayType>().write_batch(&["a.png".into()], Some(&[2, 1, 1]), None)?;
        column.close()?;
        let mut column = group.next_column()?.ok_or("no column")?;
        if is_text {
            column.typed::<ByteArrayType>().write_batch(&["cat".into(), "dog".into()], Some(&[1, 0, 1]), None)?;
        } else {
            column.typed::<Int64Type>().write_batch(&[0, 1], Some(&[1, 0, 1]), None)?;
        }
        column.close()?;
        group.close()?;
    }
    Ok(file.into_inner()?)
}

fn raw(seeds: &Seeds) -> Result {
    for which in [0, 2] {
        let bytes = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4];
        seeds.put_as("raw", &format!("images-{which}"), which, bytes)?;
        seeds.put_as("raw", &format!("labels-{which}"), which + 1, [0, 0, 8, 1, 0, 0, 0, 1, 7])?;
    }
    seeds.put_as("raw", "cifar", 4, [3; 100])
}

fn checkpoints(seeds: &Seeds) -> Result {
    let tensor = |name: &str, shape: &[usize]| NamedTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: vec![0.5; shape.iter().product()],
    };
    let tensors = vec![tensor("conv_in.weight", &[2, 1, 3, 3]), tensor("conv_in.bias", &[2]), tensor("t", &[])];
    let file = TensorFile { name: "model.safetensors".to_owned(), tensors };
    seeds.put("safetensors", "ours", tensors::to_bytes(&file)?)?;
    for dtype in ["F16", "BF16", "I64"] {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,8]}}}}"#);
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[1; 8]].concat();
        seeds.put("safetensors", dtype, bytes)?;
    }
    let state = State::new(10, 40, EpochPosition { epoch: 1, images: 8 }, "config".to_owned(), "data".to_owned());
    let folder = tempfile::tempdir()?;
    let saved = save(folder.path(), &Snapshot { files: vec![file], state })?.path;
    for (which, name) in (0..).zip([MANIFEST_FILE, "state.json", "model.safetensors"]) {
        seeds.put_as("checkpoint", name, which, fs::read(saved.join(name))?)?;
    }
    Ok(())
}

const METRICS: &str = r#"{"step":1,"images":8,"loss":0.5,"loss_parts":{"mse":0.4,"vlb":0.1},"loss_quartile":[0.1,null,0.3,0.4],"lr":0.0002,"grad_norm":1.5,"timing":{"images_per_s":80.5,"data_wait":0.1,"memory_bytes":1000,"gpus":[{"busy":0.5}]}}
{"step":7,"loss":null,"lr":1e-300}
nonsense
{"step":8,"#;
const RECORD: &str = r#"{{"id":"a","created":"2026-11-27T16:50:00Z","program_version":"0.1.0","host":"h","device":"cpu","git_hash":null,"command":["ddpm"],"restarts":[{"at":"2026-11-27T16:50:00Z","step":5,"program_version":"0.1.0","host":"h","device":"cpu","git_hash":null,"command":[],"accepted":["train.lr"]}]}"#;
const STATUS: &str = r#"{{"phase":"training","step":5,"steps":10,"images_per_s":1.5,"seconds_left":2.5,"error":null,"pid":7,"host":"h","updated":"2026-11-27T16:50:00Z"}"#;

fn texts(seeds: &Seeds) -> Result {
    for (name, text) in [("metrics", METRICS), ("record", RECORD), ("status", STATUS)] {
        seeds.put("metrics", name, text)?;
    }
    let csv = "file_name,label\r\na.png,\"big, \"\"bad\"\" cat\"\nb.png,\nc/d.png,dog\n";
    seeds.put("metadata", "csv", csv)?;
    seeds.put(
        "metadata",
        "jsonl",
        "{\"file_name\": \"a.png\", \"label\": 3}\n{\"file_name\": \"b.png\", \"label\": null}\n",
    )?;
    for preset in PRESETS {
        seeds.put("config", preset.name, preset.text)?;
    }
    let set = "[data]\nsource = \"x\"\nimage_size = 32\n--set\ntrain.lr=1e-4\nmodel.block_out_channels=[32, 64]\nrun.name=a b\n";
    seeds.put("config", "set", set)?;
    let facts = serde_json::json!({
        "program_version": "0.1.0", "step": 5, "images": 40, "weights": "ema-0.9999", "loss": 0.5, "epsilon_only": false,
        "fine_tuned_from": null, "classes": ["cat", "dog"], "config": TrainConfig::default(),
    });
    seeds.put_as("diffusers", "facts", 3, serde_json::to_vec(&facts)?)
}

/// What the tests of the repository have.
fn fixtures(seeds: &Seeds) -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let data = root.join("crates/data/src/format/tests/fixtures");
    for name in ["gnu.tar", "pax.tar", "webdataset/train-000000.tar"] {
        seeds.put("tar", &name.replace('/', "-"), fs::read(data.join(name))?)?;
    }
    for folder in ["saved-texts", "saved-splits/train"] {
        for name in ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"] {
            let seed = format!("{}-{name}", folder.replace('/', "-"));
            seeds.put("arrow", &seed, fs::read(data.join(folder).join(name))?)?;
        }
    }
    seeds.put("arrow", "saved.arrow", fs::read(data.join("saved/data-00000-of-00002.arrow"))?)?;
    let model = root.join("tests/fixtures/diffusers/model");
    for (which, name) in (0..).zip(["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]) {
        seeds.put_as("diffusers", &name.replace('/', "-"), which, fs::read(model.join(name))?)?;
    }
    for (name, flags) in [("guided.pt", "g--image_size 64 --learn_sigma True"), ("improved.pt", "i")] {
        let file = fs::read(root.join("tests/fixtures/openai").join(name))?;
        seeds.put("pickle", name, [flags.as_bytes(), &[0], &file].concat())?;
        seeds.put("pickle", &format!("{name}-alone"), [flags.as_bytes(), &[0], &without_values(&file)?].concat())?;
    }
    Ok(())
}

/// The archive with its pickle alone: a whole model takes its time, and most of its bytes are numbers.
fn without_values(file: &[u8]) -> Result<Vec<u8>> {
    let mut from = ZipArchive::new(Cursor::new(file))?;
    let mut to = ZipWriter::new(Cursor::new(Vec::new()));
    for number in 0..from.len() {
        let entry = from.by_index_raw(number)?;
        if !entry.name()?.contains("/data/") {
            to.raw_copy_file(entry)?;
        }
    }
    Ok(to.finish()?.into_inner())
}
