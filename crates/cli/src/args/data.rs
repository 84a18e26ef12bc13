//! `ddpm data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ddpm_data::Format;

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
    /// As PNGs of this height and width, from the middle of larger images
    #[arg(long, value_name = "PIXELS")]
    pub size: Option<usize>,
    /// As they are
    #[arg(long)]
    pub original: bool,
    /// How the images are stored: auto, folder, parquet, webdataset, arrow, idx or cifar
    #[arg(long, default_value = "auto", value_name = "NAME", value_parser = format)]
    pub format: Format,
    /// The part of a data set that has several
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Images of each shard [default: a sixteenth, 100 to 5000]
    #[arg(long, value_name = "N", value_parser = count)]
    pub shard_images: Option<usize>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = count)]
    pub workers: Option<usize>,
}

/// A format's name, as in `data.format`.
fn format(text: &str) -> Result<Format, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("expected {}", Format::NAMES))
}
