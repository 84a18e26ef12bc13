//! `ddpm data inspect`

use std::path::Path;

use ddpm_data::{Alike, Counts, ImageSize, Inspection, OpenOptions, Source, counted, shown};
use ddpm_run::memory::format_bytes;
use ddpm_train::report::pictures::{self, Layout, grid};
use serde_json::json;

use super::args::InspectArgs;
use super::places::{Kind, Place, prepare};
use super::{Align, Output, Table};
use crate::failure::{Failure, Outcome};

/// Images in the preview: a grid of 10 x 10.
const PREVIEW_IMAGES: usize = 100;
/// Side of a preview image, in pixels.
const PREVIEW_SIZE: usize = 64;
/// Rows of a list in the text; `--json` has them all.
const SHOWN: usize = 12;
/// Characters of the longest bar.
const BAR: usize = 40;

/// Reads a whole source, reports what it holds, and draws a preview where one is asked for.
pub(super) fn inspect(args: &InspectArgs, output: &Output) -> Result<Outcome, Failure> {
    let place = args.preview.as_deref().map(|path| Place { option: "--preview", path, kind: Kind::Png });
    place.iter().try_for_each(|place| place.refuse_inside(Path::new(&args.source)))?;
    let source = ddpm_data::open(
        &args.source,
        &OpenOptions {
            format: args.format,
            split: args.split.clone(),
            limits: args.limits.get(),
            ..OpenOptions::default()
        },
    )?;
    prepare(&place.into_iter().collect::<Vec<_>>())?;
    let total = source.len();
    tracing::debug!("reading {}", source.describe());
    let inspection = ddpm_data::inspect(source.as_ref(), 0, args.limits.get(), &|done| {
        // A source that takes long to read needs progress messages.
        if done % 16_384 == 0 {
            tracing::info!(done, total, "{done} of {total} images");
        }
    })?;
    let preview = args.preview.as_deref().filter(|_| inspection.readable > 0);
    let document = |preview: Option<&Path>| {
        let mut document = json!(inspection);
        document["preview"] = json!(preview);
        document
    };
    // What took long to find out is printed even if the picture cannot be written.
    match preview.map_or(Ok(()), |path| write_preview(&inspection, source.as_ref(), path)) {
        Ok(()) => output.result(&document(preview), || text(&inspection, preview)).map(|()| Outcome::Done),
        Err(failure) => output.result_and_failure(&document(None), || text(&inspection, None), &failure),
    }
}

fn write_preview(inspection: &Inspection, source: &dyn Source, path: &Path) -> Result<(), Failure> {
    let colours = inspection.colors.0.iter().any(|(name, _)| name.starts_with("rgb"));
    let channels = if colours { 3 } else { 1 };
    let size = inspection.sizes.0.iter().filter_map(|(size, _)| largest_side(size)).max().unwrap_or(PREVIEW_SIZE);
    let size = ImageSize::square(size.min(PREVIEW_SIZE));
    let previews = inspection.preview(source, PREVIEW_IMAGES, size, channels)?;
    let shape = size.shape(previews.len(), channels);
    let pixels: Vec<u8> = previews.into_iter().flat_map(|preview| preview.pixels).collect();
    let page = grid(&pixels, shape, Layout::visible(size.height, size.width))?;
    Ok(pictures::write(path, &pictures::encode(&page)?)?)
}

/// The longer side of "28x32".
fn largest_side(size: &str) -> Option<usize> {
    size.split('x').filter_map(|side| side.parse().ok()).max()
}

fn text(inspection: &Inspection, preview: Option<&Path>) -> String {
    let Inspection { source, images, readable, unreadable, classes, sizes, formats, colors, .. } = inspection;
    let mut table = Table::new(&[Align::Left, Align::Left]);
    table.row(&[&"source", source]);
    table.row(&[&"images", &format!("{images}, {readable} readable, {} unreadable", unreadable.len())]);
    table.row(&[&"sizes", &in_a_line(sizes)]);
    table.row(&[&"formats", &format!("{}; {}", in_a_line(formats), format_bytes(inspection.bytes))]);
    table.row(&[&"colours", &in_a_line(colors)]);
    if !inspection.profiles.0.is_empty() {
        table.row(&[&"profiles", &in_a_line(&inspection.profiles)]);
    }
    for (name, alike) in [("near-black", &inspection.near_black), ("duplicates", &inspection.duplicates)] {
        if alike.count > 0 {
            table.row(&[&name, &with_examples(alike)]);
        }
    }
    let (speed, threads) = (inspection.images_per_s, counted(inspection.threads, "thread"));
    table.row(&[
        &"speed",
        &format!("{speed:.0} images/s read and decoded by {threads}, {:.1} s an epoch", inspection.seconds),
    ]);
    if let Some(path) = preview {
        table.row(&[&"preview", &path.display()]);
    }
    let mut text = table.render();
    inspection.notices.iter().for_each(|notice| text += &format!("note: {notice}\n"));
    if inspection.shorter_sides.0.len() > 1 {
        text += &format!("\nshorter side, pixels\n{}", histogram(&inspection.shorter_sides));
    }
    if !classes.0.is_empty() {
        text += &format!("\n{}\n{}", counted(classes.0.len(), "class"), list(classes));
    }
    if !unreadable.is_empty() {
        let mut table = Table::new(&[Align::Left, Align::Left]);
        unreadable
            .iter()
            .take(SHOWN)
            .for_each(|sample| table.row(&[&format!("  {}", shown(&sample.id)), &sample.reason]));
        text += &format!("\nunreadable\n{}{}", table.render(), and_more(unreadable.len()));
    }
    text
}

/// How many, and the first of them.
fn with_examples(Alike { count, examples }: &Alike) -> String {
    let names: Vec<_> = examples.iter().map(|name| shown(name).into_owned()).collect();
    let more = if *count > names.len() { ", ..." } else { "" };
    format!("{count}: {}{more}", names.join(", "))
}

/// A bar for each count.
fn histogram(counts: &Counts) -> String {
    let most = counts.0.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let mut table = Table::new(&[Align::Right, Align::Right, Align::Left]);
    for (name, count) in &counts.0 {
        // What is there is seen.
        let bar = "█".repeat((count * BAR).div_ceil(most));
        table.row(&[&format!("  {name}"), count, &bar]);
    }
    table.render()
}

fn list(counts: &Counts) -> String {
    let mut table = Table::new(&[Align::Right, Align::Left, Align::Right]);
    for (number, (name, count)) in counts.0.iter().enumerate().take(SHOWN) {
        table.row(&[&format!("{number:>3}"), &shown(name), count]);
    }
    table.render() + &and_more(counts.0.len())
}

fn in_a_line(counts: &Counts) -> String {
    let shown: Vec<String> = counts.0.iter().take(4).map(|(name, count)| format!("{name} ({count})")).collect();
    let more = counts.0.len().saturating_sub(4);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn and_more(count: usize) -> String {
    match count.saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("  ... and {more} more; --json lists them all\n"),
    }
}
