//! `ddpm data pack`

use std::path::Path;
use std::sync::Mutex;

use ddpm_data::{OpenOptions, PackAs, PackConfig, Packed};
use ddpm_run::memory::format_bytes;
use serde_json::json;

use super::args::PackArgs;
use super::places::{Kind, Place};
use super::{Align, Output, Table};
use crate::failure::{ExitCode, Failure};

/// Unreadable samples in the text; `--json` has them all.
const SHOWN: usize = 12;

/// Writes a source as tar shards.
pub(super) fn run(args: &PackArgs, output: &Output) -> Result<(), Failure> {
    if args.to.to_string_lossy().contains("://") {
        return Err(Failure::new(ExitCode::Usage, "--to: an address, expected a folder on a disk")
            .hint("write to a disk, and copy the shards from there"));
    }
    Place { option: "--to", path: &args.to, kind: Kind::Folder }.refuse_inside(Path::new(&args.source))?;
    let source = ddpm_data::open(
        &args.source,
        &OpenOptions {
            format: args.format,
            split: args.split.clone(),
            limits: args.limits.get(),
            ..OpenOptions::default()
        },
    )?;
    source.notices().iter().for_each(|notice| tracing::info!("{notice}"));
    let config = PackConfig {
        pack_as: args.size.map_or(PackAs::Original, PackAs::Size),
        fitting: args.fitting.get(),
        shard_images: args.shard_images.unwrap_or(0),
        workers: args.workers.unwrap_or(0),
        limits: args.limits.get(),
    };
    let counter = Mutex::new(output.counter(source.len(), "images"));
    let packed = ddpm_data::pack(&*source, &args.to, &config, &|done| {
        // Another thread shows a number just now: this one may be left out.
        if let Ok(mut counter) = counter.try_lock() {
            counter.set(done as u64, "");
        }
    })?;
    drop(counter);
    let mut document = json!(packed);
    document["to"] = json!(args.to);
    output.result(&document, || text(args, &packed))
}

fn text(args: &PackArgs, packed: &Packed) -> String {
    let Packed { source, shards, kept, images, skipped, unreadable, bytes, notices } = packed;
    let mut table = Table::new(&[Align::Left, Align::Left]);
    table.row(&[&"source", source]);
    let there = if *kept > 0 { format!(", of which {kept} were there") } else { String::new() };
    let count = if *shards == 1 { "1 shard".to_owned() } else { format!("{shards} shards") };
    table.row(&[&"packed", &format!("{images} images in {count}{there}; {}", format_bytes(*bytes))]);
    if *skipped > 0 {
        table.row(&[&"left out", &format!("{skipped} that cannot be read")]);
    }
    table.row(&[&"train on", &format!("data.source = {:?}", args.to.display().to_string())]);
    let mut text = table.render();
    notices.iter().for_each(|notice| text += &format!("note: {notice}\n"));
    if !unreadable.is_empty() {
        let mut table = Table::new(&[Align::Left, Align::Left]);
        unreadable.iter().take(SHOWN).for_each(|sample| table.row(&[&format!("  {}", sample.id), &sample.reason]));
        text += &format!("\nunreadable\n{}", table.render());
        if let Some(more @ 1..) = unreadable.len().checked_sub(SHOWN) {
            text += &format!("  ... and {more} more; --json lists them all\n");
        }
    }
    text
}
