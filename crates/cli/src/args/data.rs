//! `ddpm data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ddpm_data::{Background, Fit, Fitting, Format, ImageLimits, ImageSize, MAX_IMAGE_SIZE};

use super::{count, path, source};

/// `ddpm data`
#[derive(Clone, Debug, Subcommand)]
pub enum DataCommand {
    /// Count images, sizes, classes and unreadable files, and draw a preview
    Inspect(InspectArgs),
    /// Write a data set as tar shards, decoded and cut once and not at every step
    Pack(PackArgs),
}

/// `ddpm data inspect`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ddpm data inspect builtin:fashion10k
  ddpm data inspect photos/ --preview photos.png")]
pub struct InspectArgs {
    /// What to look at: anything that data.source may be
    #[arg(value_parser = source)]
    pub source: String,
    /// How the images are stored: auto, folder, parquet, webdataset, arrow, idx or cifar
    #[arg(long, default_value = "auto", value_name = "NAME", value_parser = format)]
    pub format: Format,
    /// The part of a data set that has several
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// How large an image may be
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Also write a grid of some of the images
    #[arg(long, value_name = "PNG", value_parser = path())]
    pub preview: Option<PathBuf>,
}

/// `ddpm data pack`
#[derive(Clone, Debug, Args)]
#[command(after_help = "The same command goes on where it was stopped.

Examples:
  ddpm data pack photos/ --size 64 --to photos-64
  ddpm data pack photos/ --original --to shards")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["size", "original"]))]
pub struct PackArgs {
    /// What to pack: anything that data.source may be
    #[arg(value_parser = source)]
    pub source: String,
    /// The folder to write; a new one, or one that was begun
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub to: PathBuf,
    /// As PNGs of this height and width (64, or 48,80)
    #[arg(long, value_name = "PIXELS", value_parser = size)]
    pub size: Option<ImageSize>,
    /// As they are
    #[arg(long)]
    pub original: bool,
    /// How images get the size of --size
    #[command(flatten)]
    pub fitting: FittingArgs,
    /// How the images are stored: auto, folder, parquet, webdataset, arrow, idx or cifar
    #[arg(long, default_value = "auto", value_name = "NAME", value_parser = format)]
    pub format: Format,
    /// The part of a data set that has several
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// How large an image may be
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Images of each shard [default: a sixteenth, 100 to 5000]
    #[arg(long, value_name = "N", value_parser = count)]
    pub shard_images: Option<usize>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = count)]
    pub workers: Option<usize>,
}

/// How images get another size.
#[derive(Clone, Debug, Args)]
pub struct FittingArgs {
    /// What becomes of larger images: crop (their middle), pad or stretch, as data.fit [default: crop]
    #[arg(long, value_name = "HOW", value_parser = fit, conflicts_with = "original")]
    pub fit: Option<Fit>,
    /// Whether smaller images are enlarged, or lie in a frame, as data.upscale [default: true]
    #[arg(long, value_name = "true|false", conflicts_with = "original")]
    pub upscale: Option<bool>,
    /// The colour under and around images: black, grey, white or #rrggbb, as data.background [default: white under, black around]
    #[arg(long, value_name = "COLOUR", value_parser = background, conflicts_with = "original")]
    pub background: Option<Background>,
}

impl FittingArgs {
    /// That of the data, where nothing else is said.
    pub fn get(&self) -> Fitting {
        let default = Fitting::default();
        Fitting {
            fit: self.fit.unwrap_or(default.fit),
            upscale: self.upscale.unwrap_or(default.upscale),
            background: self.background.unwrap_or(default.background),
        }
    }
}

/// How large an image may be.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Pixels of an image, as data.max_pixels
    #[arg(long, value_name = "N", value_parser = count, default_value_t = ImageLimits::default().max_pixels as usize)]
    pub max_pixels: usize,
    /// Bytes of an image, in its file and decoded, as data.max_bytes
    #[arg(long, value_name = "N", value_parser = count, default_value_t = ImageLimits::default().max_bytes as usize)]
    pub max_bytes: usize,
}

impl LimitArgs {
    /// As the data knows them.
    pub fn get(&self) -> ImageLimits {
        ImageLimits { max_pixels: self.max_pixels as u64, max_bytes: self.max_bytes as u64 }
    }
}

/// A size, as in `data.image_size`; the brackets may be left out.
fn size(text: &str) -> Result<ImageSize, String> {
    let expected = || "expected a number, or height,width".to_owned();
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let sides: Result<Vec<usize>, _> = inner.split(',').map(|side| side.trim().parse()).collect();
    let size = match sides.map_err(|_| expected())?[..] {
        [side] => ImageSize::square(side),
        [height, width] => ImageSize { height, width },
        _ => return Err(expected()),
    };
    if size.sides().iter().all(|side| (1..=MAX_IMAGE_SIZE).contains(side)) {
        return Ok(size);
    }
    Err(format!("expected 1 to {MAX_IMAGE_SIZE} pixels"))
}

/// As `data.fit`.
fn fit(text: &str) -> Result<Fit, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected crop, pad or stretch".to_owned())
}

/// As `data.background`.
fn background(text: &str) -> Result<Background, String> {
    Background::try_from(text.to_owned())
}

/// A format's name, as in `data.format`.
fn format(text: &str) -> Result<Format, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("expected {}", Format::NAMES))
}
