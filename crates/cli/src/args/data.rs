//! `ddpm data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ddpm_data::{Format, ImageLimits, ImageSize};

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
    /// As PNGs of this height and width (64, or 48,80), from the middle of larger images
    #[arg(long, value_name = "PIXELS", value_parser = size)]
    pub size: Option<ImageSize>,
    /// As they are
    #[arg(long)]
    pub original: bool,
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

/// How large an image may be.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Pixels of an image, as data.max_pixels [default: 268435456]
    #[arg(long, value_name = "N", value_parser = count)]
    pub max_pixels: Option<usize>,
    /// Bytes of an image, in its file and decoded, as data.max_bytes [default: 268435456]
    #[arg(long, value_name = "N", value_parser = count)]
    pub max_bytes: Option<usize>,
}

impl LimitArgs {
    /// Those of the data, where nothing else is said.
    pub fn get(&self) -> ImageLimits {
        let default = ImageLimits::default();
        let given = |value: Option<usize>, default| value.map_or(default, |value| value as u64);
        ImageLimits {
            max_pixels: given(self.max_pixels, default.max_pixels),
            max_bytes: given(self.max_bytes, default.max_bytes),
        }
    }
}

/// A size, as in `data.image_size`; the brackets may be left out.
fn size(text: &str) -> Result<ImageSize, String> {
    let expected = || "expected a number, or height,width".to_owned();
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let sides: Result<Vec<usize>, _> = inner.split(',').map(|side| side.trim().parse()).collect();
    match sides.map_err(|_| expected())?[..] {
        [side] => Ok(ImageSize::square(side)),
        [height, width] => Ok(ImageSize { height, width }),
        _ => Err(expected()),
    }
}

/// A format's name, as in `data.format`.
fn format(text: &str) -> Result<Format, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("expected {}", Format::NAMES))
}
